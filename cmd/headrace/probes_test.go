package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"headrace/providers/fakecloud"
)

// hostProbe is what the admin API shows of a host's tests.
type hostProbe struct {
	ID      string `json:"id"`
	Breaker string `json:"breaker"`
	Probe   struct {
		Sent     int64  `json:"sent"`
		Failed   int64  `json:"failed"`
		Last     string `json:"last"`
		Prefills []struct {
			Model, Continues, Why string
		} `json:"prefills"`
	} `json:"probe"`
}

func (r *running) probes(t *testing.T) map[string]hostProbe {
	t.Helper()
	_, body := get(t, "http://"+r.app.admin.Addr().String()+"/admin/v1/hosts")
	var list struct {
		Hosts []hostProbe `json:"hosts"`
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		t.Fatal(err)
	}
	hosts := map[string]hostProbe{}
	for _, h := range list.Hosts {
		hosts[h.ID] = h
	}
	return hosts
}

// TestProbes has a gateway find out who goes on with unfinished answers, and leave a dead host alone until a probe has met it alive.
func TestProbes(t *testing.T) {
	const key = "sk-upstream-secret"
	a := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}, APIKey: key})
	b := startHost(t, fakecloud.HostConfig{Name: "b", Models: []string{"other"}, APIKey: key})
	r := startApp(t, t.TempDir(), fmt.Sprintf(`
listen: "127.0.0.1:0"
admin: "127.0.0.1:0"
log: {level: debug}
providers:
  static:
    - {name: a, base_url: "%s/v1", api_key: %s, models: [m], price: {usd_per_hour: 1.8}}
    - {name: b, base_url: "%s/v1", api_key: %s, models: [other], price: {usd_per_hour: 1.8}, continues: never}
`, a.URL(), key, b.URL(), key), nil)
	r.log.await(t, "host goes on with unfinished answers", 1)
	for id, want := range map[string]string{"static:a": "yes tested", "static:b": "no configured"} {
		h := r.probes(t)[id]
		if p := h.Probe.Prefills; h.Breaker != "closed" || len(p) != 1 || p[0].Continues+" "+p[0].Why != want {
			t.Errorf("%s: %+v, want %q", id, h, want)
		}
	}
	if s := b.Stats(); s.Generations != 0 {
		t.Errorf("the host of which all is said made tokens: %+v", s)
	}

	a.Kill()
	if status, code := ask(t, http.DefaultClient, r.base, "m", "hello", 5); status != 503 {
		t.Fatalf("from a dead host: %d %s", status, code)
	}
	if h := r.probes(t)["static:a"]; h.Breaker != "open" {
		t.Errorf("after the first evidence: %+v", h)
	}
	before := len(a.Requests())
	if err := a.Revive(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an answer", func() bool {
		status, _ := ask(t, http.DefaultClient, r.base, "m", "hello", 5)
		return status == 200
	})
	r.log.await(t, "host answers again", 1)
	for _, q := range a.Requests()[before:] {
		if q.Method != http.MethodPost {
			continue // it is asked for its load as well
		}
		if q.Header.Get("X-Headrace-Probe") != "1" {
			t.Error("the first to meet it alive was a caller")
		}
		break
	}
	if h := r.probes(t)["static:a"]; h.Breaker != "closed" || h.Probe.Sent < 1 || h.Probe.Last != "success" {
		t.Errorf("after a probe: %+v", h)
	}
	if n := r.app.ring.Total(); n < 2 {
		t.Errorf("%d requests recorded", n)
	}
	for _, rec := range r.app.ring.Newest(1000, nil) {
		if strings.HasPrefix(rec.ID, "req_probe_") {
			t.Error("a probe is in the callers' ledger")
		}
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if all := r.log.String(); strings.Contains(all, "upstream-secret") || !strings.Contains(all, "req_probe_") {
		t.Error("the log shows the host's key, or no probe")
	}
}
