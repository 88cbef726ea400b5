package script

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"headrace/providers/fakecloud"
)

const eventFleet = `
seed: 1
time_scale: 1000
engine_scale: 1000
runpod:
  endpoints:
    - {name: busy, workers_min: 1, cold_start: 5s, idle_timeout: 10m}
    - {name: idle, cold_start: 5s}
  pods: [{name: spot, spot: true}, {name: public, tcp: true}]
vast:
  instances: [{name: bid, bid: 0.4}, {name: demand, usd_per_hour: 0.9}]
events: [{at: 0s, %s}]
`

// face is what the clouds show by HTTP.
type face struct {
	t      *testing.T
	c      *Clouds
	first  map[string]string // where things were before the event
	jobs   map[string]string // submitted, by endpoint
	hooked atomic.Int64      // deliveries of outbid events
}

// seen is an answer; status is 0 without one.
type seen struct {
	status int
	body   string
	err    error
}

// at reads what dotted path leads to in a JSON answer, "" where it leads nowhere.
func (s seen) at(path ...any) string {
	var v any
	if json.Unmarshal([]byte(s.body), &v) != nil {
		return ""
	}
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return ""
			}
			v = l[p]
		}
	}
	return fmt.Sprint(v)
}

// some tells whether /health counts workers of the kind.
func (s seen) some(kind string) bool {
	n, err := strconv.Atoi(s.at("workers", kind))
	return err == nil && n > 0
}

var eventClient = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}} //nolint:gochecknoglobals // each request dials

func (f *face) ask(method, url, key, body string) seen {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	res, err := eventClient.Do(req)
	if err != nil {
		return seen{err: err}
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	return seen{res.StatusCode, string(b), err}
}

func (f *face) vast(path string) seen {
	return f.ask("GET", f.c.Vast.ConsoleURL()+path, "vast-key", "")
}

func (f *face) manage(path string) seen {
	return f.ask("GET", f.c.RunPod.ManagementURL()+path, f.c.RunPod.Key(), "")
}

func (f *face) queue(method, path string) seen {
	return f.ask(method, f.c.RunPod.QueueURL()+path, f.c.RunPod.Key(), `{"input":{"openai_route":"/v1/models"}}`)
}

// row is an instance in Vast.ai's list, by its label.
func (f *face) row(name string) seen {
	s := f.vast(`/api/v1/instances/?select_filters=%7B%22label%22%3A%7B%22eq%22%3A%22` + name + `%22%7D%7D`)
	var list struct{ Instances []json.RawMessage }
	if json.Unmarshal([]byte(s.body), &list) == nil && len(list.Instances) == 1 {
		s.body = string(list.Instances[0])
	}
	return s
}

// address is where the list says that an instance is reached.
func (f *face) address(name string) string {
	r := f.row(name)
	return "http://" + r.at("public_ipaddr") + ":" + r.at("ports", "8000/tcp", 0, "HostPort")
}

func (f *face) states(name string) string {
	r := f.row(name)
	return r.at("actual_status") + "/" + r.at("cur_state") + "/" + r.at("next_state") + "/" + r.at("intended_status")
}

func (f *face) models(url string) seen { return f.ask("GET", url+"/v1/models", "", "") }

func (f *face) podURL(name string) string {
	return strings.NewReplacer("{id}", name, "{port}", "8000").Replace(f.c.RunPod.PodURL())
}

func (f *face) podPort(name string) string {
	return f.manage("/pods/"+name).at("runtime", "ports", 0, "public")
}

func (f *face) worker(name string) string {
	return f.manage("/serverless/"+name+"/workers").at("workers", 0, "id")
}

// runs submits a job once, and tells how it fares.
func (f *face) runs(name string) string {
	if f.jobs[name] == "" {
		f.jobs[name] = f.queue("POST", "/"+name+"/run").at("id")
	}
	return f.queue("GET", "/"+name+"/status/"+f.jobs[name]).at("status")
}

const (
	up   = "running/running/running/running"
	out  = "exited/stopped/stopped/stopped"
	dark = "offline/running/running/running"
)

// want compares pairs of what is and what should be.
func want(pairs ...any) error {
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i] != pairs[i+1] {
			return fmt.Errorf("%v is %v, want %v", i/2, pairs[i], pairs[i+1])
		}
	}
	return nil
}

func refused(s seen) bool { return errors.Is(s.err, syscall.ECONNREFUSED) }

// eventCase is an event at one kind of thing.
type eventCase struct {
	word   string
	kind   kind
	event  string
	before func(f *face)       // notes what the checks compare with; may be nil
	during func(f *face) error // what is wrong with what the cloud shows while it lasts
	after  func(f *face) error // once it is undone; nil where it cannot be
}

func eventCases() map[string]eventCase {
	backElsewhere := func(name string) func(*face) error {
		return func(f *face) error {
			return want(f.states(name), up, f.address(name) != f.first[name], true, f.models(f.address(name)).status, 200)
		}
	}
	backThere := func(name string) func(*face) error {
		return func(f *face) error {
			return want(f.states(name), up, f.address(name), f.first[name], f.models(f.first[name]).status, 200)
		}
	}
	done := func(f *face) error { return want(f.runs("idle"), "COMPLETED") }
	cases := map[string]eventCase{
		"outbid, Vast.ai": {
			"outbid", instance, "outbid: bid", nil,
			func(f *face) error {
				return want(f.states("bid"), out, f.row("bid").at("instance", "gpuCostPerHour"), "0", refused(f.models(f.first["bid"])), true, f.states("demand"), up)
			},
			backElsewhere("bid"),
		},
		"outbid, RunPod": {
			"outbid", pod, "outbid: spot", nil,
			func(f *face) error {
				p := f.manage("/pods/spot")
				return want(p.at("status"), "EXITED", p.at("cost"), "0", p.at("runtime"), "<nil>", f.models(f.podURL("spot")).status != 200, true, f.manage("/pods/public").at("status"), "RUNNING")
			},
			func(f *face) error {
				return want(f.manage("/pods/spot").at("status"), "RUNNING", f.models(f.podURL("spot")).status, 200)
			},
		},
		"offline": {
			"offline", instance, "offline: demand", nil,
			func(f *face) error { return want(f.states("demand"), dark, f.states("bid"), up) },
			backThere("demand"),
		},
		"false_running": {
			"false_running", instance, "false_running: demand", nil,
			func(f *face) error { return want(f.states("demand"), up, refused(f.models(f.first["demand"])), true) },
			backThere("demand"),
		},
		"restart, Vast.ai": {"restart", instance, "restart: demand", nil, backElsewhere("demand"), nil},
		"restart, RunPod": {
			"restart", pod, "restart: public", func(f *face) { f.first["public"] = f.podPort("public") },
			func(f *face) error {
				port := f.podPort("public")
				return want(f.manage("/pods/public").at("status"), "RUNNING", port != f.first["public"], true, f.models("http://127.0.0.1:"+port).status, 200)
			},
			nil,
		},
		"price, Vast.ai": {
			"price", instance, "price: demand, usd_per_hour: 1.25", nil,
			func(f *face) error {
				return want(f.row("demand").at("dph_base"), "1.25", f.row("demand").at("instance", "gpuCostPerHour"), "1.25", f.row("bid").at("dph_base"), "0.4")
			},
			nil,
		},
		"price, RunPod": {
			"price", service, "price: busy, usd_per_hour: 9.75", nil,
			func(f *face) error {
				return want(f.manage("/catalog/gpus/"+strings.ReplaceAll(f.c.host("busy").service.Config().GPUTypes[0], " ", "%20")).at("price", "serverless"), "9.75")
			},
			nil,
		},
		"kill_worker": {
			"kill_worker", service, "kill_worker: busy", func(f *face) { f.first["worker"] = f.worker("busy") },
			func(f *face) error {
				w := f.worker("busy")
				return want(w != "" && w != "<nil>" && w != f.first["worker"], true) // another has taken its place
			},
			nil,
		},
		"sleep": {
			"sleep", service, "sleep: busy", nil,
			func(f *face) error {
				return want(f.manage("/serverless/busy/workers").at("summary", "total"), "0", f.queue("GET", "/busy/health").at("workers", "ready"), "0")
			},
			func(f *face) error { return want(f.queue("GET", "/busy/health").at("workers", "ready"), "1") },
		},
		"throttled": {
			"throttled", service, "throttled: idle", nil,
			func(f *face) error {
				status, h := f.runs("idle"), f.queue("GET", "/idle/health")
				return want(status, "IN_QUEUE", h.some("throttled"), true, h.at("workers", "running"), "0", h.at("jobs", "inQueue"), "1")
			},
			done,
		},
		"crash_loop": {
			"crash_loop", service, "crash_loop: idle", nil,
			func(f *face) error {
				status, h := f.runs("idle"), f.queue("GET", "/idle/health")
				return want(status, "IN_QUEUE", h.some("unhealthy"), true, h.at("workers", "ready"), "0")
			},
			done,
		},
		"webhook_storm": {
			"webhook_storm", number, "webhook_storm: 3", func(f *face) { f.hook() },
			func(f *face) error {
				return want(f.hooked.Load(), int64(3), f.states("bid"), up, f.states("demand"), up)
			},
			nil,
		},
	}
	hosts := func(f *face) error {
		return want(f.models(f.first["demand"]).status, 200, f.models(f.podURL("spot")).status, 200, f.queue("GET", "/busy/health").status, 200)
	}
	for how, fails := range map[string]func(s seen) bool{
		"reset":     func(s seen) bool { return s.status == 0 && s.err != nil },
		"html_502":  func(s seen) bool { return s.status == 502 && strings.Contains(s.body, "<html") },
		"malformed": func(s seen) bool { return s.status == 200 && s.body != "" && !json.Valid([]byte(s.body)) },
	} {
		for cloud, list := range map[string]func(f *face) seen{
			"vast": func(f *face) seen { return f.vast("/api/v1/instances/") }, "runpod": func(f *face) seen { return f.manage("/serverless") },
		} {
			other := map[string]func(f *face) seen{
				"runpod": func(f *face) seen { return f.vast("/api/v1/instances/") }, "vast": func(f *face) seen { return f.manage("/serverless") },
			}[cloud]
			cases["outage of "+cloud+", "+how] = eventCase{
				"outage", cloudName, "outage: " + cloud + ", how: " + how, nil,
				func(f *face) error { return errors.Join(want(fails(list(f)), true, other(f).status, 200), hosts(f)) },
				func(f *face) error {
					s := list(f)
					return errors.Join(want(s.status, 200, json.Valid([]byte(s.body)), true), hosts(f))
				},
			}
		}
	}
	return cases
}

// hook registers a webhook that counts what is delivered.
func (f *face) hook() {
	f.t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if b, _ := io.ReadAll(r.Body); strings.Contains(string(b), `"outbid"`) && strings.HasPrefix(r.Header.Get("X-Vast-Signature-256"), "sha256=") {
			f.hooked.Add(1)
		}
	}))
	f.t.Cleanup(srv.Close)
	s := f.ask("POST", f.c.Vast.ConsoleURL()+"/api/v0/webhooks/", "vast-key", fmt.Sprintf(`{"name":"n","webhook_url":%q,"event_types":["client:outbid"]}`, srv.URL))
	if s.at("success") != "true" {
		f.t.Fatalf("webhook: %d %s", s.status, s.body)
	}
}

// until asks the clouds until nothing is wrong with what they show.
func (f *face) until(what string, wrong func(f *face) error) {
	f.t.Helper()
	late := time.Now().Add(time.Minute)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) { // RunPod's API takes 180 calls a minute
		err := wrong(f)
		if err == nil {
			return
		}
		if time.Now().After(late) {
			f.t.Fatalf("%s: %v", what, err)
		}
		_ = fakecloud.Pause(f.t.Context(), pause)
	}
}

// play starts the clouds, waits until all serves, and plays the event. The news come by the channel.
func play(t *testing.T, event string, before func(f *face)) (*face, <-chan News) {
	t.Helper()
	s, err := Parse("test.yaml", fmt.Appendf(nil, eventFleet, event))
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	f := &face{t: t, c: c, first: map[string]string{}, jobs: map[string]string{}}
	f.until("before the event", func(f *face) error {
		for _, name := range []string{"bid", "demand"} {
			f.first[name] = f.address(name)
		}
		return want(f.models(f.first["bid"]).status, 200, f.models(f.first["demand"]).status, 200, f.models(f.podURL("spot")).status, 200,
			f.queue("GET", "/busy/health").at("workers", "ready"), "1")
	})
	if before != nil {
		before(f)
	}
	ctx, cancel := context.WithCancel(t.Context())
	news, ended := make(chan News, 10), make(chan struct{})
	go func() {
		defer close(ended)
		c.Run(ctx, func(n News) { news <- n })
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return f, news
}

// TestEvents plays every event at every kind of thing that it can happen to, and asks the clouds' APIs and hosts what they show of it,
// and again when it is undone.
func TestEvents(t *testing.T) {
	cases := eventCases()
	for word, a := range actions {
		for k := instance; k <= number; k <<= 1 {
			if a.takes&k != 0 && !slices.ContainsFunc(slices.Collect(maps.Values(cases)), func(c eventCase) bool {
				return c.word == word && c.kind == k && (c.after != nil) == (a.undo != nil)
			}) {
				t.Errorf("%s at a thing of kind %d has no test", word, k)
			}
		}
	}
	heard := func(t *testing.T, news <-chan News, word string, undo bool) {
		t.Helper()
		select {
		case n := <-news:
			if n.What != word || n.Undo != undo || n.Text == "" {
				t.Errorf("news %+v", n)
			}
		case <-time.After(time.Minute):
			t.Fatal("there are no news")
		}
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, news := play(t, tc.event, tc.before)
			heard(t, news, tc.word, false)
			f.until("while it lasts", tc.during)
		})
		if tc.after == nil {
			continue
		}
		t.Run(name+", undone", func(t *testing.T) {
			t.Parallel()
			f, news := play(t, tc.event+", for: 1ms", tc.before)
			heard(t, news, tc.word, false)
			heard(t, news, tc.word, true)
			f.until("once it is undone", tc.after)
		})
	}
}
