package static_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"headrace/providers/fakecloud"
	"headrace/providers/static"
	"headrace/router/endpoint"
)

// discover runs p and returns what it sends.
func discover(t *testing.T, p *static.Provider) <-chan []endpoint.Endpoint {
	t.Helper()
	out := make(chan []endpoint.Endpoint)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = p.Run(ctx, out) }()
	t.Cleanup(func() { cancel(); <-done })
	return out
}

func next(t *testing.T, out <-chan []endpoint.Endpoint) endpoint.Endpoint {
	t.Helper()
	select {
	case eps := <-out:
		return eps[0]
	case <-time.After(time.Minute):
		t.Fatal("nothing was discovered")
		return endpoint.Endpoint{}
	}
}

func names(ep endpoint.Endpoint) []string {
	var out []string
	for _, s := range ep.Served {
		out = append(out, s.Name)
	}
	return out
}

func TestAsksUntilAnswered(t *testing.T) {
	h, err := fakecloud.StartHost(t.Context(), fakecloud.HostConfig{Name: "a", Models: []string{"m1", "m2"}, APIKey: "sk-x", MaxModelLen: 4096})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Stop)
	h.Kill()
	p := static.New([]endpoint.Endpoint{{ID: "static:a", BaseURL: h.URL(), APIKey: "sk-x"}}, static.Options{First: time.Millisecond})
	out := discover(t, p)
	if got := next(t, out); len(got.Served) != 0 || got.BaseURL != h.URL()+"/v1" {
		t.Fatalf("at first: %v at %s", names(got), got.BaseURL)
	}
	if err := h.Revive(); err != nil {
		t.Fatal(err)
	}
	got := next(t, out)
	if !slices.Equal(names(got), []string{"m1", "m2"}) || got.Served[0].MaxContext != 4096 || got.Served[0].Card == nil || got.State != endpoint.Ready {
		t.Errorf("when it is up: %+v", got)
	}
}

func TestConfiguredModelsAreNotAsked(t *testing.T) {
	var asked atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(srv.Close)
	p := static.New([]endpoint.Endpoint{
		{ID: "static:a", BaseURL: srv.URL + "/v1", Served: []endpoint.Served{{Name: "m"}}},
		{ID: "static:sleeping", BaseURL: srv.URL + "/v1", Tenure: endpoint.Serverless},
	}, static.Options{First: time.Millisecond})
	out := discover(t, p)
	if got := next(t, out); !slices.Equal(names(got), []string{"m"}) {
		t.Errorf("served %v", names(got))
	}
	if asked.Load() != 0 {
		t.Error("a host was asked: one has its models in the config, the other would wake a worker")
	}
}

func TestKnownModelsStay(t *testing.T) {
	known := map[endpoint.ID]endpoint.Endpoint{"static:a": {BaseURL: "http://127.0.0.1:1/v1", Served: []endpoint.Served{{Name: "m"}}}}
	p := static.New([]endpoint.Endpoint{{ID: "static:a", BaseURL: "http://127.0.0.1:1/v1"}}, static.Options{Known: known})
	if got := names(p.Hosts()[0]); !slices.Equal(got, []string{"m"}) {
		t.Errorf("after a reload the host serves %v, want what it told before", got)
	}
	p = static.New([]endpoint.Endpoint{{ID: "static:a", BaseURL: "http://127.0.0.1:2/v1"}}, static.Options{Known: known})
	if got := names(p.Hosts()[0]); len(got) != 0 {
		t.Errorf("at another address it serves %v, want nothing known", got)
	}
}

// TestOddAnswers checks that nothing is learned from what is no model list, and that the key goes nowhere else.
func TestOddAnswers(t *testing.T) {
	var leaked atomic.Int64
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { leaked.Add(1) }))
	t.Cleanup(thief.Close)
	answers := []http.HandlerFunc{
		func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, thief.URL, http.StatusFound) },
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"data":[]}`)) },
		func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"data":[7,{"id":""}]}`)) },
		func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"data":[7,{"id":"good","x":1}]}`))
		},
	}
	var n atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answers[min(int(n.Add(1)), len(answers))-1](w, r)
	}))
	t.Cleanup(srv.Close)
	out := discover(t, static.New([]endpoint.Endpoint{{ID: "static:a", BaseURL: srv.URL + "/v1", APIKey: "sk-x"}}, static.Options{First: time.Millisecond, Refresh: 5 * time.Millisecond}))
	if got := next(t, out); len(got.Served) != 0 {
		t.Errorf("at first: %v", names(got))
	}
	if got := next(t, out); !slices.Equal(names(got), []string{"good"}) {
		t.Errorf("learned %v, want the one good entry", names(got))
	}
	if leaked.Load() != 0 {
		t.Error("a redirect was followed")
	}
}
