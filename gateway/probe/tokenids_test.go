package probe

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"headrace/providers/fakecloud"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// TestTakesTokens finds out who tells the numbers of tokens and goes on by them, whatever its template does, and does not ask where nobody
// wants to know.
func TestTakesTokens(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg    fakecloud.HostConfig
		routes []string
		off    bool // nobody wants to know
		want   router.Prefill
	}{
		"takes them":                   {want: router.Prefill{Known: true, OK: true, Tokens: true}},
		"and trims":                    {cfg: fakecloud.HostConfig{Prefill: fakecloud.PrefillTrims}, want: router.Prefill{Known: true, OK: true, Trims: true, Tokens: true}},
		"and knows no open message":    {cfg: fakecloud.HostConfig{Prefill: fakecloud.PrefillIgnored}, want: router.Prefill{Known: true, Tokens: true}},
		"and refuses an open message":  {cfg: fakecloud.HostConfig{Prefill: fakecloud.PrefillRefused}, want: router.Prefill{Known: true, Tokens: true}},
		"does not know them":           {cfg: fakecloud.HostConfig{NoTokenIDs: true}, want: router.Prefill{Known: true, OK: true}},
		"has no completions":           {routes: []string{chatPath}, want: router.Prefill{Known: true, OK: true}},
		"is not asked":                 {off: true, want: router.Prefill{Known: true, OK: true}},
		"thinks before it says a word": {cfg: fakecloud.HostConfig{Models: []string{"reasoner"}}, want: router.Prefill{Known: true}},
	} {
		t.Run(name, func(t *testing.T) {
			tc.cfg.Name = "h"
			if len(tc.cfg.Models) == 0 {
				tc.cfg.Models = []string{"m1"}
			}
			h := start(t, tc.cfg)
			ep := h.Endpoint()
			ep.Routes = tc.routes
			r := newRig(t, []endpoint.Endpoint{ep})
			r.Configure(Settings{SelfTest: true, TokenIDs: !tc.off})
			if c := r.test(t, 0, true); c != outcome.Success {
				t.Fatalf("class %s", c)
			}
			if got := r.desk.prefill(ep.ID, tc.cfg.Models[0]); got != tc.want {
				t.Errorf("found %+v, want %+v", got, tc.want)
			}
			if s := r.Status(ep.ID); s.Prefills[0].TokenIDs != tc.want.Tokens {
				t.Errorf("status %+v", s)
			}
			if made := h.Stats().OutputTokens; made > 64+numberedTokens+behindTokens {
				t.Errorf("it took %d tokens", made)
			}
		})
	}
}

// TestOddNumbers: a host whose numbers do not say what it has read and written is not asked with them.
func TestOddNumbers(t *testing.T) {
	h := start(t, fakecloud.HostConfig{Name: "h", Models: []string{"m1"}})
	for name, change := range map[string]func(path, answer string) string{
		"of another token": func(path, answer string) string { // the second one's
			const list = `"token_ids":[`
			if parts := strings.SplitN(answer, list, 4); path == chatPath && len(parts) == 4 { // the prompt's list ends in the same
				return parts[0] + list + parts[1] + list + "3" + parts[2] + list + parts[3]
			}
			return answer
		},
		"of some tokens only": func(_, answer string) string { return strings.Replace(answer, `"token_ids":[`, `"none":[`, 1) },
		"of no prompt":        func(_, answer string) string { return strings.ReplaceAll(answer, `"prompt_token_ids":[`, `"none":[`) },
		"over several lines":  func(_, answer string) string { return strings.ReplaceAll(answer, `"choices"`, "\ndata: \"choices\"") },
		"of something else":   func(_, answer string) string { return strings.ReplaceAll(answer, `"token_ids":[`, `"token_ids":[{},`) },
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				rec := httptest.NewRecorder()
				req, err := http.NewRequestWithContext(r.Context(), r.Method, h.URL()+r.URL.Path, r.Body)
				if err != nil {
					t.Error(err)
					return
				}
				res, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = res.Body.Close() }()
				if _, err := rec.Body.ReadFrom(res.Body); err != nil {
					t.Error(err)
				}
				answer := rec.Body.String()
				if strings.Contains(answer, "data: ") {
					answer = change(strings.TrimPrefix(r.URL.Path, "/v1"), answer)
				}
				w.Header().Set("Content-Type", res.Header.Get("Content-Type"))
				w.WriteHeader(res.StatusCode)
				_, _ = w.Write([]byte(answer))
			}))
			t.Cleanup(srv.Close)
			r := newRig(t, []endpoint.Endpoint{rentedAt(srv.URL)})
			r.Configure(Settings{SelfTest: true, TokenIDs: true})
			if c := r.test(t, 0, true); c != outcome.Success {
				t.Fatalf("class %s", c)
			}
			if got := r.desk.prefill("static:h", "m1"); got != (router.Prefill{Known: true, OK: true}) {
				t.Errorf("found %+v", got)
			}
		})
	}
}
