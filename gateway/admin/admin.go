// Package admin serves operators: liveness, readiness, hosts with their live figures, the last requests and
// the router's decisions with their numbers. It belongs on an address that callers cannot reach.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"net/url"
	"strconv"
	"time"

	"headrace/gateway/admission"
	"headrace/gateway/experiments"
	"headrace/gateway/ledger"
	"headrace/gateway/probe"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/experiment/report"
)

// Options are what the admin API shows.
type Options struct {
	Router   *router.Router
	Requests *ledger.Ring
	InFlight func() int64
	Draining func() bool
	Reload   func() *ReloadStatus // the last reload of the config, nil when there was none
	Version  string
	// Providers returns how each rented cloud fares, in the form it is to be shown; nil when there is none.
	Providers func() any
	// Drain keeps new requests from a host, and with move calls away those that run there; Undrain lets them in again. Both return
	// false when there is no such host. Nil: it cannot be done.
	Drain   func(id endpoint.ID, move bool) bool
	Undrain func(id endpoint.ID) bool
	// Host is the name under which the admin API is asked, beside its addresses, short names and those within a cluster; "" for none. Others are
	// refused while no key is asked for: some page may have bound its name to our address.
	Host string
	// Keys tells who may use /admin and /debug, once a key has that right; nil lets everybody.
	Keys *admission.Gate
	// Experiments are those of the config.
	Experiments *experiments.Manager
	// Shadow tells what came of the copies that an experiment made of requests; nil when it made none.
	Shadow func(experiment string) *report.Shadow
	// Metrics serves /metrics; nil when no figures are kept.
	Metrics http.Handler
	// Spend serves the ledger at /admin/v1/spend and below; nil when none is kept.
	Spend http.Handler
	// Advice returns what would make the fleet cheaper, in the form it is to be shown; nil when nobody looks.
	Advice func() any
	// Probe returns what tests of a host have found; nil when nobody tests.
	Probe func(endpoint.ID) probe.Status
	// State returns where documents are kept and how the sharing with other replicas fares, in the form it is to be shown.
	State func() any
}

// ReloadStatus is how the last reload went.
type ReloadStatus struct {
	At    time.Time `json:"at"`
	OK    bool      `json:"ok"`
	Error string    `json:"error,omitempty"`
}

// Handler returns the admin API.
func Handler(o Options) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusOK, map[string]any{"status": "alive", "version": o.Version})
	})
	mux.HandleFunc("GET /readyz", o.ready)
	mux.HandleFunc("GET /admin/v1/requests", o.requests)
	mux.HandleFunc("GET /admin/v1/hosts", o.hosts)
	mux.HandleFunc("POST /admin/v1/hosts/{id}/drain", o.drain)
	mux.HandleFunc("DELETE /admin/v1/hosts/{id}/drain", o.undrain)
	mux.HandleFunc("GET /admin/v1/decisions", o.decisions)
	mux.HandleFunc("GET /admin/v1/explain", o.explain)
	mux.HandleFunc("GET /admin/v1/calibration", o.calibration)
	mux.HandleFunc("GET /admin/v1/status", o.status)
	mux.HandleFunc("GET /admin/v1/providers", func(w http.ResponseWriter, _ *http.Request) {
		var list any = []any{}
		if o.Providers != nil {
			list = o.Providers()
		}
		write(w, http.StatusOK, map[string]any{"providers": list})
	})
	mux.HandleFunc("GET /admin/v1/advice", func(w http.ResponseWriter, _ *http.Request) {
		var list any = []any{}
		if o.Advice != nil {
			list = o.Advice()
		}
		write(w, http.StatusOK, map[string]any{"advice": list})
	})
	if o.Spend != nil {
		mux.Handle("GET /admin/v1/spend", o.Spend)
		mux.Handle("GET /admin/v1/spend/", o.Spend)
	}
	if o.Experiments != nil {
		o.experimentRoutes(mux)
	}
	if o.Metrics != nil {
		mux.Handle("GET /metrics", o.Metrics)
	}
	if o.Keys != nil {
		o.keyRoutes(mux)
	}
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusNotFound, "unknown_url", "Unknown admin URL "+r.Method+" "+strconv.Quote(r.URL.Path)+
			". There are /livez, /readyz, /metrics, /admin/v1/hosts, /admin/v1/requests, /admin/v1/decisions, /admin/v1/explain, "+
			"/admin/v1/calibration, /admin/v1/providers, /admin/v1/advice, /admin/v1/spend and /admin/v1/status, all by GET, "+
			"/admin/v1/hosts/{id}/drain by POST and DELETE, /admin/v1/keys (docs/keys.md) and /admin/v1/experiments (docs/experiments.md).")
	})
	return http.NewCrossOriginProtection().Handler(o.named(o.guarded(mux))) // no page in an operator's browser may change anything
}

// Serve serves the admin API on ln until ctx is done. It owns ln.
func Serve(ctx context.Context, ln net.Listener, o Options) error {
	srv := &http.Server{Handler: Handler(o), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (o *Options) ready(w http.ResponseWriter, _ *http.Request) {
	switch {
	case o.Draining():
		write(w, http.StatusServiceUnavailable, map[string]any{"status": "draining", "in_flight": o.InFlight()})
	case !o.Router.Snapshot().Ready():
		write(w, http.StatusServiceUnavailable, map[string]any{"status": "no host has told what it serves yet"})
	default:
		write(w, http.StatusOK, map[string]any{"status": "ready", "models": len(o.Router.Snapshot().Models())})
	}
}

// hostView is a host with what its tests have found.
type hostView struct {
	router.HostView
	Probe *probe.Status `json:"probe"` // nil when nobody tests
}

func (o *Options) hosts(w http.ResponseWriter, _ *http.Request) {
	views := []hostView{}
	for _, h := range o.Router.Hosts() {
		v := hostView{HostView: h}
		if o.Probe != nil {
			v.Probe = new(o.Probe(h.ID))
		}
		views = append(views, v)
	}
	write(w, http.StatusOK, map[string]any{"hosts": views})
}

func (o *Options) status(w http.ResponseWriter, _ *http.Request) {
	s := map[string]any{
		"calibration_alarm": o.Router.Calibration().Alarm, // the rest is at /admin/v1/calibration
		"version":           o.Version, "in_flight": o.InFlight(), "draining": o.Draining(),
		"requests_total": o.Requests.Total(), "models": o.Router.Snapshot().Models(), "reload": o.Reload(),
	}
	if o.State != nil {
		s["state"] = o.State()
	}
	write(w, http.StatusOK, s)
}

const mostRecords = 1000

// requests answers with the newest records: n (default 50), model, endpoint and class filter them.
func (o *Options) requests(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	n, ok := count(w, q)
	if !ok {
		return
	}
	id, model, ep, class := q.Get("request_id"), q.Get("model"), q.Get("endpoint"), q.Get("class")
	recs := o.Requests.Newest(n, func(rec *ledger.Record) bool {
		return (id == "" || rec.ID == id) && (model == "" || rec.Model == model) &&
			(ep == "" || string(rec.Endpoint) == ep) && (class == "" || rec.Class.String() == class)
	})
	out := make([]*ledger.Record, len(recs))
	for i := range recs {
		out[i] = &recs[i]
	}
	write(w, http.StatusOK, map[string]any{"requests": out, "total": o.Requests.Total()})
}

// count reads how many records are asked for, 50 by default; if that is no number, it says so to the caller.
func count(w http.ResponseWriter, q url.Values) (n int, ok bool) {
	v := q.Get("n")
	if v == "" {
		return 50, true
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > mostRecords {
		fail(w, http.StatusBadRequest, "invalid_n", "n must be a whole number from 1 to "+strconv.Itoa(mostRecords)+".")
		return 0, false
	}
	return n, true
}

func write(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"error":{"message":"The answer cannot be encoded.","type":"server_error","param":null,"code":"internal_error"}}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the reader has left: nobody to tell
}

func fail(w http.ResponseWriter, status int, code, message string) {
	write(w, status, map[string]any{"error": map[string]any{"message": message, "type": "invalid_request_error", "param": nil, "code": code}})
}
