package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"headrace/gateway/config"
	"headrace/providers/fakecloud/fakevast"
	"headrace/router"
	"headrace/router/endpoint"
)

// rented is a gateway that was told nothing but the keys of accounts, and where the clouds are.
type rented struct {
	t    *testing.T
	app  *app
	log  *logBuffer
	base string
}

func startRented(t *testing.T, env map[string]string) *rented {
	t.Helper()
	cfg, err := config.Parse("", nil, config.Overrides{Listen: "127.0.0.1:0", Admin: "127.0.0.1:0"}, func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	})
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg.State.Timeout = 10 * time.Second // a busy machine has no replicas fall apart
	r := &rented{t: t, log: newLogBuffer()}
	if r.app, err = newApp(cfg, r.log); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- r.app.run(ctx, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", r.log)
		}
	})
	r.base = "http://" + r.app.listeners[0].Addr().String()
	return r
}

// until waits until the hosts are as wanted.
func (r *rented) until(what string, ok func([]router.HostView) bool) {
	r.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		hosts := r.app.router.Hosts()
		if ok(hosts) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			b, _ := json.MarshalIndent(hosts, "", " ")
			r.t.Fatalf("%s: not so after 20 s:\n%s", what, b)
		}
	}
}

// stateOf is a host's state, "" when there is no such host.
func stateOf(hosts []router.HostView, id string) string {
	for _, h := range hosts {
		if string(h.ID) == id {
			return h.State
		}
	}
	return ""
}

func ready(ids ...string) func([]router.HostView) bool {
	return func(hosts []router.HostView) bool {
		return !slices.ContainsFunc(ids, func(id string) bool { return stateOf(hosts, id) != "ready" })
	}
}

// chatted is an answer and who gave it.
type chatted struct {
	status   int
	endpoint string
	attempts string
	text     string
	done     bool // a stream's end mark came
	body     string
}

// chat asks for n tokens of a model.
func (r *rented) chat(model, prompt string, n int, stream bool) (c chatted) {
	r.t.Helper()
	body, err := json.Marshal(map[string]any{
		"model": model, "stream": stream, "max_tokens": n, "messages": []map[string]string{{"role": "user", "content": prompt}},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return r.ask(body, stream)
}

// ask sends a chat request.
func (r *rented) ask(body []byte, stream bool) (c chatted) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodPost, r.base+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	c.status, c.endpoint, c.attempts = res.StatusCode, res.Header.Get("X-Headrace-Endpoint"), res.Header.Get("X-Headrace-Attempts")
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		c.body = err.Error()
		return c
	}
	c.body = string(raw)
	if !stream {
		var a struct {
			Choices []struct{ Message struct{ Content string } }
		}
		if json.Unmarshal(raw, &a) == nil && len(a.Choices) > 0 {
			c.text = a.Choices[0].Message.Content
		}
		return c
	}
	sc := bufio.NewScanner(bytes.NewReader(raw))
	for sc.Scan() {
		data, ok := strings.CutPrefix(sc.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			c.done = true
			continue
		}
		var e struct {
			Choices []struct{ Delta struct{ Content string } }
		}
		if json.Unmarshal([]byte(data), &e) == nil && len(e.Choices) > 0 {
			c.text += e.Choices[0].Delta.Content
		}
	}
	return c
}

func startVast(t *testing.T, cfg fakevast.Config) *fakevast.Cloud {
	t.Helper()
	c, err := fakevast.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	return c
}

func vastEnv(c *fakevast.Cloud) map[string]string {
	return map[string]string{
		"VAST_API_KEY": "vast-key", "VAST_CONSOLE_URL": c.ConsoleURL(), "VAST_RUN_URL": c.RunURL(), "VAST_OPENAI_URL": c.OpenAIURL(), "VAST_POLL": "200ms",
	}
}

// TestZeroConfigVast finds, prices and uses instances with nothing but a key, loses one to a higher bid and takes it back at another port.
func TestZeroConfigVast(t *testing.T) {
	cloud := startVast(t, fakevast.Config{TimeScale: 1000, EngineScale: -1, Seed: 1})
	cheap := cloud.AddInstance(fakevast.InstanceConfig{IsBid: true, DPHBase: 0.2, UpPerTB: 5, DownPerTB: 2})
	dear := cloud.AddInstance(fakevast.InstanceConfig{DPHBase: 90})
	r := startRented(t, vastEnv(cloud))
	cheapID, dearID := fmt.Sprint("vast:", cheap.ID()), fmt.Sprint("vast:", dear.ID())
	r.until("both found", ready(cheapID, dearID))
	hosts := r.app.router.Hosts()
	for _, h := range hosts {
		if h.PriceBasis != "per_hour" || h.USDPerHour == nil || *h.USDPerHour < 0.2 || *h.USDPerHour > 91 || h.PriceSource == "" || h.GPU != "RTX 4090" || len(h.Models) != 1 {
			t.Errorf("host %+v", h)
		}
	}
	model := hosts[0].Models[0]
	for _, stream := range []bool{false, true} {
		if c := r.chat(model, "hello", 8, stream); c.status != 200 || c.endpoint != cheapID || c.text == "" || c.done != stream {
			t.Fatalf("answer %+v", c)
		}
	}
	before := cheap.URL()
	served := func() int64 {
		for _, h := range r.app.router.Hosts() {
			if string(h.ID) == cheapID {
				return h.Requests
			}
		}
		return -1
	}()

	cheap.Outbid(0)
	if c := r.chat(model, "hello", 8, false); c.status != 200 || c.endpoint != dearID {
		t.Errorf("after the preemption: %+v", c)
	}
	r.until("preempted", func(hs []router.HostView) bool { return stateOf(hs, cheapID) == "preempted" })
	cheap.Resume()
	r.until("back", ready(cheapID))
	if cheap.URL() == before {
		t.Error("the fake gave it the same port: nothing was shown")
	}
	r.until("answers again", func([]router.HostView) bool {
		c := r.chat(model, "again", 8, true)
		return c.status == 200 && c.endpoint == cheapID && c.done
	})
	for _, h := range r.app.router.Hosts() {
		if string(h.ID) == cheapID && h.Requests < served {
			t.Errorf("its history is gone: %d requests, %d before", h.Requests, served)
		}
	}
	if l := r.log.String(); strings.Contains(l, "vast-key") || strings.Contains(l, cheap.Bearer()) && cheap.Bearer() != "" {
		t.Error("a key is in the log")
	}
}

func idText(id int64) endpoint.ID { return endpoint.ID(strconv.FormatInt(id, 10)) }
