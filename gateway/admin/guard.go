package admin

import (
	"net"
	"net/http"
	"net/netip"
	"strconv"
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

// named refuses requests for names that anybody can give our address, as long as nobody needs a key: a page under such a name is of the same
// origin to the operator's browser as we are.
func (o *Options) named(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/livez", "/readyz", "/metrics":
		default:
			if !o.Keys.AdminKeys() && !o.ours(r.Host) {
				fail(w, http.StatusMisdirectedRequest, "unknown_host", "The admin API is not known as "+strconv.Quote(r.Host)+
					". Ask it by its IP address, as localhost or under the name in \"admin\", or give a key the right \"admin\": then every name will do.")
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// ours tells whether no stranger can give that name an address: one without a dot, one that is kept for private use, an address itself.
func (o *Options) ours(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil || !strings.Contains(host, ".") || o.Host != "" && host == strings.ToLower(o.Host) {
		return true
	}
	for _, private := range []string{".localhost", ".internal", ".svc", ".cluster.local"} {
		if strings.HasSuffix(host, private) {
			return true
		}
	}
	return false
}
