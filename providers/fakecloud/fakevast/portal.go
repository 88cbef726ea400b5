package fakevast

import (
	"compress/gzip"
	"crypto/subtle"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
)

// PortalConfig is how the Caddy of an image of Vast's is set up.
type PortalConfig struct {
	NoAuth         bool // AUTH_EXCLUDE or ENABLE_AUTH=false
	RefuseJupyter  bool // the jupyter_token is another than the portal's token
	Placeholder200 bool // the page that stands in for the model comes with 200, as through a tunnel, and not with 502
	NoGzip         bool // compress nothing
	HTTPS          bool // the port speaks https, and sends plain http there
	Certificate    Certificate
}

// portal is Caddy in front of a model.
type portal struct {
	cfg      PortalConfig
	label    string // VAST_CONTAINERLABEL
	password string // "" for none but token
	token    string
	dead     atomic.Bool // nothing is behind it
}

func newPortal(cfg *InstanceConfig, token string) *portal {
	return &portal{
		cfg: cfg.Portal, label: "C." + strconv.FormatInt(cfg.ID, 10), password: cfg.APIKey, token: token,
	}
}

func (p *portal) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case p.cfg.HTTPS && r.TLS == nil:
			w.Header().Set("Connection", "close")
			w.Header().Set("Location", "https://"+r.Host+r.URL.RequestURI())
			w.WriteHeader(http.StatusPermanentRedirect)
		case !p.cfg.NoAuth && !p.knows(r):
			w.Header().Set("Server", "Caddy")
			w.Header().Set("WWW-Authenticate", `Basic realm="restricted"`)
			w.WriteHeader(http.StatusUnauthorized)
		case p.dead.Load():
			p.placeholder(w)
		case !p.cfg.NoGzip && takesGzip(r):
			z := &zipped{ResponseWriter: w}
			next.ServeHTTP(z, r)
			z.close() // not when it panics: a cut answer is to look cut
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// knows tells whether the request may pass; Caddy looks at the query, the cookie, the bearer and basic credentials, in
// this order.
func (p *portal) knows(r *http.Request) bool {
	if p.good(r.URL.Query().Get("token")) {
		return true
	}
	if c, err := r.Cookie(p.label + "_auth_token"); err == nil && p.good(c.Value) {
		return true
	}
	if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok && p.good(bearer) {
		return true
	}
	user, password, ok := r.BasicAuth()
	return ok && user == "vastai" && p.good(password)
}

func (p *portal) good(token string) bool {
	same := func(want string) bool {
		return want != "" && subtle.ConstantTimeCompare([]byte(token), []byte(want)) == 1
	}
	return same(p.password) || !p.cfg.RefuseJupyter && same(p.token)
}

func (p *portal) placeholder(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Server", "Caddy")
	h.Set("X-Portal-Placeholder", "true")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "text/html; charset=utf-8")
	status := http.StatusBadGateway
	if p.cfg.Placeholder200 {
		status = http.StatusOK
	}
	w.WriteHeader(status)
	_, _ = w.Write([]byte("<!DOCTYPE html>\n<html><head><title>Starting</title></head><body><p>The application is not ready yet.</p></body></html>\n"))
}

// takesGzip tells whether the client asked for gzip; Caddy compresses for whoever does.
func takesGzip(r *http.Request) bool {
	for one := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		name, q, _ := strings.Cut(strings.TrimSpace(one), ";")
		if name == "gzip" && strings.TrimSpace(q) != "q=0" {
			return true
		}
	}
	return false
}

// zipped compresses an answer and flushes whenever the answer is. A fault that takes the connection over has it bare.
type zipped struct {
	http.ResponseWriter
	z *gzip.Writer // nil until the head is written
}

// Unwrap returns the writer below.
func (z *zipped) Unwrap() http.ResponseWriter { return z.ResponseWriter }

// WriteHeader changes the head for what comes.
func (z *zipped) WriteHeader(status int) {
	h := z.Header()
	if status >= 200 && z.z == nil && h.Get("Content-Length") != "0" {
		h.Del("Content-Length")
		h.Set("Content-Encoding", "gzip")
		h.Add("Vary", "Accept-Encoding")
		z.z = gzip.NewWriter(z.ResponseWriter)
	}
	z.ResponseWriter.WriteHeader(status)
}

// Write compresses p.
func (z *zipped) Write(p []byte) (int, error) {
	if z.z == nil {
		z.WriteHeader(http.StatusOK)
	}
	if z.z == nil {
		return z.ResponseWriter.Write(p)
	}
	return z.z.Write(p)
}

// FlushError sends what was compressed so far.
func (z *zipped) FlushError() error {
	if z.z != nil {
		if err := z.z.Flush(); err != nil {
			return err
		}
	}
	return http.NewResponseController(z.ResponseWriter).Flush()
}

func (z *zipped) close() {
	if z.z != nil {
		_ = z.z.Close()
	}
}
