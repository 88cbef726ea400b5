package router

import (
	"errors"
	"slices"
	"testing"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// TestPool keeps requests to a part of a model's hosts, of which callers know nothing.
func TestPool(t *testing.T) {
	r := newRouter()
	fleet := []endpoint.Endpoint{hourly("base", 1, 10, "m-base"), hourly("awq", 2, 10, "m-awq"), hourly("other", 1, 10, "o")}
	rules := []ModelRule{{Name: "m", Serves: []string{"m-*"}, SLO: SLO{TPS: 1}}, {Name: "other", Serves: []string{"o"}, SLO: SLO{TPS: 1}}}
	r.Update(fleet, rules,
		Pool{Name: "p/awq", Model: "m", Holds: func(_ *endpoint.Endpoint, served string) bool { return served == "m-awq" }},
		Pool{Name: "p/other", Model: "other", As: "m", Policy: PolicyLatency},
		Pool{Name: "p/none", Model: "m", Holds: func(*endpoint.Endpoint, string) bool { return false }},
		Pool{Name: "p/lost", Model: "nobody serves this"})
	s := r.Snapshot()
	if got := s.Models(); !slices.Equal(got, []string{"m", "other"}) {
		t.Errorf("models %v", got)
	}
	if _, ok := s.Intern([]byte("p/awq")); ok || s.Has("p/awq") {
		t.Error("a caller can name a pool")
	}
	for name, want := range map[string]int{"p/awq": 1, "p/other": 1, "p/none": 0, "p/lost": -1} {
		if n, ok := s.Pool(name); ok != (want >= 0) || n != max(want, 0) {
			t.Errorf("pool %s has %d hosts, %v", name, n, ok)
		}
	}
	for pool, want := range map[string]struct {
		id     endpoint.ID
		served string
		policy Policy
	}{"p/awq": {"awq", `"m-awq"`, PolicyCost}, "p/other": {"other", `"o"`, PolicyLatency}} {
		var l Lease
		if err := r.Pick(&Request{Model: pool}, &l); err != nil {
			t.Fatalf("%s: %v", pool, err)
		}
		if l.Endpoint.ID != want.id || string(l.ServedJSON) != want.served || l.Decision.Policy != want.policy {
			t.Errorf("%s: %s as %s by %s", pool, l.Endpoint.ID, l.ServedJSON, l.Decision.Policy)
		}
		if x, ok := r.Decision(l.Decision.Seq); !ok || x.Model != "m" || x.Pool != pool {
			t.Errorf("%s: the decision is of model %q, pool %q", pool, x.Model, x.Pool)
		}
		l.Done(Result{Class: outcome.Success, OutputTokens: 400, Cached: -1})
	}
	if got, want := r.Snapshot().models["m"].stats.output.get(0), 400.0; got != want {
		t.Errorf("the model's answers are %v tokens long, want %v: what is learned of a pool's requests is the model's", got, want)
	}
	for _, pool := range []string{"p/none", "p/lost"} {
		err := r.Pick(&Request{Model: pool}, new(Lease))
		if ue, ok := errors.AsType[*UnavailableError](err); pool == "p/none" && (!ok || ue.Model != "m") || pool == "p/lost" && !errors.Is(err, ErrUnknownModel) {
			t.Errorf("%s: %v", pool, err)
		}
	}
}

// TestFirm refuses what only leniency would allow, because somebody else can be asked.
func TestFirm(t *testing.T) {
	r := newRouter(hourly("a", 1, 10, "m"))
	q := &Request{Model: "m", Tried: []endpoint.ID{"a"}, Firm: true}
	if err := r.Pick(q, new(Lease)); err == nil {
		t.Error("the host that failed it is tried again")
	}
	q.Firm = false
	if err := r.Pick(q, new(Lease)); err != nil {
		t.Errorf("where nobody else can be asked: %v", err)
	}
}

// TestCopy takes only what is paid anyway, up, and less than half used with the copy.
func TestCopy(t *testing.T) {
	asleep := serverless("asleep", 0.0001, endpoint.Cold)
	up := serverless("up", 0.0001, endpoint.Ready)
	unknown := hourly("unknown", 0, 100, "m")
	unknown.Price = endpoint.Price{}
	r := newRouter(hourly("host", 1, 8, "m"), asleep, up, unknown)
	var held []*Lease
	for {
		l := new(Lease)
		if err := r.Copy(&Request{Model: "m"}, l); err != nil {
			if !errors.Is(err, ErrNoSpare) {
				t.Error(err)
			}
			break
		}
		if held = append(held, l); l.Endpoint.ID != "host" {
			t.Errorf("a copy went to %s", l.Endpoint.ID)
		}
	}
	if len(held) != 4 {
		t.Errorf("%d copies at a host that runs 8 at once", len(held))
	}
	for _, l := range held {
		l.Done(Result{Class: outcome.Success, Cached: -1})
	}
	if err := r.Copy(&Request{Model: "x"}, new(Lease)); !errors.Is(err, ErrUnknownModel) {
		t.Error(err)
	}
}
