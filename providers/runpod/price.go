package runpod

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"headrace/router/endpoint"
)

// catalog is what GET /v2/catalog/gpus told last.
type catalog struct {
	at   time.Time
	gpus map[string]gpu // by GPU type id
	// pools are the ids of the types of each pool, sorted: sums taken in another order differ in their last bits.
	pools map[string][]string
}

type gpu struct {
	name         string // marketing name
	pool         string
	usdPerSecond float64 // of one GPU on a serverless worker, 0 when unknown
}

// tableDate is when the prices of table were RunPod's (docs.runpod.io/serverless/endpoints/endpoint-configurations,
// last changed then), and tableTime the same. Pool names of the last rows: runpod/flash, resources/gpu.py.
const tableDate = "2026-06-08"

func tableTime() time.Time { return time.Date(2026, 6, 8, 0, 0, 0, 0, time.UTC) }

// table is used where the catalogue cannot be read. A pool's price is for one GPU and one second.
var table = []struct {
	pool         string
	usdPerSecond float64
	gpus         []string // words of the GPU type's id
}{
	{"AMPERE_16", 0.00016, []string{"A4000", "A4500", "RTX 4000 Ada", "RTX 2000 Ada"}},
	{"AMPERE_24", 0.00019, []string{"L4", "A5000", "RTX 3090"}},
	{"ADA_24", 0.00031, []string{"RTX 4090"}},
	{"AMPERE_48", 0.00034, []string{"A6000", "A40"}},
	{"ADA_48_PRO", 0.00053, []string{"L40", "L40S", "RTX 6000 Ada"}},
	{"AMPERE_80", 0.00076, []string{"A100"}},
	{"ADA_80_PRO", 0.00116, []string{"H100"}},
	{"BLACKWELL_96", 0.00111, []string{"RTX PRO 6000"}},
	{"HOPPER_141", 0.00155, []string{"H200"}},
	{"BLACKWELL_180", 0.00240, []string{"B200"}},
}

// tabled finds a GPU type or a pool in the table.
func tabled(typeID, pool string) (foundPool string, usdPerSecond float64) {
	spaced := " " + strings.ReplaceAll(typeID, "-", " ") + " "
	for _, t := range table {
		if t.pool == pool || slices.ContainsFunc(t.gpus, func(g string) bool { return strings.Contains(spaced, " "+g+" ") }) {
			return t.pool, t.usdPerSecond
		}
	}
	return "", 0
}

// marketing is a GPU type's name without its vendor.
func marketing(typeID string) string {
	name := strings.TrimPrefix(typeID, "NVIDIA ")
	name = strings.TrimPrefix(name, "GeForce ")
	return strings.TrimSuffix(name, " Generation")
}

// quote is a price with those who said it.
type quote struct {
	usdPerSecond float64
	from         origin
}

type origin uint8

const (
	fromNobody origin = iota
	fromTable
	fromCatalog
	fromConfig
)

// gpuQuote is the price of one GPU of a type: as the operator says, as the catalogue says, as the table says.
func (p *Provider) gpuQuote(typeID string) quote {
	g, known := p.catalog.gpus[typeID]
	pool := g.pool
	tablePool, tablePrice := tabled(typeID, pool)
	for _, name := range []string{typeID, marketing(typeID), cmp.Or(pool, tablePool)} {
		if v, ok := p.opt.Prices[name]; ok && name != "" {
			return quote{v, fromConfig}
		}
	}
	switch {
	case known && g.usdPerSecond > 0:
		return quote{g.usdPerSecond, fromCatalog}
	case tablePrice > 0:
		return quote{tablePrice, fromTable}
	}
	return quote{}
}

// poolQuote is the price of one GPU of a pool: the mean of its types, but for those that the endpoint excludes.
func (p *Provider) poolQuote(pool string, excluded []string) quote {
	if v, ok := p.opt.Prices[pool]; ok {
		return quote{v, fromConfig}
	}
	var m mean
	for _, id := range p.catalog.pools[pool] {
		if !slices.Contains(excluded, id) {
			m.add(p.gpuQuote(id))
		}
	}
	if m.n == 0 {
		if _, usd := tabled("", pool); usd > 0 {
			return quote{usd, fromTable}
		}
	}
	return m.quote()
}

// mean of quotes; its origin is the least trustworthy of theirs.
type mean struct {
	sum  float64
	n    int
	from origin
}

func (m *mean) add(q quote) {
	if q.from == fromNobody {
		return
	}
	if m.n == 0 || q.from < m.from {
		m.from = q.from
	}
	m.sum += q.usdPerSecond
	m.n++
}

func (m *mean) quote() quote {
	if m.n == 0 {
		return quote{}
	}
	return quote{m.sum / float64(m.n), m.from}
}

// price is what a worker of the service costs: the mean of those that are up, else of the pools it may come from.
func (p *Provider) price(s *service) endpoint.Price {
	var m mean
	gpus := map[string]bool{}
	for _, w := range s.up() {
		q := p.gpuQuote(w.gpuType)
		q.usdPerSecond *= float64(max(w.gpus, 1))
		m.add(q)
		gpus[p.gpuName(w.gpuType)] = true
	}
	of := "workers"
	if m.n == 0 {
		of = "pools"
		clear(gpus)
		for _, pool := range s.desc.pools {
			q := p.poolQuote(pool, s.desc.excluded)
			q.usdPerSecond *= float64(s.desc.gpus)
			m.add(q)
			gpus[pool] = true
		}
	}
	q := m.quote()
	if q.from == fromNobody {
		return endpoint.Price{Source: "unknown: no price is known for what it runs on"}
	}
	names := strings.Join(slices.Sorted(maps.Keys(gpus)), ", ")
	price := endpoint.Price{
		Basis: endpoint.PerWorkerSecond, USDPerWorkerSecond: q.usdPerSecond,
		ColdStart: s.seen.coldStart(), IdleTimeout: s.desc.idleTimeout,
	}
	switch q.from {
	case fromConfig:
		price.AsOf, price.Source = p.began, fmt.Sprintf("config, %s %s", of, names)
	case fromCatalog:
		price.AsOf, price.Source = p.catalog.at, fmt.Sprintf("runpod catalog, %s %s", of, names)
	case fromTable, fromNobody:
		price.AsOf, price.Source = tableTime(), fmt.Sprintf("built-in table of %s, %s %s", tableDate, of, names)
	}
	return price
}

func (p *Provider) gpuName(typeID string) string {
	return cmp.Or(p.catalog.gpus[typeID].name, marketing(typeID))
}

// gotCatalog takes a new price list in. Types without a serverless price keep none: they are in no pool.
func (p *Provider) gotCatalog(entries []json.RawMessage, at time.Time) {
	gpus := make(map[string]gpu, len(entries))
	for _, raw := range entries {
		var g gpuJSON
		if err := p.decode(raw, &g, "catalog"); err != nil || g.ID == "" {
			p.odd("catalog: an entry that cannot be read")
			continue
		}
		p.numbers("catalog", g.Price.Serverless)
		gpus[g.ID] = gpu{name: g.Name, pool: g.Pool, usdPerSecond: max(g.Price.Serverless.v, 0) / 3600}
	}
	if len(gpus) == 0 {
		p.odd("catalog: no GPU in it")
		return // the last good one stays, with its age
	}
	pools := map[string][]string{}
	for _, id := range slices.Sorted(maps.Keys(gpus)) {
		pools[gpus[id].pool] = append(pools[gpus[id].pool], id)
	}
	p.catalog = catalog{at: at, gpus: gpus, pools: pools}
	p.rebuildAll()
}
