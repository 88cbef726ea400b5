package providers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/providers"
	"headrace/providers/api"
	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakerunpod"
	"headrace/providers/fakecloud/fakevast"
	"headrace/providers/runpod"
	"headrace/providers/static"
	"headrace/providers/vast"
	"headrace/providers/vast/serverless"
	"headrace/router/endpoint"
)

// subject is one provider with the cloud it asks.
type subject struct {
	d       providers.Discoverer
	status  func() api.Status // nil where there is no account
	change  func()            // makes the fleet another one
	outage  func(on bool)     // of the control plane; nil where there is none
	nudge   func()            // looks at once
	secrets []string
	rented  bool
}

// safeLog is written to by the provider's goroutines.
type safeLog struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *safeLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *safeLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

const (
	contractPatience = time.Minute
	contractPoll     = 50 * time.Millisecond
)

// subjects are all providers there are.
func subjects() map[string]func(t *testing.T, log *slog.Logger) subject {
	return map[string]func(t *testing.T, log *slog.Logger) subject{
		"static": func(t *testing.T, log *slog.Logger) subject {
			t.Helper()
			h, err := fakecloud.StartHost(t.Context(), fakecloud.HostConfig{Name: "a", APIKey: "sk-static-secret"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(h.Stop)
			ep := h.Endpoint()
			ep.Served = nil // so that it is asked, which changes the fleet by itself
			return subject{d: static.New([]endpoint.Endpoint{ep}, static.Options{Log: log}), change: func() {}, secrets: []string{"sk-static-secret"}}
		},
		"runpod": func(t *testing.T, log *slog.Logger) subject {
			t.Helper()
			c, err := fakerunpod.Start(t.Context(), fakerunpod.Config{APIKey: "rpa_secret_key", TimeScale: 0, Seed: 1, Management: fakerunpod.Management{PerMinute: 1e6, PerHour: 1e7, PerDay: 1e8}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Stop)
			c.AddEndpoint(fakerunpod.EndpointConfig{ID: "a", Env: map[string]string{"HF_TOKEN": "hf_env_secret"}})
			p := runpod.New(runpod.Options{
				Key: "rpa_secret_key", ManagementURL: c.ManagementURL(), QueueURL: c.QueueURL(), BalancerURL: c.BalancerURL(), PodURL: c.PodURL(),
				Poll: contractPoll, HealthPoll: contractPoll, CatalogPoll: contractPoll, Log: log,
			})
			return subject{
				d: p, status: p.Status, rented: true, secrets: []string{"rpa_secret_key", "hf_env_secret"},
				change: func() { c.AddEndpoint(fakerunpod.EndpointConfig{ID: "b"}) },
				outage: func(on bool) { c.Outage(fakerunpod.ManagementPlane, on); c.Outage(fakerunpod.QueuePlane, on) },
				nudge:  func() { p.Nudge("runpod:a") },
			}
		},
		"vast": func(t *testing.T, log *slog.Logger) subject {
			t.Helper()
			c, err := fakevast.Start(t.Context(), fakevast.Config{APIKey: "vast-secret-key", Seed: 1})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Stop)
			i := c.AddInstance(fakevast.InstanceConfig{IsBid: true})
			p := vast.New(vast.Options{Key: "vast-secret-key", ConsoleURL: c.ConsoleURL(), Poll: contractPoll, Pace: 0.001, Log: log})
			return subject{
				d: p, status: p.Status, rented: true, secrets: []string{"vast-secret-key", i.Token()},
				change: func() { c.AddInstance(fakevast.InstanceConfig{}) },
				outage: func(on bool) { c.Outage(fakevast.HTML502, on) },
				nudge:  func() { p.Nudge(endpoint.ID(fmt.Sprint("vast:", i.ID()))) },
			}
		},
		"vast serverless": func(t *testing.T, log *slog.Logger) subject {
			t.Helper()
			c, err := fakevast.Start(t.Context(), fakevast.Config{APIKey: "vast-secret-key", Seed: 1})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Stop)
			c.AddServerless(fakevast.ServerlessConfig{Name: "a", APIKey: "endpoint-secret", Ready: 1})
			p := serverless.New(serverless.Options{
				Key: "vast-secret-key", ConsoleURL: c.ConsoleURL(), RunURL: c.RunURL(), OpenAIURL: c.OpenAIURL(), Poll: contractPoll, Pace: 0.001, Log: log,
			})
			return subject{
				d: p, status: p.Status, rented: true, secrets: []string{"vast-secret-key", "endpoint-secret"},
				change: func() { c.AddServerless(fakevast.ServerlessConfig{Name: "b", Ready: 1}) },
				outage: func(on bool) { c.Outage(fakevast.HTML502, on) },
				nudge:  func() { p.Nudge("vast:serverless-a") },
			}
		},
	}
}

// TestContract holds every provider to what Discoverer promises.
func TestContract(t *testing.T) {
	for name, start := range subjects() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			logs := &safeLog{}
			s := start(t, slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug})))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			out, done := make(chan []endpoint.Endpoint), make(chan error, 1)
			go func() { done <- s.d.Run(ctx, out) }()

			first := next(t, out, func(eps []endpoint.Endpoint) bool { return len(eps) == 1 })
			checkSet(t, first, s.rented)
			id := first[0].ID
			first[0] = endpoint.Endpoint{ID: "spoiled"} // the receiver owns the slice

			s.change()
			second := next(t, out, func(eps []endpoint.Endpoint) bool {
				return len(eps) == 2 || s.outage == nil && len(eps) == 1 && len(eps[0].Served) > 0
			})
			checkSet(t, second, s.rented)
			if !slices.ContainsFunc(second, func(ep endpoint.Endpoint) bool { return ep.ID == id }) {
				t.Errorf("%s is gone, or the receiver's slice is the provider's own: %v", id, second)
			}

			if s.outage != nil {
				outage(t, s, out, 2)
			}

			cancel()
			select {
			case err := <-done:
				if err != nil && err != context.Canceled { //nolint:errorlint // it is to be ctx's own, or none
					t.Errorf("Run ended with %v", err)
				}
			case <-time.After(contractPatience):
				t.Fatal("Run did not end with its context")
			}
			select {
			case _, open := <-out:
				if !open {
					t.Error("Run closed the channel")
				}
			default:
			}

			said := logs.String() + fmt.Sprintf("%+v %#v", second, second)
			if s.status != nil {
				b, err := json.Marshal(s.status())
				if err != nil {
					t.Error(err)
				}
				said += string(b)
			}
			for _, secret := range s.secrets {
				if secret != "" && strings.Contains(said, secret) {
					t.Errorf("the secret %q is in logs, status or endpoints", secret)
				}
			}
		})
	}
}

// next waits for a set that is as wanted.
func next(t *testing.T, out <-chan []endpoint.Endpoint, ok func([]endpoint.Endpoint) bool) []endpoint.Endpoint {
	t.Helper()
	late := time.After(contractPatience)
	var last []endpoint.Endpoint
	for {
		select {
		case last = <-out:
			if ok(last) {
				return last
			}
		case <-late:
			t.Fatalf("no such set came; the last one was %+v", last)
		}
	}
}

// outage holds that failed polls send nothing, and are told in the status.
func outage(t *testing.T, s subject, out <-chan []endpoint.Endpoint, had int) {
	t.Helper()
	s.outage(true)
	good := s.status().LastGood
	if good.IsZero() {
		t.Error("status does not say when the fleet was read last")
	}
	late := time.After(contractPatience)
	tick := time.NewTicker(contractPoll / 5)
	defer tick.Stop()
	for s.status().Failing < 2 {
		select {
		case eps := <-out:
			if len(eps) != had {
				t.Errorf("an outage changed the fleet of %d hosts to %d", had, len(eps))
			}
		case <-tick.C:
			s.nudge()
		case <-late:
			t.Fatalf("failed polls are not told: %+v", s.status())
		}
	}
	if st := s.status(); st.LastError == "" || st.Endpoints != had {
		t.Errorf("status in an outage: %+v", st)
	}
	s.outage(false)
	for st := s.status(); st.Failing > 0 || !st.LastGood.After(good); st = s.status() {
		select {
		case eps := <-out:
			if len(eps) != had {
				t.Errorf("the end of an outage changed the fleet of %d hosts to %d", had, len(eps))
			}
		case <-tick.C:
		case <-late:
			t.Fatalf("it does not recover: %+v", st)
		}
	}
}

// checkSet holds that endpoints are whole.
func checkSet(t *testing.T, eps []endpoint.Endpoint, rented bool) {
	t.Helper()
	seen := map[endpoint.ID]bool{}
	for i := range eps {
		ep := &eps[i]
		u, err := url.Parse(ep.BaseURL)
		switch {
		case ep.Provider == "" || !strings.HasPrefix(string(ep.ID), ep.Provider+":") || seen[ep.ID]:
			t.Errorf("id %q of provider %q", ep.ID, ep.Provider)
		case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || strings.HasSuffix(ep.BaseURL, "/"):
			t.Errorf("%s: base URL %q", ep.ID, ep.BaseURL)
		case ep.Price.Basis != endpoint.BasisUnknown && (ep.Price.AsOf.IsZero() || ep.Price.Source == ""):
			t.Errorf("%s: a price without source or age: %+v", ep.ID, ep.Price)
		case rented && (ep.Tenure == endpoint.TenureUnknown || ep.Trust == endpoint.TrustUnknown):
			t.Errorf("%s: tenure %s, trust %s", ep.ID, ep.Tenure, ep.Trust)
		case ep.State.String() == "" || strings.HasPrefix(ep.State.String(), "invalid"):
			t.Errorf("%s: state %s", ep.ID, ep.State)
		case slices.ContainsFunc(ep.Served, func(m endpoint.Served) bool { return m.Name == "" }):
			t.Errorf("%s serves a model without a name", ep.ID)
		}
		seen[ep.ID] = true
	}
}
