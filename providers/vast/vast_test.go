package vast_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/providers/fakecloud/fakevast"
	"headrace/providers/vast"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

func TestFilters(t *testing.T) {
	mine := []fakevast.InstanceConfig{
		{ID: 11, Label: "gw", TemplateHash: "abc"}, {ID: 12, Label: "training", TemplateName: "vLLM"}, {ID: 13},
	}
	for name, tc := range map[string]struct {
		change  func(*vast.Options)
		want    []endpoint.ID
		skipped int // instances that the API names and that are left out here
	}{
		"none":        {nil, []endpoint.ID{"vast:11", "vast:12", "vast:13"}, 0},
		"label":       {func(o *vast.Options) { o.Labels = []string{"gw"} }, []endpoint.ID{"vast:11"}, 0},
		"two labels":  {func(o *vast.Options) { o.Labels = []string{"gw", "training"} }, []endpoint.ID{"vast:11", "vast:12"}, 0},
		"no label":    {func(o *vast.Options) { o.Labels = []string{""} }, []endpoint.ID{"vast:13"}, -1},
		"ids":         {func(o *vast.Options) { o.IDs = []int64{12, 13} }, []endpoint.ID{"vast:12", "vast:13"}, 0},
		"label + id":  {func(o *vast.Options) { o.IDs, o.Labels = []int64{12, 13}, []string{"training"} }, []endpoint.ID{"vast:12"}, 0},
		"template":    {func(o *vast.Options) { o.Templates = []string{"abc", "vLLM"} }, []endpoint.ID{"vast:11", "vast:12"}, 1},
		"no such one": {func(o *vast.Options) { o.Labels = []string{"x"} }, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, fakevast.Config{}, tc.change, mine...)
			r.until(fmt.Sprint(tc.want), func(eps []endpoint.Endpoint) bool {
				var got []endpoint.ID
				for _, ep := range eps {
					got = append(got, ep.ID)
				}
				return slices.Equal(got, tc.want)
			})
			s := r.status("a poll", func() bool { return r.p.Status().Polls > 0 })
			if tc.skipped >= 0 && len(s.Skipped) != tc.skipped {
				t.Errorf("skipped: %+v, want %d", s.Skipped, tc.skipped)
			}
			for _, q := range r.cloud.Requests() {
				if q.Status != 200 {
					t.Errorf("%s?%s was answered %d", q.Path, q.Query, q.Status)
				}
			}
		})
	}
}

// TestColumnsRefused meets an API that takes neither our columns nor our filters.
func TestColumnsRefused(t *testing.T) {
	r := start(t, fakevast.Config{}, func(o *vast.Options) {
		o.Labels = []string{"gw"}
		o.Transport = roundTrip(func(req *http.Request) (*http.Response, error) {
			if q := req.URL.Query(); q.Has("select_cols") || q.Has("select_filters") {
				return answer(req, 400, `{"error":"invalid_request","msg":"Error in query parameters"}`), nil
			}
			return http.DefaultTransport.RoundTrip(req)
		})
	}, fakevast.InstanceConfig{Label: "gw"}, fakevast.InstanceConfig{})
	r.until("the one with the label", func(eps []endpoint.Endpoint) bool { return len(eps) == 1 && eps[0].State == endpoint.Ready })
	if s := r.p.Status(); s.Oddities["list refused columns or filters"] != 1 || len(s.Skipped) != 1 {
		t.Errorf("status %+v", s)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func answer(req *http.Request, status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Body: readCloser{strings.NewReader(body)}, Header: http.Header{}, Request: req}
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }

func TestPagesAreAllRead(t *testing.T) {
	c := fleetOf(t, fakevast.Config{}, 53)
	r := attach(t, c, nil)
	r.until("53 that are ready", func(eps []endpoint.Endpoint) bool {
		return len(eps) == 53 && !slices.ContainsFunc(eps, func(ep endpoint.Endpoint) bool { return ep.State != endpoint.Ready })
	})
	gone := c.Instances()[30]
	gone.Destroy()
	r.until("one less", func(eps []endpoint.Endpoint) bool {
		return len(eps) == 52 && !slices.ContainsFunc(eps, func(ep endpoint.Endpoint) bool { return ep.ID == id(gone) })
	})
	if strings.Contains(c.Requests()[0].Query, "gpu_util") {
		t.Error("columns that move all the time are asked for")
	}
}

// TestByIDPorts takes the ports from a read by id where the list has none.
func TestByIDPorts(t *testing.T) {
	r := start(t, fakevast.Config{}, func(o *vast.Options) {
		o.Transport = roundTrip(func(req *http.Request) (*http.Response, error) {
			if req.URL.Path != "/api/v1/instances/" {
				return http.DefaultTransport.RoundTrip(req)
			}
			q := req.URL.Query()
			q.Set("select_cols", strings.Replace(q.Get("select_cols"), `"ports"`, `"no_such_column"`, 1))
			req = req.Clone(req.Context())
			req.URL.RawQuery = q.Encode()
			return http.DefaultTransport.RoundTrip(req)
		})
	}, fakevast.InstanceConfig{})
	i := r.cloud.Instances()[0]
	first := r.state(i, endpoint.Ready, "")
	i.Restart(0, "")
	r.until("the new port", func(eps []endpoint.Endpoint) bool {
		return eps[0].State == endpoint.Ready && eps[0].BaseURL != first.BaseURL
	})
}

func TestModelsAreFiltered(t *testing.T) {
	r := start(t, fakevast.Config{}, func(o *vast.Options) { o.Models = []string{"b", "x"} },
		fakevast.InstanceConfig{Models: []string{"a", "b"}}, fakevast.InstanceConfig{Models: []string{"a"}})
	is := r.cloud.Instances()
	if ep := r.state(is[0], endpoint.Ready, ""); len(ep.Served) != 1 || ep.Served[0].Name != "b" {
		t.Errorf("served: %+v", ep.Served)
	}
	r.state(is[1], endpoint.Starting, "none of which is to be offered")
}

func TestPricesMove(t *testing.T) {
	r := start(t, fakevast.Config{}, nil, fakevast.InstanceConfig{DPHBase: 0.2, StorageCost: 0.144, DiskGB: 50, UpPerTB: 5, DownPerTB: 2.5})
	i := r.cloud.Instances()[0]
	p := r.state(i, endpoint.Ready, "").Price
	if p.Basis != endpoint.PerHour || !near(p.USDPerHour, 0.21) || !near(p.USDPerHourStopped, 0.01) || !near(p.USDPerGBOut, 0.005) || !near(p.USDPerGBIn, 0.0025) || p.Source != "vast dph_total" || time.Since(p.AsOf) > time.Minute {
		t.Errorf("price %+v", p)
	}
	i.SetPrice(0.5)
	r.until("the new price", func(eps []endpoint.Endpoint) bool { return near(eps[0].Price.USDPerHour, 0.51) })
	// A price that stays is confirmed by a later date now and then.
	_, eps, _ := r.fleet()
	asOf := eps[0].Price.AsOf
	r.until("a later date", func(eps []endpoint.Endpoint) bool { return eps[0].Price.AsOf.After(asOf) })
}

func near(a, b float64) bool { return a > b-1e-9 && a < b+1e-9 }

// TestQuiet sends nothing while nothing changes, prices' dates aside.
func TestQuiet(t *testing.T) {
	r := start(t, fakevast.Config{}, nil, fakevast.InstanceConfig{}, fakevast.InstanceConfig{})
	r.until("two that are ready", func(eps []endpoint.Endpoint) bool {
		return len(eps) == 2 && eps[0].State == endpoint.Ready && eps[1].State == endpoint.Ready
	})
	sets, _, _ := r.fleet()
	polls := r.p.Status().Polls
	r.status("20 polls", func() bool { return r.p.Status().Polls >= polls+20 })
	if now, _, _ := r.fleet(); now-sets > 20/4+1 {
		t.Errorf("%d sets in 20 polls without a change", now-sets)
	}
}

func TestNoSecretIsShown(t *testing.T) {
	secrets := []string{"vast-key", "own-key-of-it", "hf-secret-token", hookSecret, "wrong-key"}
	r := start(t, fakevast.Config{}, func(o *vast.Options) { o.WebhookSecret = hookSecret },
		fakevast.InstanceConfig{APIKey: "own-key-of-it", Env: map[string]string{"HF_TOKEN": "hf-secret-token"}}, fakevast.InstanceConfig{Template: fakevast.Portal})
	is := r.cloud.Instances()
	for _, i := range is {
		secrets = append(secrets, i.Token())
		r.state(i, endpoint.Ready, "")
	}
	is[0].Stall("docker run -e HF_TOKEN=hf-secret-token --api-key own-key-of-it " + is[0].Token())
	r.state(is[0], endpoint.Starting, "docker run")
	for _, k := range []fakevast.TroubleKind{fakevast.MalformedJSON, fakevast.AuthError, fakevast.Down} {
		r.cloud.Outage(k, true)
		r.status("a failing poll", func() bool { return r.p.Status().Failing > 0 })
		r.cloud.SetTroubles()
		r.status("a good poll", func() bool { return r.p.Status().Failing == 0 })
	}
	_, eps, _ := r.fleet()
	for where, text := range map[string]string{
		"the log": r.log.String(), "the status": toJSON(t, r.p.Status()), "the fleet": toJSON(t, eps), "the fleet, printed": fmt.Sprintf("%+v %#v", eps, eps),
	} {
		noSecrets(t, where, text, secrets...)
	}
	for _, q := range r.cloud.Requests() {
		noSecrets(t, "a URL", q.Path+"?"+q.Query, secrets...)
	}
	if _, err := attach(t, r.cloud, func(o *vast.Options) { o.Key = "wrong-key" }).p.Charges(t.Context(), time.Now(), time.Now()); err == nil {
		t.Error("charges were given for a wrong key")
	} else {
		noSecrets(t, "an error", err.Error(), "wrong-key")
	}
}

func TestWrongKeyIsNoEmptyFleet(t *testing.T) {
	for _, status := range []int{404, 401, 403} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			r := start(t, fakevast.Config{KeyStatus: status}, func(o *vast.Options) { o.Key = "wrong" }, fakevast.InstanceConfig{})
			s := r.status("a failing poll", func() bool { return r.p.Status().Failing > 0 })
			if !strings.Contains(s.LastError, "key is refused") {
				t.Errorf("the error is %q", s.LastError)
			}
			if sets, eps, _ := r.fleet(); sets > 0 {
				t.Errorf("a fleet was sent: %s", show(eps))
			}
		})
	}
}

// memory is a Share within one process.
type memory struct {
	mu      sync.Mutex // held during fetch: guards all below
	at      time.Time
	b       []byte
	fetched int
}

// Poll is vast.Share's.
func (m *memory) Poll(ctx context.Context, key string, every time.Duration, fetch func(context.Context) ([]byte, error)) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.b != nil && time.Since(m.at) < every {
		return m.b, nil
	}
	at := time.Now()
	b, err := fetch(ctx)
	if err == nil {
		m.at, m.b, m.fetched = at, b, m.fetched+1
	}
	if strings.Contains(key, "vast-key") {
		return nil, errors.New("the name of what is shared holds the key")
	}
	return b, err
}

func TestReplicasShareOnePoller(t *testing.T) {
	m := &memory{}
	r := start(t, fakevast.Config{}, func(o *vast.Options) { o.Share = m }, fakevast.InstanceConfig{APIKey: "own-key-of-it"})
	others := []*rig{attach(t, r.cloud, func(o *vast.Options) { o.Share = m }), attach(t, r.cloud, func(o *vast.Options) { o.Share = m })}
	i := r.cloud.Instances()[0]
	for _, o := range append(others, r) {
		o.state(i, endpoint.Ready, "")
	}
	r.status("30 polls", func() bool { return r.p.Status().Polls > 30 })
	i.Outbid(fakevast.ExitedStopped)
	for _, o := range append(others, r) {
		o.p.Nudge(id(i))
		o.state(i, endpoint.Preempted, "")
	}
	polls := r.p.Status().Polls + others[0].p.Status().Polls + others[1].p.Status().Polls
	m.mu.Lock()
	defer m.mu.Unlock()
	if int64(m.fetched)*2 > polls {
		t.Errorf("three replicas asked the API %d times in %d polls", m.fetched, polls)
	}
	noSecrets(t, "what is shared", string(m.b), "own-key-of-it", i.Token(), "running")
	stranger := vast.New(vast.Options{Key: "another", ConsoleURL: r.cloud.ConsoleURL(), Share: m})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- stranger.Run(ctx, make(chan []endpoint.Endpoint)) }()
	m.mu.Unlock()
	r.status("its failing poll", func() bool { return stranger.Status().Failing > 0 })
	cancel()
	<-done
	m.mu.Lock()
	if s := stranger.Status().LastError; !strings.Contains(s, "another replica") && !strings.Contains(s, "key is refused") {
		t.Errorf("another account's list: %q", s)
	}
}

func TestClassify(t *testing.T) {
	instance := &endpoint.Endpoint{ID: "vast:1", Provider: "vast"}
	proxy := &endpoint.Endpoint{ID: "vast:serverless-qwen", Provider: "vast"}
	const html, js = "text/html; charset=utf-8", "application/json"
	for name, tc := range map[string]struct {
		ep     *endpoint.Endpoint
		status int
		ct     string
		body   string
		want   outcome.Class
		known  bool
	}{
		"placeholder 502":              {instance, 502, html, "<!DOCTYPE html>", outcome.NotReady, true},
		"placeholder 200":              {instance, 200, html, "", outcome.NotReady, true},
		"Caddy's 401":                  {instance, 401, "", "", outcome.UpstreamDenied, true},
		"vLLM's 401":                   {instance, 401, js, `{"error":"Unauthorized"}`, outcome.UpstreamDenied, true},
		"somebody's page":              {instance, 404, html, "<html>", outcome.UpstreamFault, true},
		"page without its type":        {instance, 405, "", " <html>", outcome.UpstreamFault, true},
		"model is another now":         {instance, 404, js, `{"object":"error","message":"The model x does not exist.","type":"NotFoundError","code":404}`, outcome.UpstreamFault, true},
		"model is another, new shape":  {instance, 404, js, `{"error":{"message":"The model x does not exist.","code":"model_not_found"}}`, outcome.UpstreamFault, true},
		"path that it lacks":           {instance, 404, js, `{"detail":"Not Found"}`, 0, false},
		"port speaks TLS":              {instance, 400, "text/plain", "Client sent an HTTP request to an HTTPS server.\n", outcome.UpstreamFault, true},
		"caller's 400":                 {instance, 400, js, `{"error":{"message":"max_tokens is too large"}}`, 0, false},
		"too large at Caddy":           {instance, 413, html, "<html>", 0, false},
		"engine's 500":                 {instance, 500, js, `{"error":{}}`, 0, false},
		"engine's 503":                 {instance, 503, js, `{"error":{}}`, 0, false},
		"full":                         {instance, 429, html, "<html>", 0, false},
		"proxy gives up":               {proxy, 504, "", "", outcome.NotReady, true},
		"proxy of another account":     {proxy, 404, js, `{"error":"Endpoint 'qwen' not found"}`, outcome.UpstreamDenied, true},
		"an instance's 504":            {instance, 504, js, "", 0, false},
		"another provider":             {&endpoint.Endpoint{ID: "runpod:1", Provider: "runpod"}, 502, html, "<html>", 0, false},
		"routed serverless, by itself": {&endpoint.Endpoint{ID: "vast:serverless-q", Provider: "vast", Dialect: endpoint.VastRoute}, 502, html, "<html>", 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, known := vast.Classify(tc.ep, tc.status, tc.ct, []byte(tc.body))
			if got != tc.want || known != tc.known {
				t.Errorf("%s, %v, want %s, %v", got, known, tc.want, tc.known)
			}
		})
	}
}

func TestCharges(t *testing.T) {
	from, to := time.Unix(1_767_225_600, 0), time.Unix(1_769_903_999, 0)
	var asked []url.Values
	p := vast.New(vast.Options{Key: "vast-key", Pace: 0.001, Transport: roundTrip(func(req *http.Request) (*http.Response, error) {
		q := req.URL.Query()
		asked = append(asked, q)
		if !q.Has("after_token") {
			return answer(req, 200, `{"success":true,"next_token":"t","results":[{"source":"instance-12","type":"instance","amount":38.421,"start":1730419200,"end":1730678400,
				"items":[{"type":"gpu","amount":37.344,"description":"96.000 hours at $0.389/hour"},{"type":"bwd","amount":1.077}]},{"source":"volume-7","amount":1}]}`), nil
		}
		return answer(req, 200, `{"success":true,"next_token":null,"results":[{"source":"instance-13","amount":"0.5"}]}`), nil
	})})
	got, err := p.Charges(t.Context(), from, to)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].ID != "vast:12" || got[0].USD != 38.421 || len(got[0].Items) != 2 || got[0].Items[0].Kind != "gpu" || got[0].Items[0].USD != 37.344 || got[0].From.Unix() != 1730419200 || got[1].USD != 0.5 {
		t.Errorf("%+v", got)
	}
	var f struct {
		Day struct{ GTE, LTE int64 }
	}
	if err := json.Unmarshal([]byte(asked[0].Get("select_filters")), &f); err != nil || f.Day.GTE != from.Unix() || f.Day.LTE != to.Unix() || len(asked) != 2 {
		t.Errorf("asked %v", asked)
	}
	if p.Status().Oddities["charge of something else than an instance"] != 1 {
		t.Errorf("oddities %v", p.Status().Oddities)
	}
	for name, body := range map[string]string{"failure": `{"success":false,"msg":"Must provide both 'day' gte and lte"}`, "no results": `{}`, "page": "<html>"} {
		p := vast.New(vast.Options{Key: "k", Pace: 0.001, Transport: roundTrip(func(req *http.Request) (*http.Response, error) { return answer(req, 200, body), nil })})
		if got, err := p.Charges(t.Context(), from, to); err == nil {
			t.Errorf("%s: %+v and no error", name, got)
		}
	}
}

// TestOtherIDs gives Nudge what is none of its own; it may neither block nor ask.
func TestOtherIDs(t *testing.T) {
	p := vast.New(vast.Options{Key: "k"})
	for range 3 { // Run is not there to take them
		for _, id := range []endpoint.ID{"", "vast:", "vast:serverless-q", "runpod:1", "vast:99"} {
			p.Nudge(id)
		}
	}
}

// TestClockSkew reads the provider's clock off its answers.
func TestClockSkew(t *testing.T) {
	for _, skew := range []time.Duration{0, -time.Hour} {
		r := start(t, fakevast.Config{}, func(o *vast.Options) {
			o.Now = func() time.Time { return time.Now().Add(-skew) }
		})
		s := r.status("a poll", func() bool { return !r.p.Status().LastGood.IsZero() })
		if (s.ClockSkew - skew).Abs() > 2*time.Second {
			t.Errorf("our clock is %s off, and %s is told", skew, s.ClockSkew)
		}
	}
}
