package main

import (
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"headrace/gateway/config"
	"headrace/providers/fakecloud/fakerunpod"
	"headrace/providers/fakecloud/fakevast"
	"headrace/providers/runpod"
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

const rentedYAML = `
listen: "127.0.0.1:0"
admin: "127.0.0.1:0"
providers:
  runpod: {api_key: %q, management_url: %q, queue_url: %q}
`

// TestReloadKeepsWhatWasLearned reloads the config behind an answer that has told the model's name and what a cold start takes.
func TestReloadKeepsWhatWasLearned(t *testing.T) {
	t.Parallel() // some of it waits for looks at /health
	cloud := startRunPod(t, fakerunpod.Config{TimeScale: 10, Seed: 1})
	cloud.AddEndpoint(fakerunpod.EndpointConfig{ID: "e1", Name: "chat", Models: []string{"org/told"}, NoModelEnv: true, ColdStart: 30 * time.Second, IdleTimeout: time.Hour})
	hup := make(chan os.Signal)
	yaml := fmt.Sprintf(rentedYAML, cloud.Key(), cloud.ManagementURL(), cloud.QueueURL())
	running := startApp(t, t.TempDir(), yaml, hup)
	r := &rented{t: t, app: running.app, log: running.log, base: running.base}
	model := func(id, want string) func([]router.HostView) bool {
		return func(hs []router.HostView) bool {
			return slices.ContainsFunc(hs, func(h router.HostView) bool { return string(h.ID) == id && slices.Equal(h.Models, []string{want}) })
		}
	}
	r.until("found without its model", model("runpod:e1", "chat"))
	answered := make(chan chatted, 1)
	go func() {
		defer close(answered)
		answered <- r.chat("chat", "hello", 8, false)
	}()
	r.until("the job is there", func([]router.HostView) bool { return len(cloud.Endpoint("e1").Jobs()) == 1 })
	r.app.rented.Load().runpod.Nudge("runpod:e1") // so that it is seen asleep while the job waits
	if c := <-answered; c.status != 200 {
		t.Fatalf("%+v", c)
	}
	r.until("the model is learned", model("runpod:e1", "org/told"))
	coldStart := func() time.Duration { return r.app.router.Snapshot().Endpoint("runpod:e1").Price.ColdStart }
	const assumed = 45 * time.Second // providers/runpod's, where nothing is known
	r.until("the cold start is learned", func([]router.HostView) bool { return coldStart() != assumed })
	before := coldStart()

	cloud.AddEndpoint(fakerunpod.EndpointConfig{ID: "e2", Name: "second", Env: map[string]string{"MODEL_NAME": "org/second"}})
	running.write(t, yaml+"log: {level: debug}\n")
	running.log.await(t, "config reloaded", 1)
	r.until("the account was read anew", model("runpod:e2", "org/second"))
	if hs := r.app.router.Hosts(); !model("runpod:e1", "org/told")(hs) {
		t.Errorf("the model's name is forgotten: %+v", hs)
	}
	if after := coldStart(); after != before {
		t.Errorf("a cold start takes %v, before the reload it took %v", after, before)
	}
}

// TestReloadChangesJobTTL has jobs carry the time to live of the config that is in force.
func TestReloadChangesJobTTL(t *testing.T) {
	t.Parallel()
	cloud := startRunPod(t, fakerunpod.Config{TimeScale: 100, Seed: 1})
	cloud.AddEndpoint(fakerunpod.EndpointConfig{ID: "e1", Name: "chat", Env: map[string]string{"MODEL_NAME": "org/m"}, ColdStart: time.Second, IdleTimeout: time.Second})
	yaml := fmt.Sprintf(rentedYAML, cloud.Key(), cloud.ManagementURL(), cloud.QueueURL())
	withTTL := func(ttl string) string {
		return strings.Replace(yaml, "runpod: {", "runpod: {job_ttl: "+ttl+", endpoints: [{match: \"*\", native: true}], ", 1) // always by jobs
	}
	running := startApp(t, t.TempDir(), withTTL("20m"), make(chan os.Signal))
	r := &rented{t: t, app: running.app, log: running.log, base: running.base}
	r.until("found", func(hs []router.HostView) bool { return stateOf(hs, "runpod:e1") == "cold" })
	ttls := func() (ds []time.Duration) {
		for _, j := range cloud.Endpoint("e1").Jobs() {
			ds = append(ds, j.TTL)
		}
		return ds
	}
	r.chat("org/m", "hello", 8, false)
	if got := ttls(); !slices.Contains(got, 20*time.Minute) {
		t.Fatalf("jobs live %v", got)
	}
	running.write(t, withTTL("40m"))
	running.log.await(t, "config reloaded", 1)
	r.chat("org/m", "hello again", 8, false)
	if got := ttls(); !slices.Contains(got, 40*time.Minute) { // the first one may be forgotten by now
		t.Errorf("jobs live %v", got)
	}
}

// TestNativeEndpointsGetWhatTheyCanExpress has a handler without an OpenAI route next to one that has it: a request for JSON gets
// JSON or an error, never prose.
func TestNativeEndpointsGetWhatTheyCanExpress(t *testing.T) {
	t.Parallel() // some of it waits for looks at /health
	cloud := startRunPod(t, fakerunpod.Config{TimeScale: 100, Seed: 1})
	for id, generation := range map[string]fakerunpod.Generation{"bare": fakerunpod.V23Native, "full": fakerunpod.V24} {
		cloud.AddEndpoint(fakerunpod.EndpointConfig{ID: id, Name: id, Generation: generation, Env: map[string]string{"MODEL_NAME": "org/m"}, WorkersMin: 1, IdleTimeout: time.Hour})
	}
	start := func(endpoints string) *rented {
		yaml := strings.Replace(fmt.Sprintf(rentedYAML, cloud.Key(), cloud.ManagementURL(), cloud.QueueURL()), "runpod: {", "runpod: {endpoints: "+endpoints+", ", 1)
		running := startApp(t, t.TempDir(), yaml, make(chan os.Signal))
		r := &rented{t: t, app: running.app, log: running.log, base: running.base}
		r.until("found", func(hs []router.HostView) bool { return len(hs) == 1+strings.Count(endpoints, ",full") })
		return r
	}
	ask := func(r *rented, members string, stream bool) chatted {
		return r.ask(fmt.Appendf(nil, `{"model":"org/m","max_tokens":8,"messages":[{"role":"user","content":"hello"}],"stream":%v%s}`, stream, members), stream)
	}
	const form = `,"response_format":{"type":"json_object"}`
	both, alone := start("[{match: bare, native: true},full]"), start("[{match: bare, native: true}]")
	for _, stream := range []bool{false, true} {
		for range 4 {
			if c := ask(both, form, stream); c.status != 200 || c.endpoint != "runpod:full" || !strings.HasPrefix(c.text, "{") {
				t.Errorf("stream %v: %+v", stream, c)
			}
		}
		if c := ask(alone, form, stream); c.status != 400 || !strings.Contains(c.body, `"param":"response_format"`) || !strings.Contains(c.body, "unsupported_parameter") {
			t.Errorf("stream %v: %+v", stream, c)
		}
		if c := ask(alone, `,"response_format":{"type":"text"},"stop":["never"]`, stream); c.status != 200 || c.endpoint != "runpod:bare" || c.text == "" {
			t.Errorf("stream %v: %+v", stream, c)
		}
	}
	if n := len(cloud.Endpoint("bare").Jobs()); n != 2 {
		t.Errorf("the handler without an OpenAI route got %d jobs, want 2", n)
	}
}

// TestPodsAsConfigured hands what the config says of pods to their provider.
func TestPodsAsConfigured(t *testing.T) {
	cfg, err := config.Parse("f.yaml", []byte(`providers: {runpod: {api_key: k, pods: ["a*", {match: b, port: 9000, tcp: true, spot: true, api_key: pk, models: [m]}]}}`), config.Overrides{},
		func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	got := runpodOptions(cfg.Providers.RunPod, slog.New(slog.DiscardHandler)).Pods
	want := []runpod.PodOptions{{Match: "a*", Port: 8000}, {Match: "b", Port: 9000, TCP: true, Spot: true, Key: "pk", Models: []string{"m"}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("pods %+v, want %+v", got, want)
	}
}
