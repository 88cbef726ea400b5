package serverless_test

import (
	"context"
	"testing"

	"headrace/providers/vast/serverless"
	"headrace/router/endpoint"
)

// TestInherit lets a new Provider, as after a reload of the config, know model and price of an endpoint that has gone to sleep.
func TestInherit(t *testing.T) {
	f := newFake(t)
	f.add(1, "qwen", nil)
	f.workers[1] = []any{at(11, "idle")}
	f.instances[11] = row(11, 0.72, map[string]any{"extra_env": []any{[]any{"MODEL_NAME", "Qwen/Qwen3-8B"}}})
	first := serverless.New(f.options())
	ctx, cancel := context.WithCancel(t.Context())
	out, done := make(chan []endpoint.Endpoint), make(chan error, 1)
	go func() { done <- first.Run(ctx, out) }()
	awake := (<-out)[0]
	cancel()
	<-done
	if awake.Served[0].Name != "Qwen/Qwen3-8B" || !near(awake.Price.USDPerWorkerSecond, 0.0002) {
		t.Fatalf("awake: %+v", awake)
	}
	f.set(func() { f.workers[1] = []any{} })
	for name, change := range map[string]func(*serverless.Options){
		"":                func(*serverless.Options) {},
		"another account": func(o *serverless.Options) { o.Key = "another" },
		"asked elsewhere": func(o *serverless.Options) { o.ConsoleURL = "http://127.0.0.1:1" },
		"another engine":  func(o *serverless.Options) { o.RunURL = "http://127.0.0.1:1" },
	} {
		t.Run("heir of "+name, func(t *testing.T) {
			o := f.options()
			change(&o)
			between := serverless.New(o) // ended before its first look
			between.Inherit(first)
			p := serverless.New(f.options())
			p.Inherit(between)
			ep := runs(t, p).fleet()[0]
			if ep.State != endpoint.Cold || ep.Served[0].Unnamed != (name != "") || (ep.Price.Basis == endpoint.PerWorkerSecond) != (name == "") {
				t.Errorf("%+v", ep)
			}
		})
	}
}

// TestInheritPayload tries no payload form again that the workers did not understand.
func TestInheritPayload(t *testing.T) {
	f := newFake(t)
	k := f.addWorker(true, chat)
	k.bare = true
	fr, first := f.front(f.options(), f.routed())
	if r := fr.post(t, t.Context(), plain); r.status != 200 || k.calls() != 2 {
		t.Fatalf("status %d after %d calls", r.status, k.calls())
	}
	heir, p := f.front(f.options(), f.routed())
	p.Inherit(first)
	if r := heir.post(t, t.Context(), plain); r.status != 200 || k.calls() != 3 {
		t.Errorf("status %d after %d calls, want 3", r.status, k.calls())
	}
}
