package serverless_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"headrace/providers/vast/serverless"
)

func TestPayloadForms(t *testing.T) {
	input := func(b []byte) bool { return bytes.Contains(b, []byte(`"payload":{"input":{`)) }
	for name, tc := range map[string]struct {
		bare  bool
		given serverless.PayloadForm
		first string // code of the first request's error, "" for success
		calls int    // of the worker for two requests
	}{
		"templates take it wrapped":                 {bare: false, calls: 2},
		"SDK workers take it bare, learned at once": {bare: true, calls: 3},
		"given wrapped and right":                   {bare: false, given: serverless.Wrapped, calls: 2},
		"given bare and right":                      {bare: true, given: serverless.Bare, calls: 2},
		"given bare and wrong is not tried again":   {bare: false, given: serverless.Bare, first: "worker_payload", calls: 2},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			k := f.addWorker(true, chat)
			k.bare, k.old = tc.bare, true // old: no route may be used for both forms
			o := f.options()
			o.Payload = map[string]serverless.PayloadForm{"q*": tc.given, "other": serverless.Bare}
			fr, _ := f.front(o, f.routed())
			for i := range 2 {
				r := fr.post(t, t.Context(), plain)
				if tc.first == "" && r.status != 200 || tc.first != "" && (r.status != 502 || r.code() != tc.first) {
					t.Errorf("request %d: status %d %s", i, r.status, r.body)
				}
			}
			if len(k.got) != tc.calls || len(f.routes) != tc.calls {
				t.Errorf("%d calls with %d routes, want %d", len(k.got), len(f.routes), tc.calls)
			}
			if last := k.got[len(k.got)-1]; tc.first == "" && input(last) == tc.bare {
				t.Errorf("last call %s", last)
			}
		})
	}
	t.Run("workers are replaced by those of another version", func(t *testing.T) {
		f := newFake(t)
		k := f.addWorker(true, chat)
		k.bare = true
		fr, _ := f.front(f.options(), f.routed())
		for i, calls := range []int{2, 4, 5} {
			if r := fr.post(t, t.Context(), plain); r.status != 200 || k.calls() != calls {
				t.Errorf("request %d: status %d after %d calls, want %d", i, r.status, k.calls(), calls)
			}
			k.bare = false
		}
	})
	t.Run("the caller's own mistake", func(t *testing.T) { // with neither form known: the better word of both counts
		for _, bare := range []bool{false, true} {
			f := newFake(t)
			k := f.addWorker(true, func(w http.ResponseWriter, r *http.Request) {
				if b, _ := io.ReadAll(r.Body); bytes.Contains(b, []byte(`"input"`)) {
					reply(w, 400, map[string]any{"error": map[string]any{"message": "no messages"}})
					return
				}
				reply(w, 400, map[string]any{"error": map[string]any{"message": "temperature is negative"}})
			})
			k.bare = bare
			fr, _ := f.front(f.options(), f.routed())
			if r := fr.post(t, t.Context(), plain); r.status != 400 || !strings.Contains(r.body, "temperature") {
				t.Errorf("bare %v: status %d %s", bare, r.status, r.body)
			}
		}
	})
}

// TestModelsOwnErrors are handed on as they are, and nobody else is asked.
func TestModelsOwnErrors(t *testing.T) {
	for _, status := range []int{400, 404, 422, 429, 500, 503} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			f := newFake(t)
			says := fmt.Sprintf(`{"error":{"message":"m","type":"t","code":%d}}`, status)
			k := f.addWorker(true, chat)
			fr, _ := f.front(f.options(), f.routed())
			if r := fr.post(t, t.Context(), plain); r.status != 200 {
				t.Fatalf("status %d: %s", r.status, r.body)
			}
			k.set(func() {
				k.fault = func(w http.ResponseWriter, _ *http.Request, _ int) bool {
					w.Header().Set("Content-Type", "application/json")
					w.Header().Set("Retry-After", "7")
					w.WriteHeader(status)
					fmt.Fprint(w, says)
					return true
				}
			})
			r := fr.post(t, t.Context(), plain)
			if r.status != status || r.body != says || r.header.Get("Retry-After") != "7" || k.calls() != 2 || !r.told {
				t.Errorf("status %d %s after %d calls, head %v", r.status, r.body, k.calls(), r.header)
			}
		})
	}
}
