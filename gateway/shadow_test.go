package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"headrace/router/endpoint"
	"headrace/router/experiment"
)

// shadowRig copies every request of the control to the canary's host.
func shadowRig(t *testing.T, urls []string, change func(*experiment.Spec, *rigOptions)) *trialRig {
	t.Helper()
	g := newTrialRigOf(t, urls, func(s *experiment.Spec, o *rigOptions) {
		s.Shadow = experiment.Shadow{Arm: 1, Share: 1, MaxTokens: 5}
		if change != nil {
			change(s, o)
		}
	}, experiment.Unit{Kind: experiment.ByRequest})
	g.weigh(0)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = g.srv.RunShadows(ctx) }()
	t.Cleanup(func() { cancel(); wait(t, done, "the copies to end") })
	return g
}

func (g *trialRig) copies(t *testing.T, what string, ok func(c ShadowCounts) bool) ShadowCounts {
	t.Helper()
	var c ShadowCounts
	eventually(t, what, func() bool {
		if all := g.srv.Shadows(); len(all) == 1 {
			c = all[0]
		}
		return ok(c)
	})
	return c
}

// TestShadow asks the canary's host once more what the control has answered: with a limit of its own, as a stream, and without the caller's
// credentials. The answers are compared; the caller gets the control's.
func TestShadow(t *testing.T) {
	a, b := newWatched(t), newWatched(t)
	g := shadowRig(t, []string{a.url(), b.url()}, nil)
	ask := func(extra string, stream bool) {
		t.Helper()
		body := fmt.Sprintf(`{"model":%q,"max_completion_tokens":900,%s"stream":%t,"messages":[{"role":"user","content":"hi"}]}`, model, extra, stream)
		r, _, err := g.do(post(chatPath, body, "Authorization: Bearer sk-callers"))
		if err != nil || r.StatusCode != http.StatusOK || r.Header.Get("X-Headrace-Arm") != "e/control" || r.Header.Get("X-Headrace-Endpoint") != "static:h0" {
			t.Fatal(r, err)
		}
	}
	ask(`"temperature":0,"top_k":7,`, false)
	c := g.copies(t, "a copy was answered", func(c ShadowCounts) bool { return c.Copied == 1 })
	if c.Failed != 0 || c.Arm != "canary" || c.Output != 3 || c.Finished != 1 || c.SameFinish != 1 || c.Compared != 1 || c.SameText != 1 || c.JSON != 0 || c.USD <= 0 || c.TTFT <= 0 {
		t.Errorf("%+v", c)
	}
	ask(`"response_format":{"type":"json_object"},`, true)
	c = g.copies(t, "another copy was answered", func(c ShadowCounts) bool { return c.Copied == 2 })
	if c.JSON != 1 || c.ValidJSON != 0 || c.Compared != 1 {
		t.Errorf("%+v", c)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.seen) != 2 {
		t.Fatalf("the canary's host got %d requests", len(b.seen))
	}
	_, sent, _ := strings.Cut(b.seen[0], "\n\n")
	var got map[string]any
	if err := json.Unmarshal([]byte(sent), &got); err != nil || got["max_tokens"] != 5.0 || got["max_completion_tokens"] != nil || got["stream"] != true || got["top_k"] != 7.0 || got["model"] != model {
		t.Errorf("it was asked %s, %v", sent, err)
	}
	if strings.Contains(b.seen[0], "sk-callers") || !strings.Contains(b.seen[0], "_shadow") {
		t.Errorf("its head %s", b.seen[0])
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.records) != 2 {
		t.Errorf("%d records: copies are nobody's requests", len(g.records))
	}
}

// TestShadowDelaysNobody lets callers have their answers while the canary's host hangs, and makes no copies that it has no room for.
func TestShadowDelaysNobody(t *testing.T) {
	release := make(chan struct{})
	a := newUpstream(t, answering)
	b := newUpstream(t, func(c *upConn, r *upRequest) bool { <-release; return answering(c, r) })
	g := shadowRig(t, []string{a.url(), b.url()}, func(_ *experiment.Spec, o *rigOptions) {
		o.edit = func(eps []endpoint.Endpoint) { eps[1].MaxNumSeqs = 4 }
	})
	defer sync.OnceFunc(func() { close(release) })()
	for range 20 {
		if r, _, err := g.do(chat(true)); err != nil || r.StatusCode != http.StatusOK {
			t.Fatal(r, err)
		}
	}
	c := g.copies(t, "those without room were left out", func(c ShadowCounts) bool { return c.NoRoom >= 10 })
	if _, n := b.counts(); n > 2 { // half of four
		t.Errorf("the canary's host has %d copies at once, %+v", n, c)
	}
}

// TestShadowCostsNothing makes copies only where nothing more is billed for them, unless it was asked for.
func TestShadowCostsNothing(t *testing.T) {
	for _, paid := range []bool{false, true} {
		a, b := newUpstream(t, answering), newUpstream(t, answering)
		g := shadowRig(t, []string{a.url(), b.url()}, func(s *experiment.Spec, o *rigOptions) {
			s.Shadow.Paid = paid
			o.edit = func(eps []endpoint.Endpoint) {
				eps[1].Price = endpoint.Price{Basis: endpoint.PerToken, USDPerMTokIn: 1, USDPerMTokOut: 1}
			}
		})
		if r, _, err := g.do(chat(false)); err != nil || r.StatusCode != http.StatusOK {
			t.Fatal(r, err)
		}
		c := g.copies(t, "the copy was decided", func(c ShadowCounts) bool { return c.Copied+c.NoRoom == 1 })
		if _, n := b.counts(); (n == 1) != paid || (c.Copied == 1) != paid || paid && c.USD < 9e-6 {
			t.Errorf("paid %v: %d requests there, %+v", paid, n, c)
		}
	}
}

// TestNoShadow makes no copy of what the control did not serve well, of other routes, and none where none is asked for.
func TestNoShadow(t *testing.T) {
	a := newUpstream(t, func(c *upConn, r *upRequest) bool {
		if strings.Contains(string(r.body), "fail") {
			c.send(jsonAnswer(400, `{"error":{"message":"no","type":"invalid_request_error","param":null,"code":null}}`))
			return true
		}
		return answering(c, r)
	})
	b := newUpstream(t, answering)
	g := shadowRig(t, []string{a.url(), b.url()}, nil)
	for _, req := range []string{
		post(chatPath, fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"fail"}]}`, model)),
		post(chatPath, fmt.Sprintf(`{"model":%q,"n":2,"messages":[{"role":"user","content":"hi"}]}`, model)),
		post("/v1/completions", fmt.Sprintf(`{"model":%q,"prompt":"hi"}`, model)),
		chat(false, "X-Headrace-Arm: e=control"),
	} {
		if _, _, err := g.do(req); err != nil {
			t.Fatal(err)
		}
	}
	g.weigh(1)
	if _, _, err := g.do(chat(false)); err != nil {
		t.Fatal(err)
	}
	none := *g.spec
	none.Shadow.Share = 0
	g.spec = &none
	g.weigh(0)
	if _, _, err := g.do(chat(false)); err != nil {
		t.Fatal(err)
	}
	if all := g.srv.Shadows(); len(all) != 0 || g.srv.shadows.n.Load() != 0 || g.srv.shadows.bytes != 0 {
		t.Errorf("%+v, %d open", all, g.srv.shadows.n.Load())
	}
}
