package fakevast

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// asked is one call of the console, its key known to be good.
type asked struct {
	w    http.ResponseWriter
	r    *http.Request
	id   int64 // of the path, 0 without one
	body []byte
}

// route is a path of the console and what serves it.
type route struct {
	pattern string // as net/http wants it
	serve   func(*asked)
	public  bool // needs no key
}

func (c *Cloud) routes() []route {
	const instances = "/api/v0/instances/"
	return []route{
		{pattern: "GET /api/v0/users/current/", serve: c.currentUser},
		{pattern: "GET /api/v1/instances/", serve: c.listInstances},
		{pattern: "GET " + instances, serve: c.retiredList},
		{pattern: "PUT " + instances, serve: c.manageMany},
		{pattern: "DELETE " + instances, serve: c.destroyMany},
		{pattern: "GET " + instances + "filters/", serve: c.instanceFilters},
		{pattern: "GET " + instances + "{id}/", serve: c.oneInstance},
		{pattern: "PUT " + instances + "{id}/", serve: c.manage},
		{pattern: "DELETE " + instances + "{id}/", serve: c.destroy},
		{pattern: "PUT " + instances + "bid_price/{id}/", serve: c.bid},
		{pattern: "PUT " + instances + "reboot/{id}/", serve: c.reboot},
		{pattern: "PUT " + instances + "recycle/{id}/", serve: c.reboot},
		{pattern: "PUT " + instances + "request_logs/{id}/", serve: c.requestLogs},
		{pattern: "GET " + instances + "pending-price-increases/", serve: c.priceIncreases},
		{pattern: "PUT " + instances + "accept-price-increase/", serve: c.settle},
		{pattern: "PUT " + instances + "reject-price-increase/", serve: c.settle},
		{pattern: "PUT /api/v0/asks/{id}/", serve: c.create},
		{pattern: "POST /api/v0/bundles/", serve: c.searchOffers, public: true},
		{pattern: "PUT /api/v0/search/asks/", serve: c.searchAsks, public: true},
		{pattern: "GET /api/v0/gpu_names/unique/", serve: c.gpuNames, public: true},
		{pattern: "GET /api/v0/charges/", serve: c.charges},
		{pattern: "GET /api/v0/metrics/gpu/current/", serve: c.gpuMetrics},
		{pattern: "GET /api/v0/endptjobs/", serve: c.listEndpoints},
		{pattern: "POST /api/v0/endptjobs/", serve: c.createEndpoint},
		{pattern: "GET /api/v0/endptjobs/{id}/", serve: c.oneEndpoint},
		{pattern: "PUT /api/v0/endptjobs/{id}/", serve: c.changeEndpoint},
		{pattern: "DELETE /api/v0/endptjobs/{id}/", serve: c.deleteEndpoint},
		{pattern: "GET /api/v0/workergroups/", serve: c.listGroups},
		{pattern: "POST /api/v0/workergroups/", serve: c.createGroup},
		{pattern: "GET /api/v0/autojobs/", serve: c.listGroups},
		{pattern: "POST /api/v0/autojobs/", serve: c.createGroup},
		{pattern: "GET /api/v0/notification-types/", serve: c.notificationTypes},
		{pattern: "GET /api/v0/webhooks/", serve: c.listWebhooks},
		{pattern: "POST /api/v0/webhooks/", serve: c.createWebhook},
		{pattern: "PUT /api/v0/webhooks/{id}/", serve: c.changeWebhook},
		{pattern: "DELETE /api/v0/webhooks/{id}/", serve: c.deleteWebhook},
		{pattern: "POST /api/v0/webhooks/{id}/rotate-secret/", serve: c.rotateSecret},
		{pattern: "POST /api/v0/webhooks/{id}/test/", serve: c.testWebhook},
	}
}

// consoleRoutes serves the console. A path without its last slash is the same path, as with the real one.
func (c *Cloud) consoleRoutes() http.Handler {
	mux := http.NewServeMux()
	for _, rt := range c.routes() {
		mux.HandleFunc(rt.pattern+"{$}", func(w http.ResponseWriter, r *http.Request) { c.serve(rt, w, r) })
	}
	mux.HandleFunc("GET /logs/", c.log)
	mux.HandleFunc("GET /static/jvastai_root.cer", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/pkix-cert")
		_, _ = w.Write(c.ca.pem)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c.books.add(Request{
			At: time.Now(), Call: "?", Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Header: r.Header, Status: http.StatusNotFound,
		})
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte("<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n"))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", c.cfg.Now().UTC().Format(http.TimeFormat))
		if p := r.URL.Path; strings.HasPrefix(p, "/api/") && !strings.HasSuffix(p, "/") {
			r2 := r.Clone(r.Context())
			r2.URL.Path += "/"
			r2.URL.RawPath = ""
			r = r2
		}
		mux.ServeHTTP(w, r)
	})
}

func (c *Cloud) serve(rt route, w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 4<<20))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	n := &noted{ResponseWriter: w}
	defer func() {
		c.books.add(Request{
			At: time.Now(), Call: rt.pattern, Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery,
			Header: r.Header, Body: body, Status: n.status,
		})
	}()
	answer := func(w http.ResponseWriter) { c.answer(rt, w, r, body) }
	if t, ok := c.trouble(rt.pattern); ok {
		c.strike(t, n, r, answer)
		return
	}
	answer(n)
}

func (c *Cloud) answer(rt route, w http.ResponseWriter, r *http.Request, body []byte) {
	key := keyOf(r)
	ip, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		ip = r.RemoteAddr
	}
	if distance, early := c.early(rt.pattern, key, ip, time.Now()); early {
		c.tooSoon(w, distance)
		return
	}
	if !rt.public && !c.admit(w, key) {
		return
	}
	a := &asked{w: w, r: r, body: body}
	if text := r.PathValue("id"); text != "" {
		if a.id, err = strconv.ParseInt(text, 10, 64); err != nil {
			writeError(w, http.StatusNotFound, "not_found", "Not found")
			return
		}
	}
	rt.serve(a)
}

// keyOf is the key of a call: the bearer, or else api_key of the query.
func keyOf(r *http.Request) string {
	if key, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return strings.TrimSpace(key)
	}
	return r.URL.Query().Get("api_key")
}

// admit answers a call whose key nobody has.
func (c *Cloud) admit(w http.ResponseWriter, key string) bool {
	switch key {
	case c.cfg.APIKey:
		return true
	case "":
		writeError(w, http.StatusForbidden, "auth_error", "This action requires login.")
	default:
		writeError(w, c.cfg.KeyStatus, "auth_error", "Invalid user key")
	}
	c.books.update(func(s *Stats) { s.Denied++ })
	return false
}

// decode reads the body, or refuses it. An empty one is an empty object.
func (a *asked) decode(into any) bool {
	if len(bytes.TrimSpace(a.body)) == 0 {
		return true
	}
	dec := json.NewDecoder(bytes.NewReader(a.body))
	dec.UseNumber()
	if err := dec.Decode(into); err != nil {
		writeError(a.w, http.StatusBadRequest, "invalid_request", "Error in request body: "+err.Error())
		return false
	}
	return true
}

func (a *asked) json(v any) { writeJSON(a.w, http.StatusOK, v) }

func (a *asked) fail(status int, code, msg string) { writeError(a.w, status, code, msg) }

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

func writeError(w http.ResponseWriter, status int, code, msg string) {
	writeJSON(w, status, map[string]any{"success": false, "error": code, "msg": msg})
}
