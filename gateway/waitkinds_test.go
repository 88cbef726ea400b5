package gateway

import (
	"fmt"
	"testing"
	"time"

	"headrace/router"
	"headrace/router/endpoint"
)

// TestOneWhoAsksTooMuchBlocksNobody has one caller ask for a speed that no host keeps, and wait for it, at a model that is never full for
// the others.
func TestOneWhoAsksTooMuchBlocksNobody(t *testing.T) {
	up := newCounter(t)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.set.Queue = roomy()
		o.rules = []router.ModelRule{{Name: model, Serves: []string{model}}}
	})
	for range 20 {
		g.goDo(chat(true))
		wait(t, up.came, "a request")
	}
	body := fmt.Sprintf(`{"model":%q,"stream":true,"messages":[{"role":"user","content":"hi"}]}`, model)
	g.goDo(post(chatPath, body, "x-headrace-slo-tps: 10000", "x-headrace-max-wait: 50s"))
	g.standing(1)
	for range 5 {
		g.goDo(post(chatPath, body))
		wait(t, up.came, "one of the others")
	}
	g.standing(1)
}

// TestIdleRegionIsNotBlocked: those who wait for a region's hosts keep nobody from another one's.
func TestIdleRegionIsNotBlocked(t *testing.T) {
	eu, us := newCounter(t), newCounter(t)
	g := newRig(t, []string{eu.url(), us.url()}, waiting(1, roomy()), func(o *rigOptions) {
		edit := o.edit
		o.edit = func(eps []endpoint.Endpoint) {
			edit(eps)
			eps[0].Region, eps[1].Region = "EU-1", "US-1"
		}
	})
	body := fmt.Sprintf(`{"model":%q,"stream":true,"messages":[]}`, model)
	g.goDo(post(chatPath, body, "x-headrace-region: EU"))
	wait(t, eu.came, "the first in the EU")
	g.goDo(post(chatPath, body, "x-headrace-region: EU"))
	g.standing(1)
	g.goDo(post(chatPath, body, "x-headrace-region: US"))
	wait(t, us.came, "one in the US")
}

// TestKinds: requests that differ in what keeps hosts from taking them are of different kinds, in every process, and others are not.
func TestKinds(t *testing.T) {
	g := newRig(t, []string{newCounter(t).url()})
	kind := func(edit func(*router.Request)) uint64 {
		x := &exchange{sending: new(sending), s: g.srv, ask: router.Request{Model: model, Route: "/chat/completions", PromptTokens: 100, BodyBytes: 400}}
		edit(&x.ask)
		return x.kind()
	}
	usual := kind(func(*router.Request) {})
	seen := map[uint64]string{usual: "the usual"}
	for name, edit := range map[string]func(*router.Request){
		"another route":   func(q *router.Request) { q.Route = "/embeddings" },
		"model and route": func(q *router.Request) { q.Model, q.Route = model+"/chat", "/completions" },
		"images":          func(q *router.Request) { q.Media = true },
		"tools":           func(q *router.Request) { q.Beyond = "tools" },
		"a region":        func(q *router.Request) { q.Wish("region", "EU") },
		"another region":  func(q *router.Request) { q.Wish("region", "US") },
		"a key's region":  func(q *router.Request) { q.Also = &router.Demand{Regions: []string{"EU"}} },
		"a speed":         func(q *router.Request) { q.SLO.TPS = 10000 },
		"an early answer": func(q *router.Request) { q.SLO.TTFT = 50 * time.Millisecond },
		"a later one":     func(q *router.Request) { q.SLO.TTFT = 5 * time.Second },
		"more certainty":  func(q *router.Request) { q.SLO.Confidence = 0.99 },
		"a long prompt":   func(q *router.Request) { q.PromptTokens = 100_000 },
		"a large body":    func(q *router.Request) { q.BodyBytes = 20 << 20 },
		"another policy":  func(q *router.Request) { q.Policy = router.PolicyLatency },
	} {
		k := kind(edit)
		if other, taken := seen[k]; taken {
			t.Errorf("%s is of the same kind as %s", name, other)
		}
		seen[k] = name
	}
	for name, edit := range map[string]func(*router.Request){
		"a little longer": func(q *router.Request) { q.PromptTokens, q.BodyBytes = 900, 3600 },
		"waits":           func(q *router.Request) { q.Waited, q.Spare, q.Now = true, 0.1, time.Now() },
	} {
		if kind(edit) != usual {
			t.Errorf("%s is of another kind", name)
		}
	}
}
