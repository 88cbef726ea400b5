package probe

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"headrace/providers/fakecloud"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// counts is what a model says to every question.
const counts = "one, two, three, four, five, six, seven, eight"

// said16 is as much of it as a self-test asks for.
var said16 = counts[:40] //nolint:gochecknoglobals // a constant, cut

// oddEngine answers with counts, and with what the case makes of it where it is asked to go on.
type oddEngine struct {
	// rest returns what comes after begun, and how many tokens the prompt had; text "" refuses with status.
	rest func(nth int, begun string) (text string, prompt, status int)
	// whole is said instead of counts, as JSON.
	whole string

	asked atomic.Int64 // requests to go on
	all   atomic.Int64
}

func (e *oddEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.all.Add(1)
	var q question
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	content, prompt := []byte(e.whole), 20
	switch last := q.Messages[len(q.Messages)-1]; {
	case last.Role == "assistant":
		text, tokens, status := e.rest(int(e.asked.Add(1)), last.Content)
		if text == "" {
			w.WriteHeader(status)
			return
		}
		content, _ = json.Marshal(text) // a string
		prompt = tokens
	case e.whole == "":
		content, _ = json.Marshal(said16)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"object":  "chat.completion",
		"choices": []any{map[string]any{"index": 0, "finish_reason": "length", "message": map[string]any{"role": "assistant", "content": json.RawMessage(content)}}},
		"usage":   map[string]any{"prompt_tokens": prompt, "completion_tokens": 4, "total_tokens": prompt + 4},
	})
}

// goOn is what an engine says that does as it was asked.
func goOn(begun string) string {
	if trimmed := strings.TrimRight(begun, " "); strings.HasPrefix(counts, trimmed) {
		return counts[len(begun):][:8]
	}
	return "what?"
}

// TestOddEngines tells what is not a continuation from what is.
func TestOddEngines(t *testing.T) {
	ok := router.Prefill{Known: true, OK: true}
	known := router.Prefill{Known: true}
	for name, tc := range map[string]struct {
		whole    string
		rest     func(nth int, begun string) (string, int, int)
		want     router.Prefill
		why      string
		class    outcome.Class
		requests int64
	}{
		"goes on":         {"", func(_ int, b string) (string, int, int) { return goOn(b), 25 + len(b)%2, 0 }, ok, whyTested, outcome.Success, 4},
		"tells no tokens": {"", func(_ int, b string) (string, int, int) { return goOn(b), 0, 0 }, ok, whyTested, outcome.Success, 4},
		"trims": {
			"", func(_ int, b string) (string, int, int) { return goOn(strings.TrimRight(b, " ")), 25, 0 },
			router.Prefill{Known: true, OK: true, Trims: true},
			whyTested, outcome.Success, 4,
		},
		"loses white space": {"", func(_ int, b string) (string, int, int) { return strings.TrimLeft(goOn(b), " "), 25, 0 }, known, whySpace, outcome.Success, 6},
		"begins anew":       {"", func(int, string) (string, int, int) { return counts[:8], 25, 0 }, known, whyRestarts, outcome.Success, 4},
		"begins a message":  {"", func(_ int, b string) (string, int, int) { return "assistant\n\n" + goOn(b), 25, 0 }, known, whyOther, outcome.Success, 4},
		"fits the words only": { // it counts on, but from the next word
			"", func(_ int, b string) (string, int, int) {
				return strings.TrimLeft(counts[len(b)+strings.IndexByte(counts[len(b):], ','):], ", "), 25, 0
			},
			known, whyOther, outcome.Success, 4,
		},
		"does not read it":  {"", func(_ int, b string) (string, int, int) { return goOn(b), 20, 0 }, known, whyUnread, outcome.Success, 4},
		"thinks":            {`"<think> hm"`, nil, known, whyThinks, outcome.Success, 1},
		"refuses":           {"", func(int, string) (string, int, int) { return "", 0, 422 }, known, whyRefuses, outcome.Success, 2},
		"breaks down at it": {"", func(int, string) (string, int, int) { return "", 0, 500 }, known, whyFails, outcome.Success, 4},
		"is full":           {"", func(int, string) (string, int, int) { return "", 0, 429 }, router.Prefill{}, whyNoAnswer, outcome.Throttled, 2},
		"says little":       {`"OK."`, nil, router.Prefill{}, whyShort, outcome.Success, 2},
		"says oddly":        {`[{"type":"text"}]`, nil, router.Prefill{}, whyOdd, outcome.Success, 2},
		"is not the same twice": { // for once something else ran beside
			"", func(nth int, b string) (string, int, int) {
				if nth == 1 {
					return "uuu, nine", 25, 0
				}
				return goOn(b), 25, 0
			},
			ok, whyTested, outcome.Success, 6,
		},
		"fails at the last": {
			"", func(nth int, b string) (string, int, int) {
				if nth == 3 {
					return "", 0, 503
				}
				return goOn(b), 25, 0
			},
			router.Prefill{},
			whyNoAnswer, outcome.UpstreamFault, 4,
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := &oddEngine{rest: tc.rest, whole: tc.whole}
			srv := httptest.NewServer(e)
			t.Cleanup(srv.Close)
			ep := endpoint.Endpoint{
				ID: "static:h", BaseURL: srv.URL, Served: []endpoint.Served{{Name: "m1"}},
				Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 1}, State: endpoint.Ready,
			}
			r := newRig(t, []endpoint.Endpoint{ep}, func(o *Options) { o.Within = time.Minute })
			if c := r.test(t, 0, true); c != tc.class {
				t.Errorf("class %s, want %s", c, tc.class)
			}
			if got := r.desk.prefill(ep.ID, "m1"); got != tc.want {
				t.Errorf("found %+v, want %+v", got, tc.want)
			}
			if s := r.Status(ep.ID); s.Prefills[0].Why != tc.why || s.Sent != 0 {
				t.Errorf("status %+v, want the reason %q", s, tc.why)
			}
			if n := e.all.Load(); n != tc.requests {
				t.Errorf("%d requests, want %d", n, tc.requests)
			}
		})
	}
}

// TestOvertakenSelfTest has a host die in the middle of a self-test that takes longer than a probe is waited for: it is not the
// self-test that decides whether the host is used again.
func TestOvertakenSelfTest(t *testing.T) {
	var asked atomic.Int64
	e := &oddEngine{rest: func(_ int, b string) (string, int, int) { return goOn(b), 25, 0 }}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) < 4 {
			e.ServeHTTP(w, r)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body) // else nobody sees the connection end
		<-r.Context().Done()
	}))
	t.Cleanup(srv.Close)
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	r := newReplica(t, rentedAt(srv.URL), 0, func(o *Options) { o.Now, o.Within = now, time.Hour })
	r.prober.Configure(Settings{SelfTest: true})
	var l router.Lease
	if err := r.router.Pick(&router.Request{Model: "m1"}, &l); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the last request of a self-test", func() bool { return asked.Load() == 4 })
	l.Done(router.Result{Class: outcome.Stalled})
	ahead.Add(int64(16 * time.Second)) // it is not waited for any longer
	eventually(t, "a probe", func() bool { ahead.Add(int64(50 * time.Millisecond)); return asked.Load() > 4 })
	if got := r.breaker(); got == "closed" {
		t.Error("a self-test without an answer has it used again")
	}
	if s := r.prober.Status("static:h"); s.Prefills[0].Continues != "unknown" {
		t.Errorf("status %+v", s)
	}
}

// rentedAt is a host that may be taken away.
func rentedAt(url string) endpoint.Endpoint {
	return endpoint.Endpoint{
		ID: "static:h", Provider: "static", BaseURL: url + "/v1", Served: []endpoint.Served{{Name: "m1"}}, State: endpoint.Ready,
		Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 1}, Tenure: endpoint.Interruptible,
	}
}

// TestCalledAway holds it against no host that its operator has called a test away from it.
func TestCalledAway(t *testing.T) {
	h := start(t, fakecloud.HostConfig{Name: "h", Models: []string{"m1"}})
	if err := h.SetFaults(fakecloud.Fault{Kind: fakecloud.Hang}); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, []endpoint.Endpoint{h.Endpoint()}, func(o *Options) { o.Within = time.Hour })
	for i, selfTest := range []bool{false, true} {
		r.desk.hand(router.Probe{Endpoint: &r.eps[0], Served: "m1", SelfTest: selfTest})
		r.Wake()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := h.Wait(ctx, func(s fakecloud.Stats) bool { return s.Requests == i+1 }); err != nil {
			t.Fatal(err)
		}
		if n := r.fwd.Interrupt(r.eps[0].ID); n != 1 {
			t.Fatalf("%d attempts called away", n)
		}
		if c := r.desk.await(t); c != outcome.Moved {
			t.Errorf("self-test %t: class %s", selfTest, c)
		}
	}
	for _, p := range r.Status(r.eps[0].ID).Prefills {
		if p.TestedAt != nil {
			t.Errorf("status %+v", p)
		}
	}
}
