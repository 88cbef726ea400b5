package fakevast_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakevast"
)

// stream begins an answer of the instance and returns it after its first event.
func stream(t *testing.T, url, bearer, model string) *bufio.Reader {
	t.Helper()
	body := `{"model":"` + model + `","messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":2000,"min_tokens":2000}`
	req, err := http.NewRequestWithContext(t.Context(), "POST", url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+bearer)
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	r := bufio.NewReader(resp.Body)
	if line, err := r.ReadString('\n'); resp.StatusCode != 200 || !strings.HasPrefix(line, "data: ") {
		t.Fatalf("stream: %d %q %v", resp.StatusCode, line, err)
	}
	return r
}

func dial(t *testing.T, url string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, addr, _ := strings.Cut(url, "://")
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err == nil {
		c.Close()
	}
	return err
}

func timedOut(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// TestFailures is the failure list of the fact sheet, section 7, as far as a fake is to show it.
func TestFailures(t *testing.T) {
	t.Run("vast_7.1_list_answers_410", func(t *testing.T) {
		c := start(t, fakevast.Config{})
		c.AddInstance(fakevast.InstanceConfig{})
		c.Outage(fakevast.Deprecated410, true)
		if a := call(t, "GET", list(c), ""); a.status != 410 || a.v["error"] != "deprecated_endpoint" {
			t.Errorf("%d %s", a.status, a.body)
		}
		c.Outage(fakevast.Deprecated410, false)
		row(t, c)
	})
	t.Run("vast_7.2_running_but_nothing_listens", func(t *testing.T) {
		c := start(t, fakevast.Config{})
		i := c.AddInstance(fakevast.InstanceConfig{})
		i.FalseRunning(true)
		if err := dial(t, i.URL()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v", err)
		}
		if got := tuple(i); got != "running/running/running/running" {
			t.Error(got)
		}
		i.FalseRunning(false)
		if err := dial(t, i.URL()); err != nil {
			t.Error(err)
		}
	})
	t.Run("vast_7.3_ports_not_published", func(t *testing.T) {
		c := start(t, fakevast.Config{TimeScale: 10})
		i := c.AddInstance(fakevast.InstanceConfig{Boot: &fakevast.Boot{Provision: 1, Pull: 1, Ports: time.Hour, Model: 1}})
		until(t, c, "running", func() bool { return tuple(i) == "running/running/running/running" })
		if r := row(t, c); r["ports"] != nil || r["public_ipaddr"] != nil {
			t.Errorf("ports %v, address %v", r["ports"], r["public_ipaddr"])
		}
	})
	t.Run("vast_7.4_mapped_port_never_reachable", func(t *testing.T) {
		c := start(t, fakevast.Config{})
		i := c.AddInstance(fakevast.InstanceConfig{})
		i.Unreachable(true)
		if err := dial(t, i.URL()); runtime.GOOS == "linux" && !timedOut(err) {
			t.Errorf("dial: %v", err)
		}
		if got := tuple(i); got != "running/running/running/running" {
			t.Error(got)
		}
	})
	t.Run("vast_7.5_boot_fails_with_status_msg", func(t *testing.T) {
		c := start(t, fakevast.Config{})
		i := c.AddInstance(fakevast.InstanceConfig{})
		i.BootFails("Error response from daemon: no space left on device")
		i.Restart(0, "")
		r := row(t, c)
		if got := tuple(i); got != "created/stopped/stopped/stopped" || r["status_msg"] != "Error response from daemon: no space left on device" {
			t.Errorf("%s %v", got, r["status_msg"])
		}
		i.Stall("a1b2c3d4e5f6: Waiting")
		if got := tuple(i); got != "loading/running/running/running" || row(t, c)["status_msg"] != "a1b2c3d4e5f6: Waiting" {
			t.Error(got)
		}
	})
	t.Run("vast_7.6_start_unavailable_or_lost", func(t *testing.T) {
		c := start(t, fakevast.Config{})
		i := c.AddInstance(fakevast.InstanceConfig{ID: 7})
		url := c.ConsoleURL() + "/api/v0/instances/7/"
		i.Outbid(fakevast.ExitedStopped)
		a := call(t, "PUT", url, `{"state":"running"}`)
		if a.status != 200 || a.body != `{"error":"resources_unavailable","msg":"Required resources are currently unavailable, state change queued.","success":false}` {
			t.Errorf("%d %s", a.status, a.body)
		}
		if got := tuple(i); got != "exited/stopped/running/running" {
			t.Errorf("queued: %s", got)
		}
		i.Resume()
		if got := tuple(i); got != "running/running/running/running" {
			t.Errorf("resumed: %s", got)
		}
		call(t, "PUT", url, `{"state":"stopped"}`)
		i.SetStart(fakevast.StartLost)
		if a := call(t, "PUT", url, `{"state":"running"}`); a.body != `{"success":true}` {
			t.Errorf("%d %s", a.status, a.body)
		}
		if got := tuple(i); got != "loading/stopped/stopped/stopped" {
			t.Errorf("lost: %s", got)
		}
		i.SetStart(fakevast.StartWorks)
		call(t, "PUT", url, `{"state":"running"}`)
		if err := dial(t, i.URL()); err != nil {
			t.Errorf("started: %v", err)
		}
	})
	t.Run("vast_7.7_outbid_in_mid_stream", func(t *testing.T) {
		c := start(t, fakevast.Config{TimeScale: 10, DetectionLag: time.Second})
		i := c.AddInstance(fakevast.InstanceConfig{APIKey: "k", Models: []string{"m"}, TPS: 20})
		r := stream(t, i.URL(), "k", "m")
		i.Outbid(fakevast.StoppedStopped)
		if _, err := io.ReadAll(r); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the stream ended with %v", err)
		}
		if err := dial(t, i.URL()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v", err)
		}
		if got := tuple(i); got != "running/running/running/running" {
			t.Errorf("the API knew at once: %s", got)
		}
		until(t, c, "detection", func() bool { return tuple(i) == "stopped/stopped/stopped/stopped" })
	})
	t.Run("vast_7.8_address_changes", func(t *testing.T) {
		c := start(t, fakevast.Config{})
		i := c.AddInstance(fakevast.InstanceConfig{})
		old := i.URL()
		i.Restart(0, "127.0.0.3")
		if r := row(t, c); r["public_ipaddr"] != "127.0.0.3" || i.URL() == old {
			t.Errorf("address %v", r["public_ipaddr"])
		}
		if a := call(t, "GET", i.URL()+"/v1/models", ""); a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
		other := i.ReuseAddress(fakecloud.HostConfig{Models: []string{"theirs"}, APIKey: "their-key"})
		if a := call(t, "GET", other.URL()+"/v1/models", "", "Authorization", "Bearer k"); a.status != 401 || i.URL() == other.URL() {
			t.Errorf("another tenant: %d %s", a.status, a.body)
		}
	})
	t.Run("vast_7.9_host_offline_and_back", func(t *testing.T) {
		c := start(t, fakevast.Config{TimeScale: 20, DetectionLag: 10 * time.Second, OfflineAfter: 4 * time.Second})
		i := c.AddInstance(fakevast.InstanceConfig{ID: 7})
		url := i.URL()
		i.HostOffline()
		if err := dial(t, url); runtime.GOOS == "linux" && !timedOut(err) {
			t.Errorf("dial: %v", err)
		}
		if got := tuple(i); got != "running/running/running/running" {
			t.Errorf("the API knew at once: %s", got)
		}
		until(t, c, "unknown", func() bool { return tuple(i) == "unknown/running/running/running" })
		until(t, c, "offline", func() bool { return tuple(i) == "offline/running/running/running" })
		if a := call(t, "GET", list(c, "select_filters", `{"actual_status":{"eq":"offline"}}`), ""); ids(a) != "" {
			t.Error("offline is computed, and yet it is searched by")
		}
		i.HostOnline()
		until(t, c, "online", func() bool { return tuple(i) == "running/running/running/running" })
		if err := dial(t, url); err != nil || i.URL() != url {
			t.Errorf("back at %s: %v", i.URL(), err)
		}
	})
	t.Run("vast_7.10_container_died", func(t *testing.T) {
		c := start(t, fakevast.Config{})
		i := c.AddInstance(fakevast.InstanceConfig{})
		i.Died()
		if got := tuple(i); got != "exited/exited/running/running" {
			t.Error(got)
		}
		if err := dial(t, i.URL()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v", err)
		}
	})
	t.Run("vast_7.12_by_id_polling_meets_429", func(t *testing.T) {
		c := start(t, fakevast.Config{RateLimits: true})
		c.AddInstance(fakevast.InstanceConfig{ID: 7})
		c.AddInstance(fakevast.InstanceConfig{ID: 8})
		a := call(t, "GET", c.ConsoleURL()+"/api/v0/instances/7/", "")
		b := call(t, "GET", c.ConsoleURL()+"/api/v0/instances/8/", "")
		if a.status != 200 || b.status != 429 || b.header.Get("Retry-After") != "" {
			t.Errorf("%d, %d %v", a.status, b.status, b.header)
		}
	})
	t.Run("vast_7.14_balance_is_used_up", func(t *testing.T) {
		c := start(t, fakevast.Config{})
		a, b := c.AddInstance(fakevast.InstanceConfig{ID: 7}), c.AddInstance(fakevast.InstanceConfig{})
		c.SetCredit(0)
		if tuple(a) != "exited/stopped/stopped/stopped" || tuple(b) != tuple(a) {
			t.Errorf("%s, %s", tuple(a), tuple(b))
		}
		if got := call(t, "PUT", c.ConsoleURL()+"/api/v0/instances/7/", `{"state":"running"}`); got.status != 400 || got.v["error"] != "missing_billing" {
			t.Errorf("%d %s", got.status, got.body)
		}
	})
}

func TestStates(t *testing.T) {
	for name, tc := range map[string]struct {
		event func(i *fakevast.Instance)
		want  string
	}{
		"outbid":         {func(i *fakevast.Instance) { i.Outbid(fakevast.ExitedStopped) }, "exited/stopped/stopped/stopped"},
		"outbid, queued": {func(i *fakevast.Instance) { i.Outbid(fakevast.ExitedQueued) }, "exited/stopped/running/running"},
		"outbid, other":  {func(i *fakevast.Instance) { i.Outbid(fakevast.StoppedStopped) }, "stopped/stopped/stopped/stopped"},
		"stopped":        {func(i *fakevast.Instance) { i.Stop() }, "exited/stopped/stopped/stopped"},
		"offline":        {func(i *fakevast.Instance) { i.HostOffline() }, "offline/running/running/running"},
		"online again": {func(i *fakevast.Instance) {
			i.HostOffline()
			i.HostOnline()
		}, "running/running/running/running"},
		"restarted": {func(i *fakevast.Instance) { i.Restart(0, "") }, "running/running/running/running"},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, fakevast.Config{})
			i := c.AddInstance(fakevast.InstanceConfig{})
			tc.event(i)
			if got := tuple(i); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
	t.Run("leaving", func(t *testing.T) {
		c := start(t, fakevast.Config{TimeScale: 1})
		i := c.AddInstance(fakevast.InstanceConfig{})
		i.Stop()
		if got := tuple(i); got != "running/running/stopped/stopped" {
			t.Error(got)
		}
		if err := dial(t, i.URL()); err != nil {
			t.Errorf("what leaves still serves: %v", err)
		}
	})
	for name, tc := range map[string]struct {
		hazards fakevast.Hazard
		event   func(i *fakevast.Instance)
		want    string
	}{
		"starting again":     {0, func(i *fakevast.Instance) { i.Restart(0, "") }, "exited/running/running/running"},
		"restarting":         {fakevast.NewStates, func(i *fakevast.Instance) { i.Restart(0, "") }, "restarting/running/running/running"},
		"restarting, loads":  {fakevast.NewStates, func(i *fakevast.Instance) { i.Stall("x") }, "restarting/running/running/running"},
		"died, not starting": {fakevast.NewStates, func(i *fakevast.Instance) { i.Died() }, "exited/exited/running/running"},
		"outbid and queued":  {fakevast.NewStates, func(i *fakevast.Instance) { i.Outbid(fakevast.ExitedQueued) }, "exited/stopped/running/running"},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, fakevast.Config{TimeScale: 1, Boot: fakevast.Boot{Provision: 1000 * time.Hour}}) // it stays at the first step
			i := c.AddInstance(fakevast.InstanceConfig{ID: 7, Hazards: tc.hazards})
			if tuple(i) != "running/running/running/running" {
				t.Fatalf("at first %s", tuple(i))
			}
			tc.event(i)
			actual, _, _ := strings.Cut(tc.want, "/")
			if got := tuple(i); got != tc.want || row(t, c)["actual_status"] != actual {
				t.Errorf("%s, and %v in the list; want %s", got, row(t, c)["actual_status"], tc.want)
			}
			if a := call(t, "GET", list(c, "select_filters", `{"actual_status":{"eq":"`+actual+`"}}`), ""); ids(a) != "7" {
				t.Errorf("found by %s: %s", actual, a.body)
			}
		})
	}
	t.Run("a later event makes void what was planned", func(t *testing.T) {
		c := start(t, fakevast.Config{TimeScale: 100, DetectionLag: 5 * time.Second})
		i := c.AddInstance(fakevast.InstanceConfig{})
		i.HostOffline()
		i.HostOnline()
		seen := map[string]bool{}
		c.AddInstance(fakevast.InstanceConfig{Boot: &fakevast.Boot{Provision: 20 * time.Second, Pull: 1, Ports: 1, Model: 1}})
		until(t, c, "another's boot", func() bool {
			seen[tuple(i)] = true
			return strings.HasPrefix(tuple(c.Instances()[1]), "running/")
		})
		if len(seen) != 1 {
			t.Errorf("the API told of it: %v", seen)
		}
	})
	t.Run("ports survive, by knob", func(t *testing.T) {
		c := start(t, fakevast.Config{PortsSurvive: true})
		i := c.AddInstance(fakevast.InstanceConfig{})
		old := i.URL()
		i.Outbid(fakevast.ExitedStopped)
		i.Resume()
		if i.URL() != old {
			t.Errorf("%s, was %s", i.URL(), old)
		}
	})
	t.Run("destroyed", func(t *testing.T) {
		c := start(t, fakevast.Config{})
		i := c.AddInstance(fakevast.InstanceConfig{ID: 7})
		if a := call(t, "DELETE", c.ConsoleURL()+"/api/v0/instances/7/", `{}`); a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a := call(t, "DELETE", c.ConsoleURL()+"/api/v0/instances/7/", `{}`); a.status != 404 || a.v["error"] != "no_such_instance" {
			t.Errorf("%d %s", a.status, a.body)
		}
		if err := dial(t, i.URL()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v", err)
		}
	})
}
