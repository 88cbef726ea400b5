package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"headrace/gateway/admission"
	"headrace/gateway/experiments"
	"headrace/gateway/ledger"
	"headrace/router/affinity"
	"headrace/router/endpoint"
	"headrace/router/experiment"
)

// trialRig is a gateway in front of two hosts, the first of which is the control's, the second the canary's.
type trialRig struct {
	*rig
	table atomic.Pointer[experiment.Table]
	spec  *experiment.Spec
}

func newTrialRig(t *testing.T, urls []string, units ...experiment.Unit) *trialRig {
	t.Helper()
	return newTrialRigOf(t, urls, nil, units...)
}

func newTrialRigOf(t *testing.T, urls []string, change func(*experiment.Spec, *rigOptions), units ...experiment.Unit) *trialRig {
	t.Helper()
	s := &experiment.Spec{Name: "e", Model: model, Units: units, Arms: []experiment.Arm{
		{Name: "control", Hosts: &experiment.Selector{Host: []string{"static:h0"}}},
		{Name: "canary", Hosts: &experiment.Selector{Host: []string{"static:h1"}}, Share: 1, OnPreemption: "fail", Hedge: "sunk"},
	}, Steps: []float64{0.5}}
	g := &trialRig{spec: s}
	var eps []endpoint.Endpoint
	g.rig = newRig(t, urls, func(o *rigOptions) {
		edit := o.edit
		if change != nil {
			change(s, o)
			edit = o.edit
		}
		s.Ready()
		g.weigh(0.5)
		o.edit = func(e []endpoint.Endpoint) {
			if eps = e; edit != nil {
				edit(e)
			}
		}
		o.before = func(srv *Server) {
			srv.opt.Arms = g.table.Load
			srv.router.Update(eps, nil, experiments.Pools([]experiments.Trial{{Spec: s}})...)
		}
	})
	return g
}

func (g *trialRig) weigh(canary float64) {
	g.table.Store(experiment.NewTable([]*experiment.Assigner{experiment.NewAssigner(g.spec, 1, []float64{1 - canary, canary}, true)}))
}

func withUser(user string) string {
	return post(chatPath, fmt.Sprintf(`{"model":%q,"user":%q,"messages":[{"role":"user","content":"hi"}]}`, model, user))
}

// TestArmsLeaveTheConfig answers while the router has read a config without the experiment and the table of arms has not: hosts that were
// kept for arms are anybody's then.
func TestArmsLeaveTheConfig(t *testing.T) {
	for name, spill := range map[string]bool{"kept apart": false, "spilling over": true} {
		t.Run(name, func(t *testing.T) {
			a, b := newUpstream(t, answering), newUpstream(t, answering)
			var eps []endpoint.Endpoint
			g := newTrialRigOf(t, []string{a.url(), b.url()}, func(s *experiment.Spec, o *rigOptions) {
				s.Spill = spill
				o.edit = func(e []endpoint.Endpoint) { eps = e }
			}, experiment.Unit{Kind: experiment.ByUser})
			g.srv.router.Update(eps, nil)
			for i, req := range []string{withUser("u"), chat(false)} {
				r, body, err := g.do(req)
				if err != nil || r.StatusCode != http.StatusOK {
					t.Fatalf("request %d: %v %v %s", i, err, r, body)
				}
			}
		})
	}
}

// TestArms serves every user by the hosts of one arm, which the answer, the record and the log tell, and moves users only from the control
// to the canary while its share grows.
func TestArms(t *testing.T) {
	t.Parallel()
	a, b := newUpstream(t, answering), newUpstream(t, answering)
	g := newTrialRig(t, []string{a.url(), b.url()}, experiment.Unit{Kind: experiment.ByUser})
	was := map[string]string{}
	n := 0
	for _, share := range []float64{0, 0.1, 0.5, 1} {
		g.weigh(share)
		in := 0
		for i := range 60 {
			user := fmt.Sprint("user-", i)
			var arm string
			for range 2 {
				r, _, err := g.do(withUser(user))
				if err != nil || r.StatusCode != http.StatusOK {
					t.Fatal(r.Status, err)
				}
				arm = r.Header.Get("X-Headrace-Arm")
				rec := g.recordN(n)
				n++
				want := endpoint.ID("static:h0")
				if arm == "e/canary" {
					want = "static:h1"
				}
				if rec.Endpoint != want || rec.Arm != arm || rec.Unit == 0 || rec.OutOfArm || rec.Forced {
					t.Fatalf("%s in %q: the record says %s, %q, unit %d, out %v, forced %v", user, arm, rec.Endpoint, rec.Arm, rec.Unit, rec.OutOfArm, rec.Forced)
				}
			}
			if arm == "e/canary" {
				in++
			} else if was[user] == "e/canary" {
				t.Errorf("%s went back from the canary as its share grew", user)
			}
			was[user] = arm
		}
		if want := int(share * 60); in < want-15 || in > want+15 {
			t.Errorf("at %v %d of 60 users are in the canary", share, in)
		}
	}
	line := string(g.records[n-1].AppendLine(nil, g.records[n-1].At))
	if !strings.Contains(line, `"arm":"e/canary"`) {
		t.Errorf("log line %s", line)
	}
	shown, err := json.Marshal(&g.records[n-1])
	if err != nil || !strings.Contains(string(shown), `"arm":"e/canary"`) {
		t.Errorf("shown as %s, %v", shown, err)
	}
}

// TestUnits finds the unit of a request in the order that is asked for, and leaves those out that have none: they are served by the control.
func TestUnits(t *testing.T) {
	a, b := newUpstream(t, answering), newUpstream(t, answering)
	g := newTrialRig(t, []string{a.url(), b.url()}, experiment.Unit{Kind: experiment.ByHeader, Header: "x-user"}, experiment.Unit{Kind: experiment.BySession})
	g.weigh(1)
	unit := func(headers ...string) (experiment.Key, ledger.Record) {
		t.Helper()
		if _, _, err := g.do(chat(false, headers...)); err != nil {
			t.Fatal(err)
		}
		g.mu.Lock()
		n := len(g.records)
		g.mu.Unlock()
		r := g.recordN(n - 1)
		return r.Unit, r
	}
	byUser, _ := unit("X-User: 7", "X-Headrace-Session: s")
	if again, _ := unit("x-user: 7", "X-Headrace-Session: t"); again != byUser {
		t.Error("the same user is another unit with another session")
	}
	bySession, rec := unit("X-Headrace-Session: s")
	if again, _ := unit("X-Headrace-Session: s", "X-User: "); again != bySession || bySession == byUser || rec.Arm != "e/canary" {
		t.Errorf("sessions: units %d and %d, user %d, arm %q", bySession, again, byUser, rec.Arm)
	}
	if _, rec := unit(); rec.Arm != "" || rec.Endpoint != "static:h0" {
		t.Errorf("a request without a unit is in %q, served by %s", rec.Arm, rec.Endpoint)
	}
}

// TestLayerOfModels has sessions ask for two models whose experiments share a layer: nobody is in both.
func TestLayerOfModels(t *testing.T) {
	t.Parallel()
	of := func(model string, from, to float64) *experiment.Assigner {
		s := &experiment.Spec{Name: "on-" + model, Model: model, Layer: "both", From: from, To: to, Units: []experiment.Unit{{Kind: experiment.BySession}}, Arms: []experiment.Arm{{Name: "control"}, {Name: "canary", Share: 0.5}}}
		s.Ready()
		return experiment.NewAssigner(s, 1, []float64{0.5, 0.5}, true)
	}
	first, second := of("a", 0, 0.5), of("b", 0.5, 1)
	for i := range 200 {
		name := fmt.Sprint("session-", i)
		takes := func(a *experiment.Assigner) bool {
			x := &exchange{model: a.Spec.Model}
			x.ask.Affinity.Session = affinity.SessionHash(x.model, []byte(name))
			return a.Takes(x.unit(a.Spec, nil))
		}
		if takes(first) == takes(second) {
			t.Fatalf("%s is in both experiments, or in neither: %v", name, takes(first))
		}
	}
}

// TestOutOfArm serves a request elsewhere when its arm has no host that could, and counts it as its arm's all the same.
func TestOutOfArm(t *testing.T) {
	a := newUpstream(t, answering)
	bad := newUpstream(t, func(c *upConn, _ *upRequest) bool { c.send(jsonAnswer(500, `{}`)); return true })
	g := newTrialRig(t, []string{a.url(), bad.url()}, experiment.Unit{Kind: experiment.ByRequest})
	g.weigh(1)
	for i := range 6 {
		r, _, err := g.do(chat(false))
		if err != nil || r.StatusCode != http.StatusOK || r.Header.Get("X-Headrace-Arm") != "e/canary" {
			t.Fatalf("%v %v", r, err)
		}
		rec := g.recordN(i)
		if !rec.OutOfArm || rec.Arm != "e/canary" || rec.Endpoint != "static:h0" {
			t.Errorf("request %d: out %v, arm %q, by %s", i, rec.OutOfArm, rec.Arm, rec.Endpoint)
		}
	}
	if _, n := bad.counts(); n != 2 { // two in a row open its breaker
		t.Errorf("the canary was asked %d times, want until its breaker opened", n)
	}
}

// failingAll answers every request with a 500.
func failingAll(c *upConn, _ *upRequest) bool { c.send(jsonAnswer(500, `{}`)); return true }

// TestOnTrialOnly keeps a host that only the canary's selector names from all but the canary's units, whatever becomes of the others'
// hosts: while it is tried, after it was rolled back, and for requests without a unit. With spill it serves them while it is tried. Once it
// was promoted, it serves what is in no arm as well.
func TestOnTrialOnly(t *testing.T) {
	const canary = "static:h1"
	for name, tc := range map[string]struct {
		shares   []float64
		recorded bool
		spill    bool
		unit     bool // the request has one; it is the control's
		served   bool // by the canary's host
		out      bool
	}{
		"tried: without a unit":       {[]float64{0.999, 0.001}, true, false, false, false, false},
		"tried: the control's":        {[]float64{0.999, 0.001}, true, false, true, false, false},
		"tried and spills: no unit":   {[]float64{0.999, 0.001}, true, true, false, true, false},
		"tried and spills: control":   {[]float64{0.999, 0.001}, true, true, true, true, true},
		"rolled back: without a unit": {[]float64{1, 0}, false, true, false, false, false},
		"rolled back: the control's":  {[]float64{1, 0}, false, true, true, false, false},
		"dropped: the control's":      {[]float64{1, 0}, true, true, true, false, false},
		"promoted: without a unit":    {[]float64{0, 1}, false, false, false, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad, b := newUpstream(t, failingAll), newUpstream(t, answering)
			g := newTrialRigOf(t, []string{bad.url(), b.url()}, func(s *experiment.Spec, _ *rigOptions) { s.Spill = tc.spill }, experiment.Unit{Kind: experiment.ByUser})
			a := experiment.NewAssigner(g.spec, 1, tc.shares, tc.recorded)
			g.table.Store(experiment.NewTable([]*experiment.Assigner{a}))
			req := chat(false)
			if tc.unit {
				user := "u"
				for arm, _ := a.Assign([]byte(user)); arm != g.spec.Control(); arm, _ = a.Assign([]byte(user)) {
					user += "u"
				}
				req = withUser(user)
			}
			r, _, err := g.do(req)
			if err != nil {
				t.Fatal(err)
			}
			rec := g.recordN(0)
			if by := rec.Endpoint == canary && r.StatusCode == http.StatusOK; by != tc.served || rec.OutOfArm != tc.out {
				t.Errorf("status %d, arm %q, by %q, out %v", r.StatusCode, rec.Arm, rec.Endpoint, rec.OutOfArm)
			}
			if _, n := b.counts(); (n > 0) != tc.served {
				t.Errorf("the canary's host got %d requests", n)
			}
		})
	}
}

// TestTwoOnOneModel keeps the host that one experiment tries from the units of another on the same model, which compares ways of choosing.
func TestTwoOnOneModel(t *testing.T) {
	t.Parallel()
	units := []experiment.Unit{{Kind: experiment.ByUser}}
	ways := &experiment.Spec{Name: "ways", Model: model, To: 0.5, Units: units, Arms: []experiment.Arm{{Name: "control"}, {Name: "fast", Policy: "latency", Share: 1}}}
	hosts := &experiment.Spec{Name: "hosts", Model: model, From: 0.5, To: 1, Units: units, Arms: []experiment.Arm{
		{Name: "control", Hosts: &experiment.Selector{Host: []string{"static:h1"}}}, {Name: "canary", Hosts: &experiment.Selector{Host: []string{"static:h0"}}, Share: 1},
	}}
	ways.Ready()
	hosts.Ready()
	table := experiment.NewTable([]*experiment.Assigner{experiment.NewAssigner(ways, 1, []float64{0.5, 0.5}, true), experiment.NewAssigner(hosts, 1, []float64{0.8, 0.2}, true)})
	a, b := newUpstream(t, answering), newUpstream(t, answering)
	var eps []endpoint.Endpoint
	g := newRig(t, []string{a.url(), b.url()}, func(o *rigOptions) {
		o.edit = func(e []endpoint.Endpoint) { eps = e }
		o.before = func(srv *Server) {
			srv.opt.Arms = func() *experiment.Table { return table }
			srv.router.Update(eps, nil, experiments.Pools([]experiments.Trial{{Spec: ways}, {Spec: hosts}})...)
		}
	})
	by := map[string]int{}
	for i := range 200 {
		req := withUser(fmt.Sprint("user-", i))
		if i%4 == 0 {
			req = chat(false) // no unit
		}
		if r, _, err := g.do(req); err != nil || r.StatusCode != http.StatusOK {
			t.Fatal(r, err)
		}
		if rec := g.recordN(i); rec.Endpoint == "static:h0" {
			by[rec.Arm]++
		} else if rec.Arm == "hosts/canary" {
			t.Errorf("the canary's unit was served by %s", rec.Endpoint)
		}
	}
	if len(by) != 1 || by["hosts/canary"] == 0 {
		t.Errorf("h0 served by arm %v: want the canary's units, and nobody else", by)
	}
}

// TestChooseArm lets a request say where it wants to go, and says what is wrong with a word that is not understood.
func TestChooseArm(t *testing.T) {
	a, b := newUpstream(t, answering), newUpstream(t, answering)
	g := newTrialRig(t, []string{a.url(), b.url()}, experiment.Unit{Kind: experiment.ByUser})
	g.weigh(0)
	r, _, err := g.do(chat(false, "X-Headrace-Arm: e=canary"))
	if rec := g.recordN(0); err != nil || r.Header.Get("X-Headrace-Arm") != "e/canary" || !rec.Forced || rec.Endpoint != "static:h1" {
		t.Errorf("asked for: %v, %v, record %+v", r, err, rec)
	}
	for _, word := range []string{"canary", "e=", "e=other", "f=canary", "="} {
		r, body, err := g.do(chat(false, "X-Headrace-Arm: "+word))
		if e := parseError(t, body); err != nil || r.StatusCode != 400 || e.Param == nil || *e.Param != "x-headrace-arm" || e.Code != "invalid_header" {
			t.Errorf("%q: %s %+v", word, r.Status, e)
		}
	}
	if _, n := b.counts(); n != 1 {
		t.Errorf("the canary got %d requests", n)
	}
	if _, n := a.counts(); n != 0 {
		t.Errorf("the control got %d requests", n)
	}
}

// TestArmOfAnotherModel answers by the hosts of another model, which get its name, and by the model's own where that has none.
func TestArmOfAnotherModel(t *testing.T) {
	a, b := newWatched(t), newWatched(t)
	g := newTrialRigOf(t, []string{a.url(), b.url()}, func(s *experiment.Spec, o *rigOptions) {
		s.Arms[1].Model, s.Arms[1].Hosts = "other", nil
		o.edit = func(eps []endpoint.Endpoint) { eps[1].Served = []endpoint.Served{{Name: "other"}} }
	}, experiment.Unit{Kind: experiment.ByRequest})
	g.weigh(1)
	r, _, err := g.do(chat(false))
	if rec := g.recordN(0); err != nil || r.StatusCode != 200 || rec.Endpoint != "static:h1" || rec.Model != model || rec.Served != "other" || rec.OutOfArm {
		t.Errorf("%v, %v, by %s as %s for %s", r, err, rec.Endpoint, rec.Served, rec.Model)
	}
	if got := b.all(); !strings.Contains(got, `"model":"other"`) {
		t.Errorf("the host got %s", got)
	}
	b.close()
	r, _, err = g.do(chat(false))
	if rec := g.recordN(1); err != nil || r.StatusCode != 200 || rec.Endpoint != "static:h0" || rec.Served != model || !rec.OutOfArm {
		t.Errorf("without its hosts: %v, %v, by %s as %s", r, err, rec.Endpoint, rec.Served)
	}
	if got := a.all(); !strings.Contains(got, fmt.Sprintf(`"model":%q`, model)) {
		t.Errorf("the model's own host got %s", got)
	}
}

// TestChooseArmByKey lets only those choose whose key may.
func TestChooseArmByKey(t *testing.T) {
	a, b := newUpstream(t, answering), newUpstream(t, answering)
	g := newTrialRigOf(t, []string{a.url(), b.url()}, func(_ *experiment.Spec, o *rigOptions) {
		o.keys = gateOf(func(k *admission.Key) { k.Experiments = []string{"e*"} })
	}, experiment.Unit{Kind: experiment.ByKey})
	g.weigh(0)
	if r, body, err := g.do(chat(false, bearer(teamKey), "X-Headrace-Arm: e=canary")); err != nil || r.StatusCode != 200 || r.Header.Get("X-Headrace-Arm") != "e/canary" {
		t.Errorf("a key that may: %v %s %v", r, body, err)
	}
	for _, word := range []string{"e=canary", "nothing=x"} { // who may not learns nothing of what there is
		r, body, err := g.do(chat(false, bearer(otherKey), "X-Headrace-Arm: "+word))
		if e := parseError(t, body); err != nil || r.StatusCode != 403 || e.Code != "arm_not_allowed" {
			t.Errorf("a key that may not: %v %s %v", r, body, err)
		}
	}
	if r, _, err := g.do(chat(false, bearer(otherKey))); err != nil || r.Header.Get("X-Headrace-Arm") != "e/control" {
		t.Errorf("drawn by its key: %v %v", r, err)
	}
	if rec := g.recordN(3); rec.Unit != g.table.Load().Named("e").Key([]byte("other")) {
		t.Errorf("its unit is %d", rec.Unit)
	}
}

// TestArmWays has an arm's ways hold in place of the model's, but not in place of the request's.
func TestArmWays(t *testing.T) {
	g := newTrialRig(t, []string{"http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"})
	for name, tc := range map[string]struct {
		arm    int
		asked  Preemption
		want   Preemption
		hedges bool
	}{
		"the control's": {0, Continue, Continue, false},
		"the canary's":  {1, Continue, Fail, true},
		"the request's": {1, Restart, Restart, true},
	} {
		x := &exchange{sending: new(sending), s: g.srv, set: g.srv.set.Load(), onLoss: tc.asked}
		x.joins(&g.spec.Arms[tc.arm], 1, 0)
		if x.onLoss != tc.want || x.hedges() != tc.hedges {
			t.Errorf("%s: on preemption %v, hedges %v", name, x.onLoss, x.hedges())
		}
	}
}

// TestAssignAllocates finds arms without memory of its own.
func TestAssignAllocates(t *testing.T) {
	g := newTrialRig(t, []string{"http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"})
	for _, unit := range []experiment.Unit{{Kind: experiment.ByRequest}, {Kind: experiment.ByUser}, {Kind: experiment.ByKey}, {Kind: experiment.BySession}} {
		g.spec.Units = []experiment.Unit{unit}
		x := &exchange{sending: new(sending), s: g.srv, set: g.srv.set.Load(), model: model}
		x.rec.ID, x.rec.Key, x.scan.User = "req_2vjvuxn2hcd6wq3a2vjvuxn2hc", "team-search", []byte("user-7")
		x.ask.Affinity.Session = 42
		if n := testing.AllocsPerRun(100, func() {
			if e := x.assign(); e != nil || x.rec.Arm == "" {
				t.Fatal(e, x.rec.Arm)
			}
		}); n != 0 {
			t.Errorf("by %s: %v allocations", unit, n)
		}
	}
}

// BenchmarkAdmitArm is what it takes to find a request's arm.
func BenchmarkAdmitArm(b *testing.B) {
	s := &experiment.Spec{Name: "awq-canary", Model: model, Units: []experiment.Unit{{Kind: experiment.ByUser}}, Arms: []experiment.Arm{{Name: "control"}, {Name: "canary", Share: 1}}}
	s.Ready()
	t := experiment.NewTable([]*experiment.Assigner{experiment.NewAssigner(s, 1, []float64{0.5, 0.5}, true)})
	x := &exchange{sending: new(sending), s: &Server{opt: Options{Arms: func() *experiment.Table { return t }}}, set: &Settings{}, model: model}
	x.scan.User = []byte("user-0123456789")
	b.ReportAllocs()
	for b.Loop() {
		x.assign()
	}
	if !slices.Contains([]string{"awq-canary/control", "awq-canary/canary"}, x.rec.Arm) {
		b.Fatal(x.rec.Arm)
	}
}
