package serverless_test

import (
	"context"
	"testing"
	"time"

	"headrace/providers/api"
	"headrace/providers/fakecloud/fakevast"
	"headrace/providers/vast"
	"headrace/providers/vast/serverless"
	"headrace/router/endpoint"
)

// TestOneClientPerAccount lets instances and serverless endpoints of one account ask together: neither comes too soon after the other.
func TestOneClientPerAccount(t *testing.T) {
	const scale = 20
	c, err := fakevast.Start(t.Context(), fakevast.Config{APIKey: "k", Seed: 1, RateLimits: true, RateScale: scale})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	for range 30 {
		c.AddInstance(fakevast.InstanceConfig{})
	}
	c.AddServerless(fakevast.ServerlessConfig{Name: "a", Ready: 2})
	console := api.New(api.Options{Provider: "vast", Key: "k"})
	const poll = 100 * time.Millisecond
	instances := vast.New(vast.Options{Key: "k", ConsoleURL: c.ConsoleURL(), Poll: poll, Pace: 1.0 / scale, Client: console})
	endpoints := serverless.New(serverless.Options{
		Key: "k", ConsoleURL: c.ConsoleURL(), RunURL: c.RunURL(), OpenAIURL: c.OpenAIURL(), Poll: poll, Prices: time.Millisecond, Pace: 1.0 / scale, Client: console,
	})
	ctx, cancel := context.WithCancel(t.Context())
	out, done := make(chan []endpoint.Endpoint), make(chan error, 2)
	go func() { done <- instances.Run(ctx, out) }()
	go func() { done <- endpoints.Run(ctx, out) }()
	late := time.NewTimer(20 * time.Second)
	defer late.Stop()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for instances.Status().Polls < 4 || endpoints.Status().Polls < 4 {
		select {
		case <-out:
		case <-again.C:
		case <-late.C:
			t.Fatalf("instances %+v, endpoints %+v", instances.Status(), endpoints.Status())
		}
	}
	cancel()
	<-done
	<-done
	s := c.Stats()
	if s.TooSoon > 0 {
		t.Errorf("%d calls came too soon: %v", s.TooSoon, s.Calls)
	}
	// Each call is counted once: by the instances' provider those to the console, by the other those to the engine.
	counted := map[string]int64{}
	for _, st := range []api.Status{instances.Status(), endpoints.Status()} {
		for _, call := range st.Calls {
			counted[call.Name] += call.Calls
		}
	}
	for _, name := range []string{"GET /api/v1/instances/", "GET /api/v0/endptjobs/"} {
		if n := int64(s.Calls[name]); n == 0 || counted[name] < n || counted[name] > n+1 { // one may have been broken off by cancel
			t.Errorf("%s: %d calls are counted, the fake saw %d", name, counted[name], n)
		}
	}
}
