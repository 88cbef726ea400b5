package router

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// stream has one answer of 200 tokens come from that host at that speed.
func stream(t *testing.T, r *Router, c *clock, id endpoint.ID, tps float64) {
	t.Helper()
	l := leaseAt(t, r, id)
	l.FirstContent(200 * time.Millisecond)
	c.seconds(0.2 + 199/tps)
	l.Done(Result{Class: outcome.Success, OutputTokens: 200, Streamed: seconds(199 / tps)})
}

func speed(r *Router, id endpoint.ID) (tps float64, observed int64) {
	for _, v := range r.Hosts() {
		if v.ID == id {
			return 1e3 / *v.ITLMillis, v.Observed
		}
	}
	return math.NaN(), 0
}

// TestRemember has a new router begin with what another has learned, also of hosts that it finds later, and of others on the same machine;
// not of hosts that are others now.
func TestRemember(t *testing.T) {
	c := newClock()
	a, b := spot("a", "m1", "", ""), spot("b", "m2", "", "")
	a.Hardware.GPU, b.Hardware.GPU = "RTX 4090", "RTX 4090"
	old := probing(c, a, b)
	cold, _ := speed(old, "a")
	slow := cold / 2
	for range 60 {
		stream(t, old, c, "a", slow)
	}
	raw, err := json.Marshal(old.Learned())
	if err != nil {
		t.Fatal(err)
	}
	var m Memory
	if err := json.Unmarshal(raw, &m); err != nil || len(m.Hosts) != 1 || len(m.Models) != 1 {
		t.Fatalf("%s: %+v, %v", raw, m, err)
	}
	twin, other, moved := spot("twin", "m1", "", ""), spot("other", "m3", "", ""), a
	twin.Hardware.GPU, other.Hardware.GPU, moved.Hardware.Machine = "RTX 4090", "RTX 4090", "m9"
	model := a
	model.Served = []endpoint.Served{{Name: "another"}}
	for name, tc := range map[string]struct {
		ep   endpoint.Endpoint
		warm bool
	}{
		"itself":           {a, true},
		"the same machine": {twin, true},
		"another machine":  {other, false},
		"it has moved":     {moved, false},
		"another model":    {model, false},
	} {
		for _, late := range []bool{false, true} {
			r := New(Options{Now: c.now, Prior: tell, Seed: 1})
			if late {
				r.Remember(m)
				r.Update([]endpoint.Endpoint{tc.ep}, nil)
			} else {
				r.Update([]endpoint.Endpoint{tc.ep}, nil)
				r.Remember(m)
			}
			tps, _ := speed(r, tc.ep.ID)
			if warm := math.Abs(tps/slow-1) < 0.1; warm != tc.warm || !warm && math.Abs(tps/cold-1) > 0.01 {
				t.Errorf("%s, known late %t: %.1f tokens a second; %.1f was measured, %.1f is usual", name, late, tps, slow, cold)
			}
			if got := r.stats["m"]; tc.ep.Served[0].Name == "m" && math.Abs(got.output.get(0)-200) > 1 {
				t.Errorf("%s: answers of %.0f tokens", name, got.output.get(0))
			}
		}
	}
	c.pass(3 * time.Hour)
	r := probing(c, a)
	r.Remember(m)
	if tps, _ := speed(r, "a"); math.Abs(tps/cold-1) > 0.05 {
		t.Errorf("after hours: %.1f tokens a second, want %.1f", tps, cold)
	}
	r.Remember(Memory{Hosts: []HostMemory{{Endpoint: "a", Served: []string{"m"}}}, Models: []ModelMemory{{Name: "m", Tokens: -1, N: 7}}}) // takes nothing
	if got := r.Learned(); len(got.Models) != 0 && got.Models[0].Tokens < 0 {
		t.Errorf("took %+v", got)
	}
}
