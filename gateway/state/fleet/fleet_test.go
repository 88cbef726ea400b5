package fleet

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"headrace/gateway/state"
	"headrace/gateway/state/redistest"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
)

// server is a real redis-server.
type server struct {
	*redistest.Server
	t *testing.T
}

func startRedis(t *testing.T) *server {
	t.Helper()
	return &server{redistest.Start(t), t}
}

// patience is how long a test waits for what is to happen at all, however busy the machine.
const patience = time.Minute

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	limit, look := time.NewTimer(patience), time.NewTicker(2*time.Millisecond)
	defer limit.Stop()
	defer look.Stop()
	for !is() {
		select {
		case <-look.C:
		case <-limit.C:
			t.Fatalf("after %v: not yet %s", patience, what)
		}
	}
}

// gateway is a replica without its callers.
type gateway struct {
	t     *testing.T
	r     *router.Router
	redis *state.Redis
	share *Share
	ahead atomic.Int64 // how much the share's clock is
	taken chan endpoint.ID
	stop  func()
}

// join starts a replica that has the hosts; it stops with the test.
func (s *server) join(hosts ...endpoint.Endpoint) *gateway {
	s.t.Helper()
	redis, err := state.Open(state.Options{URL: s.URL()})
	if err != nil {
		s.t.Fatal(err)
	}
	g := &gateway{t: s.t, redis: redis, taken: make(chan endpoint.ID, 1000)}
	g.r = router.New(router.Options{Now: time.Now, Probes: true, Seed: 1, Changed: func(t router.Transition) { g.share.Changed(t) }})
	g.share = New(Options{Router: g.r, Way: redis, Taken: func(id endpoint.ID) { g.taken <- id }, Now: func() time.Time {
		return time.Now().Add(time.Duration(g.ahead.Load()))
	}})
	g.r.Update(hosts, nil)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.share.Run(ctx) })
	wg.Go(func() { _ = redis.Run(ctx) })
	g.stop = sync.OnceFunc(func() { cancel(); wg.Wait(); _ = redis.Close() })
	s.t.Cleanup(g.stop)
	await(s.t, "the stream of events", redis.Hears)
	return g
}

func host(id string) endpoint.Endpoint {
	return endpoint.Endpoint{
		ID: endpoint.ID(id), Provider: "vast", BaseURL: "http://127.0.0.1:1/v1", Served: []endpoint.Served{{Name: "m"}}, State: endpoint.Ready,
		Tenure: endpoint.Interruptible, Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 1}, MaxNumSeqs: 1000,
	}
}

func (g *gateway) view(id endpoint.ID) router.HostView {
	for _, v := range g.r.Hosts() {
		if v.ID == id {
			return v
		}
	}
	g.t.Fatalf("no host %s", id)
	return router.HostView{}
}

// lose has the replica's next attempt find nobody.
func (g *gateway) lose(id endpoint.ID) {
	g.t.Helper()
	g.lease(id).Done(router.Result{Class: outcome.DialFailed})
}

func (g *gateway) lease(id endpoint.ID) *router.Lease {
	g.t.Helper()
	l := new(router.Lease)
	var others []endpoint.ID
	for _, v := range g.r.Hosts() {
		if v.ID != id {
			others = append(others, v.ID)
		}
	}
	if err := g.r.Pick(&router.Request{Model: "m", Tried: others}, l); err != nil {
		g.t.Fatal(err)
	}
	if l.Endpoint.ID != id {
		g.t.Fatalf("leased %s, want %s", l.Endpoint.ID, id)
	}
	return l
}

// TestPreemptionSpreads has one of three replicas hear that a host was taken away, or lose it, many times over: all others avoid it
// within a second, each time; nearly always within 50 ms, where the machine has nothing else to do.
func TestPreemptionSpreads(t *testing.T) {
	s := startRedis(t)
	pace := s.Watch()
	const hosts = 150
	var eps []endpoint.Endpoint
	for i := range hosts {
		eps = append(eps, host(fmt.Sprintf("vast:%03d", i)))
	}
	replicas := []*gateway{s.join(eps...), s.join(eps...), s.join(eps...)}
	var took []time.Duration
	for i := range hosts {
		from, id := replicas[i%3], eps[i].ID
		began := time.Now()
		if i%2 == 0 {
			next := slices.Clone(eps)
			next[i].State = endpoint.Preempted
			from.r.Update(next, nil)
			from.r.Update(eps, nil) // it is back at once: what the others were told holds
		} else {
			from.lose(id)
		}
		for k, g := range replicas {
			if g == from {
				continue
			}
			await(t, fmt.Sprintf("%s avoided by replica %d", id, k), func() bool {
				return g.view(id).Breaker != "closed"
			})
			took = append(took, pace.Within(t, fmt.Sprintf("%s is avoided by replica %d", id, k), began, time.Second))
			if want := map[bool]string{true: "preempted", false: "suspected"}[i%2 == 0]; g.view(id).Breaker != want {
				t.Errorf("%s is %s at replica %d, want %s", id, g.view(id).Breaker, k, want)
			}
		}
	}
	slices.Sort(took)
	p := func(q float64) time.Duration { return took[int(q*float64(len(took)-1))].Round(10 * time.Microsecond) }
	t.Logf("avoided by another replica after p50 %s, p99 %s, at most %s (%d of them)", p(0.5), p(0.99), p(1), len(took))
	for _, g := range replicas {
		if n := len(g.taken); n != hosts/3 {
			t.Errorf("%d hosts were called away from, want %d", n, hosts/3)
		}
	}
}

// TestLateReplica knows at once what the others have lost before it came, and of hosts that it finds later.
func TestLateReplica(t *testing.T) {
	s := startRedis(t)
	a := s.join(host("a"), host("b"), host("c"))
	gone := host("a")
	gone.State = endpoint.Preempted
	a.r.Update([]endpoint.Endpoint{gone, host("b"), host("c")}, nil)
	a.lose("b")
	await(t, "told", func() bool { return a.share.Status().Told == 2 })
	late := s.join(host("a"), host("c"))
	await(t, "a", func() bool { return late.view("a").Breaker == "preempted" })
	late.r.Update([]endpoint.Endpoint{host("a"), host("b"), host("c")}, nil)
	await(t, "b", func() bool { return late.view("b").Breaker == "suspected" })
	if got := late.view("c").Breaker; got != "closed" {
		t.Errorf("c is %s", got)
	}
}

// TestToldWhenRedisIsBack has a replica find two hosts gone while Redis is: the other is told when it is back, though it knows nobody who notes them by then.
func TestToldWhenRedisIsBack(t *testing.T) {
	t.Parallel()
	s := startRedis(t)
	a, b := s.join(host("a"), host("b"), host("c")), s.join(host("a"), host("b"), host("c"))
	s.Stop()
	await(t, "nobody hears", func() bool { return !a.redis.Hears() && !b.redis.Hears() })
	a.lose("a")
	a.lose("b")
	failed := a.redis.Stats().Errors
	await(t, "it was tried", func() bool { return a.redis.Stats().Errors > failed })
	s.Start()
	for _, id := range []endpoint.ID{"a", "b"} {
		await(t, "suspected", func() bool { return b.view(id).Breaker == "suspected" })
	}
	await(t, "two told", func() bool { return a.share.Status().Told == 2 })
	if n := a.share.Status().Lost; n != 0 {
		t.Errorf("%d pass for lost", n)
	}
}

// TestStaleNotes has notes of what was so once, by a replica whose control plane is stuck, change nothing where it is known better: neither of
// a host that is back, nor is what one has noted oneself news. What nobody knows better is suspected, and nothing broken off for it.
func TestStaleNotes(t *testing.T) {
	s := startRedis(t)
	eps := []endpoint.Endpoint{host("a"), host("b")}
	a, b := s.join(eps...), s.join(eps...)
	gone := host("a")
	gone.State = endpoint.Preempted
	a.r.Update([]endpoint.Endpoint{gone, host("b")}, nil) // and its polls fail from now on
	await(t, "heard", func() bool { return len(b.taken) == 1 })
	<-b.taken
	b.r.Update([]endpoint.Endpoint{gone, host("b")}, nil)
	b.r.Update(eps, nil) // b's has told of it too, and that it is back
	b.r.Probes(time.Now().Add(time.Minute), nil)
	b.r.Probed("a", outcome.Success)
	if got := b.view("a").Breaker; got != "closed" {
		t.Fatalf("a is %s after a test", got)
	}
	await(t, "told that it is back", func() bool { return b.share.Status().Told == 1 })
	note := func(ahead time.Duration) (n state.Note) { // as a renews it when so much time has passed
		t.Helper()
		a.ahead.Store(int64(ahead))
		defer a.ahead.Store(0)
		missing := a.r.Missing(nil)
		if len(missing) != 1 || missing[0].Endpoint != "a" {
			t.Fatalf("%+v", missing)
		}
		if err := a.redis.Note(t.Context(), hostKind, "a", a.share.encode(missing[0], noteFor), noteFor, true); err != nil {
			t.Fatal(err)
		}
		notes, err := b.redis.Notes(t.Context(), hostKind)
		if err != nil || len(notes) != 1 {
			t.Fatalf("%v, %v", notes, err)
		}
		return notes[0]
	}
	b.share.hearNote(note(0))
	if got := b.view("a").Breaker; got != "closed" || len(b.taken) > 0 {
		t.Errorf("by an old note a is %s, and %d times what runs there was broken off", got, len(b.taken))
	}
	if err := a.redis.Note(t.Context(), hostKind, "a", nil, 0, true); err != nil {
		t.Fatal(err)
	}
	c := s.join(eps...)
	c.share.hearNote(note(2 * toldFor))
	if got := c.view("a").Breaker; got != "suspected" || len(c.taken) > 0 {
		t.Errorf("where nobody knows better it is %s, and %d times what runs there was broken off", got, len(c.taken))
	}
	a.r.Update(eps, nil)
	a.r.Probes(time.Now().Add(time.Minute), nil)
	a.r.Probed("a", outcome.Success)
	notes, err := a.redis.Notes(t.Context(), hostKind)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range notes {
		a.share.hearNote(n)
	}
	if got := a.view("a").Breaker; got != "closed" || len(a.taken) > 0 {
		t.Errorf("by its own note a is %s", got)
	}
}

// TestBack has a host that one replica has found well again tested by the others at once.
func TestBack(t *testing.T) {
	s := startRedis(t)
	a, b := s.join(host("a"), host("b")), s.join(host("a"), host("b"))
	a.lose("a")
	await(t, "suspected", func() bool { return b.view("a").Breaker == "suspected" })
	if due := b.r.Probes(time.Now(), nil); len(due) == 0 || due[0].Endpoint.ID != "a" {
		t.Errorf("due %+v", due)
	}
	b.r.Probed("a", outcome.DialFailed)
	if got := b.view("a").Breaker; got != "open" {
		t.Errorf("after a test that failed it is %s", got)
	}
	due := func(g *gateway) bool {
		return slices.ContainsFunc(g.r.Probes(time.Now(), nil), func(p router.Probe) bool { return p.Endpoint.ID == "a" && !p.SelfTest })
	}
	await(t, "due at a", func() bool { return due(a) })
	a.r.Probed("a", outcome.Success)
	began := time.Now()
	await(t, "due at b", func() bool { return due(b) })
	if d := time.Since(began); d > patience/10 {
		t.Errorf("tested after %s", d)
	}
}

// TestLoads has each replica count what the others have in flight: within about a second, sooner when it is much, and not for long when
// one of them is silent.
func TestLoads(t *testing.T) {
	s := startRedis(t)
	hosts := []endpoint.Endpoint{host("a"), host("b")}
	a, b, c := s.join(hosts...), s.join(hosts...), s.join(hosts...)
	elsewhere := func(g *gateway, id endpoint.ID, want int64) {
		t.Helper()
		await(t, fmt.Sprintf("%d in flight elsewhere at %s", want, id), func() bool { return g.view(id).Elsewhere == want })
	}
	var running []*router.Lease
	for range 20 {
		running = append(running, a.lease("a"))
	}
	running = append(running, a.lease("b"), b.lease("a"), b.lease("a"))
	elsewhere(c, "a", 22)
	elsewhere(c, "b", 1)
	elsewhere(a, "a", 2)
	elsewhere(b, "a", 20)
	for _, l := range running[:20] {
		l.Done(router.Result{Class: outcome.Success})
	}
	elsewhere(c, "a", 2)

	dead, err := state.Open(state.Options{URL: s.URL(), Timeout: patience / 3})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dead.Close() }()
	if err := dead.Publish(t.Context(), loadKind, []byte(`[{"h":"a","n":7},{"h":"b","n":-3},{"h":"none","n":1}]`)); err != nil {
		t.Fatal(err)
	}
	elsewhere(c, "a", 9)
	elsewhere(c, "b", 1)
	c.ahead.Add(int64(silentFor)) // a and b speak on
	elsewhere(c, "a", 2)
	elsewhere(c, "b", 1)

	b.stop() // in good order
	elsewhere(c, "a", 0)
	s.Stop()
	await(t, "deaf", func() bool { return !c.redis.Hears() })
	if n := c.view("b").Elsewhere; n != 1 {
		t.Errorf("%d in flight elsewhere as Redis goes, want what was known", n)
	}
	c.ahead.Add(int64(fadeOver))
	elsewhere(c, "b", 0)
	c.ahead.Add(-int64(fadeOver + silentFor))
	s.Start()
	elsewhere(c, "b", 1)
}

// TestOddWords leaves out what it does not understand.
func TestOddWords(t *testing.T) {
	s := startRedis(t)
	a := s.join(host("a"))
	for _, b := range []string{"", "null", "{", `{"host":"a","what":"abducted"}`, `{"host":"","what":"lost"}`, `{"host":7}`} {
		a.share.hearHost("x", []byte(b))
	}
	for _, b := range []string{"", "null", "{", `[{"h":7}]`, `[{"h":"a","n":1e99}]`} {
		a.share.hearLoad("x", []byte(b))
	}
	for _, from := range []string{"y", "z", "z2"} { // their sum would be less than nothing
		a.share.hearLoad(from, []byte(`[{"h":"a","n":9223372036854775807,"p":9223372036854775807}]`))
	}
	if v := a.view("a"); v.Elsewhere != 3*mostLoad {
		t.Errorf("%d elsewhere", v.Elsewhere)
	}
	for _, from := range []string{"y", "z", "z2"} {
		a.share.hearLoad(from, []byte("[]"))
	}
	if v := a.view("a"); v.Breaker != "closed" || v.Elsewhere != 0 {
		t.Errorf("%s, %d elsewhere", v.Breaker, v.Elsewhere)
	}
}

// silent is a way by which nothing goes.
type silent struct{ Way }

func (silent) ID() string { return "me" }

// TestLives tells of which of a host's lives a word is, and has no word of an earlier one end the present one.
func TestLives(t *testing.T) {
	born := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		life time.Time
		want string
	}{
		"of an earlier life": {born.Add(-time.Hour), "closed"},
		"of this one":        {born, "preempted"},
		"of none by name":    {time.Time{}, "preempted"},
	} {
		ep := host("a")
		ep.Started = born
		taken := 0
		r := router.New(router.Options{Now: time.Now, Probes: true, Seed: 1})
		r.Update([]endpoint.Endpoint{ep, host("b")}, nil)
		s := New(Options{Router: r, Way: silent{}, Taken: func(endpoint.ID) { taken++ }})
		s.hearHost("other", s.encode(router.Transition{Endpoint: "a", Change: health.Preempted, Told: true, Started: tc.life}, 0))
		if got := (&gateway{t: t, r: r}).view("a").Breaker; got != tc.want || (taken > 0) != (tc.want != "closed") {
			t.Errorf("%s: a is %s, broken off %d times", name, got, taken)
		}
	}
}
