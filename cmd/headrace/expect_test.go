package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"headrace/providers/fakecloud"
	"headrace/router/endpoint"
)

// TestExpectations shows at the admin API what is expected of hosts, by the catalogue and by the config, and takes a new
// config over.
func TestExpectations(t *testing.T) {
	h := startHost(t, fakecloud.HostConfig{Models: []string{"llama-70b-awq"}})
	host := `    - {name: %s, base_url: %q, models: ["llama-70b-awq"], price: {usd_per_hour: 1}, gpu: "RTX 4090", gpus: 2}` + "\n"
	yaml := fmt.Sprintf(appYAML, h.URL()+"/v1") + fmt.Sprintf(host, "b", h.URL()+"/v1") + fmt.Sprintf(host, "c", h.URL()+"/v1") +
		"catalogue:\n  - {host: \"static:c\", tps: 50}\n"
	r := startApp(t, t.TempDir(), yaml, nil)
	_, body := get(t, "http://"+r.app.admin.Addr().String()+"/admin/v1/hosts")
	var answer struct {
		Hosts []struct {
			ID    endpoint.ID `json:"id"`
			ITL   float64     `json:"itl_ms"`
			Prior string      `json:"prior"`
		} `json:"hosts"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || len(answer.Hosts) != 3 {
		t.Fatalf("%v in %s", err, body)
	}
	for i, want := range []struct {
		tps   float64
		prior string
	}{{30, "default: GPU unknown"}, {25, "as measured 2023-12: 2 x RTX 4090, Llama-2-70B 4bit"}, {50, "config; the rest as measured"}} {
		if got := answer.Hosts[i]; !strings.HasPrefix(got.Prior, want.prior) || got.ITL < 990/want.tps || got.ITL > 1010/want.tps {
			t.Errorf("%s: %g ms a token, %q; want %g tokens per second, %q", got.ID, got.ITL, got.Prior, want.tps, want.prior)
		}
	}
	r.write(t, strings.Replace(yaml, "tps: 50", "tps: 70", 1))
	r.log.await(t, "config reloaded", 1)
	ep := endpoint.Endpoint{ID: "static:c"}
	if p := r.app.expect(&ep); p.ITLSeconds != 1.0/70 {
		t.Errorf("after the reload: %+v", p)
	}
}
