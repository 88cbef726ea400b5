package router

import (
	"encoding/json"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"weak"

	"headrace/router/capacity"
	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
)

// TestDecisions checks what is kept of a request's two attempts and of one that nobody took.
func TestDecisions(t *testing.T) {
	lost := hourly("lost", 0.1, 10, "m")
	lost.State, lost.StateReason = endpoint.Preempted, "outbid"
	r := newRouter(hourly("cheap", 1, 10, "m"), hourly("dear", 20, 10, "m"), lost, hourly("other", 1, 10, "x"))
	var l Lease
	if err := r.Pick(&Request{ID: "req_1", Model: "m", PromptTokens: 400, MaxTokens: 100}, &l); err != nil {
		t.Fatal(err)
	}
	l.Done(Result{Class: outcome.UpstreamFault})
	if err := r.Pick(&Request{ID: "req_1", Model: "m", Tried: []endpoint.ID{"cheap"}, Policy: PolicyLatency}, &l); err != nil {
		t.Fatal(err)
	}
	l.FirstContent(300 * time.Millisecond)
	l.Done(Result{Class: outcome.Success, OutputTokens: 101, Streamed: 4 * time.Second})
	if err := r.Pick(&Request{ID: "req_2", Model: "m", Route: "/none", Demand: Demand{Trust: endpoint.TrustSecure}}, new(Lease)); err == nil {
		t.Fatal("somebody took it")
	}

	if ds := r.Decisions(1, ""); len(ds) != 1 || ds[0].Request != "req_2" || ds[0].Winner != "" || len(ds[0].Candidate) != 3 || ds[0].Candidate[0].Reason != unfitDemand.String() || ds[0].Realised != nil {
		t.Errorf("the newest: %+v", ds)
	}
	if ds := r.Decisions(10, "req_none"); len(ds) != 0 {
		t.Errorf("of an unknown request: %+v", ds)
	}
	ds := r.Decisions(10, "req_1")
	if len(ds) != 2 {
		t.Fatalf("%d decisions, want 2", len(ds))
	}
	second, first := ds[0], ds[1]
	if first.Winner != "cheap" || first.Attempt != 1 || first.Policy != "cost" || first.Prompt != 400 || first.Output != 100 || first.Why != whyCheapest {
		t.Errorf("first: %+v", first)
	}
	if first.Realised == nil || first.Realised.Class != "upstream_fault" || first.Realised.TTFT != nil || first.Realised.TPS != nil {
		t.Errorf("first came to %+v", first.Realised)
	}
	if second.Winner != "dear" || second.Attempt != 2 || second.Policy != "latency" {
		t.Errorf("second: %+v", second)
	}
	if x := second.Realised; x == nil || x.Class != "success" || x.TTFT == nil || math.Abs(*x.TTFT-0.3) > 1e-6 || x.TPS == nil || *x.TPS != 25 {
		t.Errorf("second came to %+v", x)
	}
	var got []string
	for _, c := range append(first.Candidate, second.Candidate...) {
		got = append(got, fmt.Sprintf("%s %s %s %v", c.Endpoint, c.Verdict, c.Reason, c.MarginalUSD != nil && c.TTFT != nil && *c.PTPS > 0.5))
	}
	want := "cheap serves  true|dear serves  true|lost not usable in its state outbid false|" +
		"dear serves  true|cheap tried already  false|lost not usable in its state outbid false"
	if s := strings.Join(got, "|"); s != want {
		t.Errorf("candidates\n%s, want\n%s", s, want)
	}
}

// TestDecisionsTellBreakers leads a host through its breaker's states, and has every decision tell the one that it was made in.
func TestDecisionsTellBreakers(t *testing.T) {
	c := newClock()
	taken := hourly("taken", 0.1, 10, "m")
	taken.State = endpoint.Preempted
	r := New(Options{Now: c.now, Prior: tell, Seed: 1})
	r.Update([]endpoint.Endpoint{hourly("cheap", 1, 10, "m"), hourly("dear", 20, 10, "m"), taken}, nil)
	pick := func(want endpoint.ID) *Lease {
		t.Helper()
		l := mustPick(t, r)
		if l.Endpoint.ID != want {
			t.Fatalf("went to %s, want %s", l.Endpoint.ID, want)
		}
		return l
	}
	told := func(want string) {
		t.Helper()
		var got []string
		d := r.Decisions(1, "")[0]
		for _, v := range d.Candidate {
			got = append(got, string(v.Endpoint)+" "+v.Breaker)
		}
		slices.Sort(got)
		if s := strings.Join(got, ", "); s != want {
			t.Errorf("breakers %s, want %s", s, want)
		}
	}
	for range 2 {
		l := pick("cheap")
		told("cheap closed, dear closed, taken preempted")
		l.Done(Result{Class: outcome.UpstreamFault})
	}
	l := pick("dear")
	told("cheap open, dear closed, taken preempted")
	if l.Decision.Breaker != health.StateClosed {
		t.Errorf("the lease says %s", l.Decision.Breaker)
	}
	l.Done(Result{Class: outcome.Success})
	c.pass(time.Minute)
	trial := pick("cheap")
	told("cheap probing, dear closed, taken preempted")
	if trial.Decision.Breaker != health.StateProbing {
		t.Errorf("the trial's lease says %s", trial.Decision.Breaker)
	}
	trial.Done(Result{Class: outcome.Throttled, RetryAfter: time.Minute})
	pick("dear").Done(Result{Class: outcome.Success})
	told("cheap cooling, dear closed, taken preempted")
	c.pass(2 * time.Minute)
	trial = pick("cheap")
	trial.FirstContent(100 * time.Millisecond)
	trial.Done(Result{Class: outcome.Success})
	pick("cheap").Done(Result{Class: outcome.Success})
	told("cheap closed, dear closed, taken preempted")
	x, err := r.Explain(&Request{Model: "m"})
	if err != nil || x.Candidate[0].Endpoint != "cheap" || x.Candidate[0].Breaker != "closed" || x.Candidate[2].Breaker != "preempted" {
		t.Errorf("explained as %+v, %v", x.Candidate, err)
	}
	want := []health.Transition{
		{From: "closed", To: "open", N: 1},
		{From: "closed", To: "preempted"},
		{From: "open", To: "probing", N: 1},
		{From: "probing", To: "closed", N: 1},
		{From: "probing", To: "open"},
		{From: "preempted", To: "probing"},
	}
	if got := r.Hosts()[0].Transitions; !slices.Equal(got, want) {
		t.Errorf("its breaker went %v, want %v", got, want)
	}
}

// TestDecisionsWrap checks that the newest are kept when there were more than there is room for.
func TestDecisionsWrap(t *testing.T) {
	r := newRouter(hourly("a", 1, 1e6, "m"))
	var first, last Lease
	for i := range decisionsKept + 10 {
		l := new(Lease)
		switch i {
		case 0:
			l = &first
		case decisionsKept + 9:
			l = &last
		}
		if err := r.Pick(&Request{ID: fmt.Sprint(i), Model: "m"}, l); err != nil {
			t.Fatal(err)
		}
	}
	first.Done(Result{Class: outcome.ClientGone}) // its decision is gone: it must not be told of another's
	last.Done(Result{Class: outcome.Success})
	ds := r.Decisions(math.MaxInt, "")
	if len(ds) != decisionsKept || ds[0].Request != fmt.Sprint(decisionsKept+9) || ds[decisionsKept-1].Request != "10" {
		t.Fatalf("%d decisions from %s to %s", len(ds), ds[0].Request, ds[len(ds)-1].Request)
	}
	for i := range ds {
		if (ds[i].Realised != nil) != (i == 0) {
			t.Errorf("decision of request %s came to %+v", ds[i].Request, ds[i].Realised)
		}
	}
}

// TestDecisionsKeepNoFleet checks that decisions do not keep the fleets of their time in memory.
func TestDecisionsKeepNoFleet(t *testing.T) {
	r := New(Options{Now: time.Now})
	fleet := func() weak.Pointer[endpoint.Endpoint] {
		eps := []endpoint.Endpoint{hourly("a", 1, 10, "m"), hourly("b", 50, 10, "m")}
		r.Update(eps, nil)
		var l Lease
		if err := r.Pick(&Request{ID: "req_1", Model: "m"}, &l); err != nil {
			t.Fatal(err)
		}
		l.Done(Result{Class: outcome.Success})
		return weak.Make(&eps[0])
	}()
	r.Update([]endpoint.Endpoint{hourly("c", 1, 10, "m")}, nil)
	for range 10 { // buffers of picks go with the second collection
		if runtime.GC(); fleet.Value() == nil {
			break
		}
	}
	if fleet.Value() != nil {
		t.Error("the fleet of an old decision is still in memory")
	}
	if ds := r.Decisions(1, "req_1"); len(ds) != 1 || ds[0].Winner != "a" || ds[0].Candidate[1].Endpoint != "b" {
		t.Errorf("the decision itself is lost: %+v", ds)
	}
}

// TestExplain checks that a hypothetical request is told of and leaves no trace.
func TestExplain(t *testing.T) {
	lab := hourly("lab", 1, 10, "m")
	lab.Trust, lab.Region = endpoint.TrustSecure, "DE"
	text := hourly("text", 1, 10, "m")
	text.Trust, text.TextOnly = endpoint.TrustSecure, true
	plain := hourly("spare", 1, 10, "m")
	plain.Trust, plain.Plain = endpoint.TrustSecure, true
	sick := hourly("sick", 1, 10, "m")
	sick.Trust = endpoint.TrustSecure
	r := newRouter(lab, plain, text, hourly("stranger", 0.1, 10, "m"), sick)
	for range 3 {
		l := mustPick(t, r, "lab", "spare", "text", "stranger")
		l.Done(Result{Class: outcome.UpstreamFault})
	}
	before := r.Hosts()
	x, err := r.Explain(&Request{Model: "m", Media: true, Beyond: "tools", Demand: Demand{Trust: endpoint.TrustSecure}, PromptTokens: 1000, SLO: SLO{TTFT: 3 * time.Second}})
	if err != nil || x.Winner != "lab" || x.Why != whyOnly || x.SLO.TTFT != 3 || x.SLO.TPS != 15 || x.Prompt != 1000 {
		t.Fatalf("%v: %+v", err, x)
	}
	for i, want := range []string{"lab|serves|", "sick|breaker open or cooling down|breaker open", "spare|" + misfit.String() + "|" + unfitPlain.String(), "stranger|" + misfit.String() + "|" + unfitDemand.String(), "text|" + misfit.String() + "|" + unfitMedia.String()} {
		if c := x.Candidate[i]; string(c.Endpoint)+"|"+c.Verdict+"|"+c.Reason != want {
			t.Errorf("candidate %d: %s %s (%s), want %s", i, c.Endpoint, c.Verdict, c.Reason, want)
		}
	}
	if after := r.Hosts(); after[0].InFlight != 0 || after[0].Requests != before[0].Requests || len(r.Decisions(10, "")) != 3 {
		t.Errorf("it left traces: %+v", after[0])
	}
	short, long := hourly("short", 1, 10, "m"), hourly("long", 1, 10, "m")
	short.Served[0].MaxContext = 1000
	x, err = newRouter(short, long).Explain(&Request{Model: "m", PromptTokens: 900, MaxTokens: 200})
	if err != nil || x.Winner != "long" || !strings.Contains(x.Candidate[1].Reason, "context is too short") {
		t.Errorf("a context too short: %v, %+v", err, x)
	}
	if x, err = r.Explain(&Request{Model: "m", Demand: Demand{Regions: []string{"US"}}}); err != nil || x.Winner != "" || !strings.Contains(x.Why, "demanded trust, encryption and region") {
		t.Errorf("nobody: %v, %+v", err, x)
	}
	if _, err = r.Explain(&Request{Model: "none"}); err != ErrUnknownModel { //nolint:errorlint // it is that one
		t.Errorf("unknown model: %v", err)
	}
}

// TestExplanationJSON checks that figures of no meaning are null, since JSON knows no NaN.
func TestExplanationJSON(t *testing.T) {
	unpriced := hourly("a", 1, 10, "m")
	unpriced.Price = endpoint.Price{}
	r := New(Options{Now: time.Now, Prior: func(*endpoint.Endpoint) capacity.Prior {
		return capacity.Prior{ITLSeconds: math.NaN(), TTFTSeconds: math.Inf(1)}
	}})
	r.Update([]endpoint.Endpoint{unpriced}, nil)
	l := new(Lease)
	if err := r.Pick(&Request{ID: "req_1", Model: "m", Tokenless: true, Resumed: true}, l); err != nil {
		t.Fatal(err)
	}
	l.Done(Result{Class: outcome.Success, USD: math.NaN()})
	for name, v := range map[string]any{"decisions": r.Decisions(1, ""), "calibration": r.Calibration(), "hosts": r.Hosts()} {
		if b, err := json.Marshal(v); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if name == "decisions" && !strings.Contains(string(b), `"marginal_usd":null`) {
			t.Errorf("an unknown price: %s", b)
		}
	}
	x, err := r.Explain(&Request{Model: "m", Route: "/none"})
	if b, jerr := json.Marshal(&x); err != nil || jerr != nil || !strings.Contains(string(b), `"candidates":[{`) {
		t.Errorf("%v, %v: %s", err, jerr, b)
	}
}

func TestWish(t *testing.T) {
	for name, tc := range map[string]struct {
		value string
		ok    func(q *Request) bool
		bad   []string
	}{
		"trust":  {"DataCenter", func(q *Request) bool { return q.Demand.Trust == endpoint.TrustDatacenter }, []string{"", "none", "high"}},
		"region": {" EU, US-KS-2,", func(q *Request) bool { return strings.Join(q.Demand.Regions, "|") == "EU|US-KS-2" }, []string{"", " , "}},
		"ttft":   {"800ms", func(q *Request) bool { return q.SLO.TTFT == 800*time.Millisecond }, []string{"", "0", "-1s", "25h", "NaN", "Inf", "1e99", "soon"}},
		"tps":    {"12.5", func(q *Request) bool { return q.SLO.TPS == 12.5 }, []string{"", "0", "-1", "NaN", "Inf", "1e7", "fast"}},
		"policy": {"Latency", func(q *Request) bool { return q.Policy == PolicyLatency }, []string{"", "fastest", "invalid(5)"}},
	} {
		t.Run(name, func(t *testing.T) {
			var q Request
			if want, known := q.Wish(name, tc.value); want != "" || !known || !tc.ok(&q) {
				t.Errorf("%q: want %q, known %v: %+v", tc.value, want, known, q)
			}
			for _, bad := range tc.bad {
				if want, known := new(Request).Wish(name, bad); want == "" || !known {
					t.Errorf("%q is taken", bad)
				}
			}
		})
	}
	if _, known := new(Request).Wish("colour", "red"); known {
		t.Error("an unknown wish is known")
	}
	if got := Policies("or"); got != "cost, latency, balanced or weighted" {
		t.Errorf("policies: %s", got)
	}
}
