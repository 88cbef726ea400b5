package main

import (
	"log/slog"
	"testing"

	"headrace/gateway/config"
	"headrace/providers/fakecloud/fakevast"
	"headrace/router"
)

// cloudsConfig is the config of an environment alone.
func cloudsConfig(t *testing.T, env map[string]string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("", nil, config.Overrides{}, func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestOneClientPerAccount has instances and serverless endpoints of an account keep Vast.ai's intervals together.
func TestOneClientPerAccount(t *testing.T) {
	t.Parallel() // most of it waits for the intervals
	cloud := startVast(t, fakevast.Config{TimeScale: 1000, EngineScale: -1, Seed: 1, RateLimits: true})
	i := cloud.AddInstance(fakevast.InstanceConfig{})
	cloud.AddServerless(fakevast.ServerlessConfig{Name: "a", Ready: 1})
	env := vastEnv(cloud)
	env["VAST_SERVERLESS"] = "1"
	r := startRented(t, env)
	r.until("both priced", func(hs []router.HostView) bool {
		n := 0
		for _, h := range hs {
			if h.USDPerHour != nil {
				n++
			}
		}
		return n >= 2 && stateOf(hs, "vast:serverless-a") == "ready" && stateOf(hs, "vast:"+string(idText(i.ID()))) == "ready"
	})
	if s := cloud.Stats(); s.TooSoon > 0 {
		t.Errorf("%d calls came too soon: %v", s.TooSoon, s.Calls)
	}
}

// TestClientOutlivesReload keeps the count of what must lie between two calls while key and address stay.
func TestClientOutlivesReload(t *testing.T) {
	env := map[string]string{"VAST_API_KEY": "one", "VAST_CONSOLE_URL": "http://127.0.0.1:1"}
	first := newClouds(cloudsConfig(t, env), nil, slog.New(slog.DiscardHandler))
	if same := first.next(cloudsConfig(t, env), nil, slog.New(slog.DiscardHandler)); same.console != first.console {
		t.Error("the same account got another client")
	}
	for name, value := range map[string]string{"VAST_API_KEY": "two", "VAST_CONSOLE_URL": "http://127.0.0.1:2"} {
		changed := map[string]string{"VAST_API_KEY": "one", "VAST_CONSOLE_URL": "http://127.0.0.1:1", name: value}
		if other := first.next(cloudsConfig(t, changed), nil, slog.New(slog.DiscardHandler)); other.console == first.console {
			t.Errorf("another %s, and the same client", name)
		}
	}
}
