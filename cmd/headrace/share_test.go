package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"headrace/gateway/state/redistest"
	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakevast"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/health"
)

// redisServer is a real redis-server behind a way that can be slow.
type redisServer struct {
	*redistest.Server
	t     *testing.T
	way   net.Listener
	delay atomic.Int64 // nanoseconds that each answer takes longer
}

func startRedisServer(t *testing.T) *redisServer {
	t.Helper()
	s := &redisServer{Server: redistest.Start(t), t: t}
	var err error
	if s.way, err = net.Listen("tcp", "127.0.0.1:0"); err != nil { //nolint:noctx // loopback
		t.Fatal(err)
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { s.lead(&pumps) })
	t.Cleanup(func() { _ = s.way.Close(); s.Stop(); pumps.Wait() })
	return s
}

func (s *redisServer) url() string { return "redis://" + s.way.Addr().String() + "/0" }

// lead takes connections to the server.
func (s *redisServer) lead(pumps *sync.WaitGroup) {
	for {
		in, err := s.way.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("unix", s.Socket())
		if err != nil {
			_ = in.Close()
			continue
		}
		pump := func(to, from net.Conn, delay func() time.Duration) {
			defer func() { _ = to.Close(); _ = from.Close() }()
			b := make([]byte, 64<<10)
			for {
				n, err := from.Read(b)
				if d := delay(); d > 0 {
					<-time.After(d)
				}
				if _, werr := to.Write(b[:n]); err != nil || werr != nil {
					return
				}
			}
		}
		pumps.Go(func() { pump(out, in, func() time.Duration { return 0 }) })
		pumps.Go(func() { pump(in, out, func() time.Duration { return time.Duration(s.delay.Load()) }) })
	}
}

const callersKey = "hr-test-0123456789abcdef-callers"

// config is a gateway's that has the hosts, and shares the Redis at the URL, or nothing where that is "".
func (s *redisServer) config(url string, hosts ...*fakecloud.Host) string {
	var yaml strings.Builder
	fmt.Fprintf(&yaml, "listen: \"127.0.0.1:0\"\nadmin: \"127.0.0.1:0\"\nlog: {access: false}\ncontinuation: {self_test: false}\n")
	if url != "" {
		fmt.Fprintf(&yaml, "state: {redis: %q}\n", url)
	}
	fmt.Fprintf(&yaml, "keys: [{name: callers, key: %q, rpm: 1000000000, tpm: 1000000000, budget: {usd_per_day: 1000000}}]\nproviders:\n  static:\n", callersKey)
	for i, h := range hosts {
		fmt.Fprintf(&yaml, "    - {name: h%d, base_url: %q, models: [m], price: {usd_per_hour: 1}, tenure: on_demand, max_num_seqs: 64}\n", i, h.URL()+"/v1")
	}
	return yaml.String()
}

// replicas starts gateways that share the Redis and have the same hosts.
func (s *redisServer) replicas(n int, hosts ...*fakecloud.Host) []*running {
	s.t.Helper()
	var all []*running
	for range n {
		all = append(all, startApp(s.t, s.t.TempDir(), s.config(s.url(), hosts...), nil))
	}
	s.together(all)
	return all
}

// together waits until all replicas know of each other.
func (s *redisServer) together(all []*running) {
	s.t.Helper()
	eventually(s.t, "replicas that know of each other", func() bool {
		return !slices.ContainsFunc(all, func(r *running) bool {
			return !r.app.redis.Hears() || r.app.redis.Replicas() != len(all) || r.app.redis.Stats().Down
		})
	})
}

// callersTook is what came of a load.
type callersTook struct {
	n    int
	bad  []string // answers that were none
	took []time.Duration
}

func (c *callersTook) p50() time.Duration {
	slices.Sort(c.took)
	return c.took[len(c.took)/2]
}

// waits is how many requests have waited for Redis, in vain or not.
func waits(all []*running) (n int64) {
	for _, r := range all {
		answered, alone := r.app.keys.Waits()
		n += answered + alone
	}
	return n
}

const (
	callersEach = 2   // of a load at each gateway
	fewest      = 200 // requests of which a median says something
)

// load has a few callers ask all gateways for answers, one after another, for so long, and until there are so many; by turns with each of these they ask the one that shares nothing,
// so that what slows the machine slows both.
func load(t *testing.T, all []*running, calm *running, d time.Duration, fewest int) (c, without *callersTook) {
	t.Helper()
	var mu sync.Mutex
	c, without = &callersTook{}, &callersTook{}
	var wg sync.WaitGroup
	end := time.Now().Add(d)
	body := []byte(`{"model":"m","max_tokens":4,"messages":[{"role":"user","content":"hello"}]}`)
	for _, r := range all {
		for range callersEach {
			wg.Go(func() {
				for enough := false; !enough || time.Now().Before(end); {
					for of, to := range map[*callersTook]*running{c: r, without: calm} {
						from := time.Now()
						why := answer(t, to, body)
						took := time.Since(from)
						mu.Lock()
						of.n++
						of.took = append(of.took, took)
						if why != "" {
							of.bad = append(of.bad, why)
						}
						enough = min(c.n, without.n) >= fewest
						mu.Unlock()
					}
				}
			})
		}
	}
	wg.Wait()
	return c, without
}

// answer makes one request, and returns what was wrong with the answer.
func answer(t *testing.T, r *running, body []byte) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.base+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return err.Error()
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+callersKey)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK || !bytes.Contains(b, []byte(`"choices"`)) {
		return fmt.Sprintf("%d, %v: %s", res.StatusCode, err, b)
	}
	return ""
}

// TestRedisTrouble kills, stops and slows down the Redis of two gateways under load: no request fails, the median one takes less than a millisecond longer
// than at a gateway that shares nothing, and all is as before when it is back.
func TestRedisTrouble(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	s := startRedisServer(t)
	hosts := []*fakecloud.Host{startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}}), startHost(t, fakecloud.HostConfig{Name: "b", Models: []string{"m"}})}
	all := s.replicas(2, hosts...)
	calm := startApp(t, t.TempDir(), s.config("", hosts...), nil)
	const phase = time.Second
	load(t, all, calm, phase/2, 1) // connections, caches
	for _, trouble := range []struct {
		name        string
		begin, mend func()
	}{
		{"killed", s.Stop, s.Start},
		{"hanging", func() { s.Signal(syscall.SIGSTOP) }, func() { s.Signal(syscall.SIGCONT) }},
		{"slow", func() { s.delay.Store(int64(100 * time.Millisecond)) }, func() { s.delay.Store(0) }},
	} {
		waited := waits(all)
		trouble.begin()
		during, without := load(t, all, calm, phase, fewest)
		waited = waits(all) - waited
		trouble.mend()
		began := time.Now()
		s.together(all)
		back := time.Since(began)
		mended, _ := load(t, all, calm, phase/2, 1)
		for what, c := range map[string]*callersTook{"during": during, "shared with nobody": without, "mended": mended} {
			if len(c.bad) > 0 {
				t.Errorf("%s: %s: %d of %d requests failed: %s", trouble.name, what, len(c.bad), c.n, c.bad[0])
			}
		}
		added := during.p50() - without.p50()
		t.Logf("%s: %d requests, p50 %s, of one that shares nothing %s, so %s longer; shared again after %s", trouble.name, during.n+mended.n,
			during.p50().Round(time.Microsecond), without.p50().Round(time.Microsecond), added.Round(time.Microsecond), back.Round(time.Millisecond))
		if most := time.Millisecond + without.p50()/2; added > most { // the half is for a machine on which they take so long that a millisecond is nothing
			t.Errorf("%s: the median request takes %s longer than without Redis, want %s at most", trouble.name, added, most)
		}
		// Whoever waits as it begins does so for 5 ms, and nobody after him: by a clock it would be the machine that is tested.
		if most := int64(2 * callersEach * len(all)); waited > most {
			t.Errorf("%s: %d of %d requests have waited for Redis, want %d at most", trouble.name, waited, during.n, most)
		}
		for _, r := range all {
			if n := strings.Count(r.log.String(), "Redis does not answer"); trouble.name != "slow" && n == 0 {
				t.Errorf("%s: nothing was said of it", trouble.name)
			}
		}
		// What one replica loses reaches the other again.
		all[0].app.changed(router.Transition{Endpoint: "static:h1", Change: health.Lost, For: time.Second})
		eventually(t, "word of a host", func() bool { return all[1].app.fleets.Status().Heard > 0 })
	}
}

// TestPreemptionSeenByOne has three gateways on one account at Vast.ai, of which one alone is told that an instance was outbid: all avoid it,
// long before they look themselves, and what runs there goes on elsewhere.
func TestPreemptionSeenByOne(t *testing.T) {
	t.Parallel()
	s := startRedisServer(t)
	cloud := startVast(t, fakevast.Config{TimeScale: 1000, EngineScale: 1, Seed: 1, OutbidGrace: 10 * time.Hour})
	ic := fakevast.InstanceConfig{TPS: 20, TTFT: 20 * time.Millisecond, IsBid: true, DPHBase: 0.2}
	cheap := cloud.AddInstance(ic)
	ic.IsBid, ic.DPHBase, ic.TPS = false, 90, 2000
	dear := cloud.AddInstance(ic)
	cheapID, dearID := fmt.Sprint("vast:", cheap.ID()), fmt.Sprint("vast:", dear.ID())
	env := vastEnv(cloud)
	env["VAST_POLL"], env["REDIS_URL"] = "1h", s.url()
	var all []*rented
	for range 3 {
		all = append(all, startRented(t, env))
	}
	for _, r := range all {
		r.until("both found", ready(cheapID, dearID))
	}
	model := all[0].app.router.Hosts()[0].Models[0]
	for _, r := range all {
		for _, id := range []string{cheapID, dearID} {
			r.app.router.SetPrefill(endpoint.ID(id), model, router.Prefill{Known: true, OK: true})
		}
		eventually(t, "replicas that know of each other", func() bool { return r.app.redis.Replicas() == 3 && r.app.redis.Hears() })
	}
	pace := s.Watch()
	const tokens = 2000 // of which the slow one makes few while the news are on their way
	running := all[2].stream(model, "what does the river say?", tokens)
	if running.endpoint != cheapID {
		t.Fatalf("it began at %s", running.endpoint)
	}
	if err := running.read(5); err != nil {
		t.Fatal(err)
	}
	// The first one's control plane says so; the others look again in an hour.
	eps := slices.Clone(all[0].app.hosts())
	for i := range eps {
		if string(eps[i].ID) == cheapID {
			eps[i].State = endpoint.Preempted
		}
	}
	began := time.Now()
	all[0].app.discovered(eps)
	for i, r := range all[1:] {
		r.until("avoided", func(hosts []router.HostView) bool {
			return slices.ContainsFunc(hosts, func(h router.HostView) bool { return string(h.ID) == cheapID && h.Breaker == "preempted" })
		})
		t.Logf("replica %d avoids it after %s", i+1, pace.Within(t, fmt.Sprintf("replica %d avoids it", i+1), began, time.Second))
	}
	for _, r := range all[1:] {
		if c := r.chat(model, "hello", 4, false); c.status != http.StatusOK || c.endpoint != dearID || c.attempts != "1" {
			t.Errorf("a new request went to %s after %s attempts: %d", c.endpoint, c.attempts, c.status)
		}
	}
	if err := running.read(0); err != nil {
		t.Error(err)
	}
	if running.text != fakecloud.Answer(model, "what does the river say?", tokens) || !running.done || running.resumed != 1 {
		t.Errorf("the answer that ran there: resumed %d times, done %t, %q", running.resumed, running.done, running.text)
	}
	address := "http://" + all[1].app.admin.Addr().String()
	eventually(t, "a status that tells of the others", func() bool { // on a busy machine Redis may not have answered for a moment
		_, body := get(t, address+"/admin/v1/status")
		var status struct {
			State struct {
				Documents string
				Replica   string
				Replicas  []string
				Fleet     struct{ Heard int }
			}
		}
		if err := json.Unmarshal([]byte(body), &status); err != nil {
			t.Fatalf("status %s, %v", body, err)
		}
		is := &status.State
		return is.Documents == "redis" && len(is.Replicas) == 3 && slices.Contains(is.Replicas, is.Replica) && is.Fleet.Heard > 0
	})
	for _, want := range []string{"\nheadrace_redis_up 1\n", "\nheadrace_replicas 3\n", `headrace_replicas_hosts_total{headrace_result="heard"}`} {
		eventually(t, "metrics that say "+strings.TrimSpace(want), func() bool {
			_, page := get(t, address+"/metrics")
			return strings.Contains(page, want)
		})
	}
}

// TestWarmStart has a gateway that is started again know how fast its host is, from the state directory alone, and leaves nothing there that
// others may read.
func TestWarmStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}, TPS: 400, TTFT: 10 * time.Millisecond, TimeScale: 1})
	yaml := fmt.Sprintf("listen: \"127.0.0.1:0\"\nadmin: \"127.0.0.1:0\"\nstate: {dir: %q}\nlog: {access: false}\ncontinuation: {self_test: false}\n"+
		"providers: {static: [{name: a, base_url: %q, models: [m], price: {usd_per_hour: 1}}]}\n", dir, h.URL()+"/v1")
	first := startApp(t, t.TempDir(), yaml, nil)
	body := []byte(`{"model":"m","stream":true,"max_tokens":60,"messages":[{"role":"user","content":"hello"}]}`)
	for range 6 {
		if why := stream(t, first, body); why != "" {
			t.Fatal(why)
		}
	}
	eventually(t, "measured", func() bool { return first.app.router.Hosts()[0].Observed >= 6 })
	was := first.app.router.Hosts()[0]
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	second := startApp(t, t.TempDir(), yaml, nil)
	second.log.await(t, "what was learned before is taken up", 1)
	is := second.app.router.Hosts()[0]
	if is.Observed == 0 || math.Abs(*is.ITLMillis / *was.ITLMillis - 1) > 0.1 {
		t.Errorf("after the start %.2f ms a token by %d observations, before %.2f by %d", *is.ITLMillis, is.Observed, *was.ITLMillis, was.Observed)
	}
	eventually(t, "nobody else may read what is kept", func() bool { // SQLite makes files for all in a folder that is ours alone
		private := true
		err := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			private = private && (err != nil || info.Mode().Perm()&0o077 == 0)
			return nil
		})
		return err == nil && private
	})
}

// stream reads one stream to its end, and returns what was wrong with it.
func stream(t *testing.T, r *running, body []byte) string {
	t.Helper()
	res, err := http.Post(r.base+"/v1/chat/completions", "application/json", bytes.NewReader(body)) //nolint:noctx // loopback
	if err != nil {
		return err.Error()
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK || !bytes.Contains(b, []byte("[DONE]")) {
		return fmt.Sprintf("%d, %v: %s", res.StatusCode, err, b)
	}
	return ""
}
