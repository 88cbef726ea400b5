package admin

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"headrace/gateway/admission"
	"headrace/gateway/state"
)

// A page whose name was bound to our address is of our own origin to a browser. While no key is asked for, only names will do that nobody can bind.
func TestRebinding(t *testing.T) {
	g := admission.New(admission.Options{Store: state.NewMemory()})
	h := Handler(Options{Keys: g, Host: "admin.example.org"})
	ask := func(host, path string) int {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Host = host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	for _, host := range []string{"127.0.0.1:9090", "[::1]:9090", "10.0.0.7", "localhost:9090", "LOCALHOST", "headrace:9090", "headrace.ns.svc.cluster.local:9090", "Admin.Example.org:9090", ""} {
		if got := ask(host, "/admin/v1/keys"); got != http.StatusOK {
			t.Errorf("%q: %d", host, got)
		}
	}
	for _, host := range []string{"evil.example:9090", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:9090", "evil.local."} {
		if got := ask(host, "/admin/v1/keys"); got != http.StatusMisdirectedRequest {
			t.Errorf("%q: %d", host, got)
		}
		if got := ask(host, "/livez"); got != http.StatusOK {
			t.Errorf("%q: /livez: %d", host, got)
		}
	}
	r := httptest.NewRequest(http.MethodPost, "http://evil.example:9090/admin/v1/keys", strings.NewReader(`{"name":"mine","admin":true}`))
	r.Header.Set("Origin", "http://evil.example:9090")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, r); w.Code < 400 || len(g.Views(t.Context())) != 0 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if _, _, err := g.Create(t.Context(), admission.Key{Name: "root", Admin: true}); err != nil {
		t.Fatal(err)
	}
	if got := ask("gateway.example.org", "/admin/v1/keys"); got != http.StatusUnauthorized {
		t.Errorf("where a key is asked for: %d", got)
	}
}
