package runpod

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"headrace/router/endpoint"
)

const (
	id4090 = "NVIDIA GeForce RTX 4090"
	idL40S = "NVIDIA L40S"
	idL4   = "NVIDIA L4"
)

var sampleCatalog = []json.RawMessage{
	json.RawMessage(`{"id":"NVIDIA GeForce RTX 4090","name":"RTX 4090","pool":"ADA_24","price":{"secure":0.44,"serverless":1.08}}`),
	json.RawMessage(`{"id":"NVIDIA L40S","name":"L40S","pool":"ADA_48_PRO","price":{"serverless":"1.80"}}`),
	json.RawMessage(`{"id":"NVIDIA L40","name":"L40","pool":"ADA_48_PRO","price":{"serverless":3.60}}`),
	json.RawMessage(`{"id":"NVIDIA GeForce RTX 3070","name":"RTX 3070","price":{"secure":0.13}}`),
}

func TestPrice(t *testing.T) {
	at := time.Date(2026, 9, 2, 0, 0, 0, 0, time.UTC)
	up := func(ws ...worker) service { return service{workers: ws, seen: sight{any: true, up: true}} }
	pools := func(excluded []string, gpus int, names ...string) service {
		return service{desc: description{pools: names, excluded: excluded, gpus: gpus}}
	}
	for name, tc := range map[string]struct {
		s       service
		prices  map[string]float64
		catalog []json.RawMessage
		want    float64 // USD per worker second
		source  string
		asOf    time.Time
	}{
		"a worker":                {up(worker{gpuType: id4090, gpus: 1}), nil, sampleCatalog, 1.08 / 3600, "runpod catalog, workers RTX 4090", at},
		"a worker with four GPUs": {up(worker{gpuType: id4090, gpus: 4}), nil, sampleCatalog, 4 * 1.08 / 3600, "runpod catalog", at},
		"workers on different GPUs": {
			up(worker{gpuType: id4090, gpus: 1}, worker{gpuType: idL40S, gpus: 1}), nil, sampleCatalog, (1.08 + 1.80) / 2 / 3600, "workers L40S, RTX 4090", at,
		},
		"nobody up":               {pools(nil, 2, "ADA_24"), nil, sampleCatalog, 2 * 1.08 / 3600, "runpod catalog, pools ADA_24", at},
		"two pools":               {pools(nil, 1, "ADA_24", "ADA_48_PRO"), nil, sampleCatalog, (1.08 + 2.70) / 2 / 3600, "pools ADA_24, ADA_48_PRO", at},
		"a type that is excluded": {pools([]string{"NVIDIA L40"}, 1, "ADA_48_PRO"), nil, sampleCatalog, 1.80 / 3600, "runpod catalog", at},
		"config by pool":          {pools(nil, 1, "ADA_24"), map[string]float64{"ADA_24": 0.0002}, sampleCatalog, 0.0002, "config, pools ADA_24", time.Time{}},
		"config by id":            {up(worker{gpuType: id4090, gpus: 2}), map[string]float64{id4090: 0.0002}, sampleCatalog, 0.0004, "config, workers RTX 4090", time.Time{}},
		"config by short name":    {up(worker{gpuType: id4090, gpus: 1}), map[string]float64{"RTX 4090": 0.0002}, nil, 0.0002, "config", time.Time{}},
		"config by pool, a worker": {
			up(worker{gpuType: id4090, gpus: 1}), map[string]float64{"ADA_24": 0.0003}, nil, 0.0003, "config", time.Time{},
		},
		"no catalogue":       {up(worker{gpuType: idL4, gpus: 1}), nil, nil, 0.00019, "built-in table of 2026-06-08, workers L4", tableTime()},
		"no catalogue, pool": {pools(nil, 1, "HOPPER_141"), nil, nil, 0.00155, "built-in table of 2026-06-08", tableTime()},
		"A100 in the table":  {up(worker{gpuType: "NVIDIA A100-SXM4-80GB", gpus: 1}), nil, nil, 0.00076, "built-in table", tableTime()},
		"a GPU of no price":  {up(worker{gpuType: "NVIDIA X1", gpus: 1}), nil, sampleCatalog, 0, "unknown", time.Time{}},
		"one of two has no price": {
			up(worker{gpuType: "NVIDIA X1", gpus: 1}, worker{gpuType: id4090, gpus: 1}), nil, sampleCatalog, 1.08 / 3600, "runpod catalog", at,
		},
		"no pool at all": {pools(nil, 1), nil, sampleCatalog, 0, "unknown", time.Time{}},
	} {
		t.Run(name, func(t *testing.T) {
			p := New(Options{Prices: tc.prices})
			if tc.catalog != nil {
				p.gotCatalog(tc.catalog, at)
			}
			tc.s.desc.idleTimeout = 7 * time.Second
			got := p.price(&tc.s)
			if math.Abs(got.USDPerWorkerSecond-tc.want) > 1e-12 || !strings.Contains(got.Source, tc.source) {
				t.Errorf("%g USD per worker second from %q, want %g from %q", got.USDPerWorkerSecond, got.Source, tc.want, tc.source)
			}
			if tc.want == 0 {
				if got.Basis != endpoint.BasisUnknown {
					t.Errorf("a price that nobody knows has basis %v", got.Basis)
				}
				return
			}
			if got.Basis != endpoint.PerWorkerSecond || got.IdleTimeout != 7*time.Second || got.ColdStart != assumedCold {
				t.Errorf("%+v", got)
			}
			if want := tc.asOf; !want.IsZero() && !got.AsOf.Equal(want) || got.AsOf.IsZero() {
				t.Errorf("as of %v, want %v", got.AsOf, want)
			}
		})
	}
}

func TestCatalogOddities(t *testing.T) {
	p := New(Options{})
	p.gotCatalog(sampleCatalog, time.Unix(1, 0))
	if n := p.Status().Oddities["catalog: a number in another form"]; n != 1 {
		t.Errorf("a price in quotes was counted %d times", n)
	}
	p.gotCatalog(nil, time.Unix(2, 0))
	p.gotCatalog([]json.RawMessage{json.RawMessage(`7`), json.RawMessage(`{"id":""}`)}, time.Unix(2, 0))
	if !p.catalog.at.Equal(time.Unix(1, 0)) || len(p.catalog.gpus) != 4 {
		t.Errorf("an empty catalogue took the place of a good one: %+v", p.catalog)
	}
}

func TestTableHasEveryPoolOnce(t *testing.T) {
	if got := tableTime().Format(time.DateOnly); got != tableDate {
		t.Errorf("the table is of %s and of %s", tableDate, got)
	}
	seen := map[string]bool{}
	for _, row := range table {
		if seen[row.pool] || row.usdPerSecond < 0.0001 || row.usdPerSecond > 0.01 {
			t.Errorf("pool %s: seen %v, %g USD per second", row.pool, seen[row.pool], row.usdPerSecond)
		}
		seen[row.pool] = true
	}
	for id, want := range map[string]string{
		idL4: "AMPERE_24", "NVIDIA L40": "ADA_48_PRO", idL40S: "ADA_48_PRO", "NVIDIA A40": "AMPERE_48", "NVIDIA RTX A4000": "AMPERE_16",
		"NVIDIA RTX 6000 Ada Generation": "ADA_48_PRO", "NVIDIA RTX 4000 Ada Generation": "AMPERE_16", "NVIDIA H100 80GB HBM3": "ADA_80_PRO",
		"NVIDIA H200": "HOPPER_141", "NVIDIA B200": "BLACKWELL_180", "NVIDIA RTX PRO 6000 Blackwell Server Edition": "BLACKWELL_96",
		"NVIDIA RTX A6000": "AMPERE_48", "AMD Instinct MI300X OAM": "",
	} {
		if got, _ := tabled(id, ""); got != want {
			t.Errorf("%s is in pool %q, want %q", id, got, want)
		}
	}
}
