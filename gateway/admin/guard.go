package admin

import (
	"net/http"
	"strings"
	"time"
)

// guarded asks for a key with the right "admin", as soon as there is one. Liveness, readiness and metrics stay open: what asks for them
// has no key, and they tell of nobody.
func (o *Options) guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/livez", "/readyz", "/metrics":
		default:
			if o.Keys.AdminKeys() && !o.admitted(w, r) {
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// admitted tells whether the request carries such a key; if not, it is answered.
func (o *Options) admitted(w http.ResponseWriter, r *http.Request) bool {
	key := r.Header.Get("X-Api-Key")
	if scheme, rest, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "bearer") {
		key = strings.TrimSpace(rest)
	}
	grant, e := o.Keys.Enter([]byte(key), time.Now())
	switch {
	case e != nil:
		fail(w, e.Status, e.Code, "The admin API asks for a key that opens it, as Authorization: Bearer KEY; headrace's commands read it from HEADRACE_ADMIN_KEY. "+e.Message)
	case grant == nil || !grant.Key.Admin:
		fail(w, http.StatusForbidden, "admin_not_allowed", "This API key does not open the admin API. It needs the right \"admin\".")
	default:
		return true
	}
	return false
}
