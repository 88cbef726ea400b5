package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"headrace/gateway/config"
	"headrace/gateway/ledger"
	"headrace/gateway/ledger/books"
	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakerunpod"
	"headrace/providers/fakecloud/fakevast"
	"headrace/providers/runpod"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

var ledgerRequests = flag.Int("ledger.requests", 3000, "requests of TestLedgerTruth; 20000 is what docs/costs.md speaks of")

// truth is a gateway in front of both fake clouds and two APIs, and what its callers learn.
type truth struct {
	t      *testing.T
	app    *app
	base   string
	vast   []*fakevast.Instance
	apis   []*fakecloud.Host
	steady *fakerunpod.Endpoint // a worker that is always up
	sleepy *fakerunpod.Endpoint // one that comes and goes
	many   *fakerunpod.Endpoint // up to four that come and go beside each other
	runpod *fakerunpod.Cloud
	began  time.Time
	first  stand // at began

	mu    sync.Mutex // guards told and late
	told  map[string]heard
	late  float64 // USD: what instances cost between a change and the gateway's hearing of it
	sent  atomic.Int64
	whole atomic.Int64 // answered
	left  atomic.Int64 // by their callers
	early atomic.Int64 // of these, before a head came: the gateway may never have read them
	gone  atomic.Int64 // of these, settled

	resumed atomic.Int64 // settled, and gone on with by another host
}

const apiIn, apiCached, apiOut = 0.60, 0.15, 0.90 // USD per million tokens

func startTruth(t *testing.T, file string) *truth {
	t.Helper()
	s := &truth{t: t, told: map[string]heard{}}
	const engines = 40 // times as fast as life
	va := startVast(t, fakevast.Config{TimeScale: 1, EngineScale: engines, Seed: 1, WebhookDelay: time.Millisecond, Boot: fakevast.Boot{Provision: 1, Pull: 1, Ports: 1, Model: 1}})
	for _, usd := range []float64{900, 500, 700} { // an hour here is a test of some seconds
		s.vast = append(s.vast, va.AddInstance(fakevast.InstanceConfig{IsBid: true, DPHBase: usd, StorageCost: 1e-9, Models: []string{"on-vast"}, TPS: 50, TTFT: 100 * time.Millisecond, MaxNumSeqs: 64}))
	}
	s.runpod = startRunPod(t, fakerunpod.Config{
		TimeScale: engines, Seed: 1, RateLimits: fakerunpod.RateLimits{Off: true}, Management: fakerunpod.Management{PerMinute: 1e6, PerHour: 1e6, PerDay: 1e6},
	})
	s.steady = s.runpod.AddEndpoint(fakerunpod.EndpointConfig{
		ID: "steady", Type: fakerunpod.LoadBalancer, WorkersMin: 3, WorkersMax: 3, ColdStart: time.Second, Env: map[string]string{"MODEL_NAME": "on-runpod"}, MaxConcurrency: 64, TPS: 50,
	})
	s.sleepy = s.runpod.AddEndpoint(fakerunpod.EndpointConfig{
		ID: "sleepy", WorkersMax: 1, ColdStart: 45 * time.Second, // what is taken for one until it was seen whole
		IdleTimeout: 20 * time.Second, Env: map[string]string{"MODEL_NAME": "on-worker"}, TPS: 50,
	})
	s.many = s.runpod.AddEndpoint(fakerunpod.EndpointConfig{
		ID: "many", WorkersMax: 4, MaxConcurrency: 1, ColdStart: 30 * time.Second, IdleTimeout: 20 * time.Second, Env: map[string]string{"MODEL_NAME": "on-workers"}, TPS: 50,
	})
	var statics strings.Builder
	for i := range 2 {
		h := startHost(t, fakecloud.HostConfig{Name: fmt.Sprint("api", i), Models: []string{"on-api"}, TimeScale: engines, TPS: 50, TTFT: 100 * time.Millisecond, MaxNumSeqs: 128, Seed: uint64(i)}) //nolint:gosec // not negative
		s.apis = append(s.apis, h)
		fmt.Fprintf(&statics, "    - {name: api%d, base_url: %q, models: [on-api], continues: always, price: {usd_per_mtok: {in: %g, cached: %g, out: %g}}}\n", i, h.URL()+"/v1", apiIn, apiCached, apiOut)
	}
	yaml := fmt.Sprintf("listen: \"127.0.0.1:0\"\nadmin: \"127.0.0.1:0\"\nlog: {access: false, level: error}\nledger: {path: %q, flush: 100ms}\nproviders:\n  static:\n%s", file, statics.String())
	yaml += fmt.Sprintf("  vast: {api_key: vast-key, console_url: %q, run_url: %q, openai_url: %q, poll: 300ms}\n", va.ConsoleURL(), va.RunURL(), va.OpenAIURL())
	yaml += fmt.Sprintf("  runpod: {api_key: %q, management_url: %q, queue_url: %q, balancer_url: %q, pod_url: %q, health_poll: 100ms}\n",
		s.runpod.Key(), s.runpod.ManagementURL(), s.runpod.QueueURL(), s.runpod.BalancerURL(), s.runpod.PodURL())
	yaml += "breaker: {open_for: 50ms}\ntimeouts: {stall: 3s}\nretries: {budget: 1}\n"
	cfg, err := config.Parse("truth.yaml", []byte(yaml), config.Overrides{}, noEnv)
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		t.Fatal(err)
	}
	log := newLogBuffer()
	if s.app, err = newApp(cfg, log); err != nil {
		t.Fatal(err)
	}
	s.app.onSettled = func(r *ledger.Record) {
		switch {
		case r.Resumes > 0:
			s.resumed.Add(1)
		case r.Class == outcome.ClientGone:
			s.gone.Add(1)
		}
	}
	s.base = "http://" + s.app.listeners[0].Addr().String()
	if cfg.Providers.Vast.WebhookSecret, err = subscribe(t.Context(), va.ConsoleURL(), "vast-key", s.base); err != nil {
		t.Fatal(err)
	}
	c := hurried(cfg, 1.0/engines, s.app.log)
	o := runpodOptions(cfg.Providers.RunPod, s.app.log)
	o.Settle, o.Pace = time.Nanosecond, 1.0/engines
	c.runpod = runpod.New(o)
	s.app.rented.Store(c)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.app.run(ctx, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if t.Failed() {
			t.Logf("log:\n%.4000s", log)
		}
	})
	r := rented{t: t, app: s.app, log: log, base: s.base}
	r.until("all hosts are found", func(hosts []router.HostView) bool {
		n := 0
		for i := range hosts {
			if len(hosts[i].Models) > 0 && (hosts[i].State == "ready" || hosts[i].State == "cold" || hosts[i].Provider == "static") {
				n++
			}
		}
		return n == len(s.vast)+len(s.apis)+3
	})
	s.began = time.Now()
	s.first = s.stands()
	return s
}

// stand is what all books have at one time: the cloud's a moment before the ledger's, and a moment after.
type stand struct {
	before, after map[string]float64 // USD, by host
	ledger        map[string]float64
	meters        map[string]endpoint.Reading
}

func (s *truth) stands() (st stand) {
	s.t.Helper()
	cloud := func() map[string]float64 {
		m := map[string]float64{}
		for _, in := range s.vast {
			c := in.Charge()
			m[fmt.Sprint("vast:", in.ID())] = c.GPU + c.Disk
		}
		for _, id := range []string{"steady", "sleepy", "many"} {
			m["runpod:"+id] = s.runpod.Bill(id)
		}
		return m
	}
	st.before = cloud()
	p, err := s.app.books.Period(s.t.Context(), time.Now().Add(-time.Hour), time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	st.after = cloud()
	st.ledger, st.meters = map[string]float64{}, map[string]endpoint.Reading{}
	for _, h := range p.Hours {
		st.ledger[h.Host] += h.USD
	}
	for _, h := range s.app.router.Hosts() {
		if h.Endpoint.Meter != nil {
			st.meters[string(h.ID)] = h.Endpoint.Meter.Read(time.Now())
		}
	}
	return st
}

// since is what has come to the books of some hosts since the beginning: to the ledger's, and to the cloud's at least and at most.
func (s *truth) since(now *stand, hosts string) (ledger, low, high, doubt float64) {
	for id := range now.before {
		if strings.HasPrefix(id, hosts) {
			ledger += now.ledger[id] - s.first.ledger[id]
			low += now.before[id] - s.first.after[id]
			high += now.after[id] - s.first.before[id]
			doubt += now.meters[id].Doubt - s.first.meters[id].Doubt
		}
	}
	return ledger, low, high, doubt
}

// ask sends one request as the kind says and reads what comes of it.
func (s *truth) ask(client *http.Client, model string, rng *rand.Rand) {
	s.sent.Add(1)
	stream, usage, leave := rng.IntN(2) == 0, rng.IntN(4) > 0, rng.IntN(100)
	req := map[string]any{
		"model": model, "max_tokens": 10 + rng.IntN(60), "stream": stream,
		"messages": []map[string]string{{"role": "user", "content": fmt.Sprintf("%d %s", rng.Uint32(), strings.Repeat("word ", 20+rng.IntN(200)))}},
	}
	if stream && usage {
		req["stream_options"] = map[string]bool{"include_usage": true}
	}
	body, err := json.Marshal(req)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	if leave == 0 { // before anything came
		defer time.AfterFunc(time.Duration(rng.IntN(5000))*time.Microsecond, cancel).Stop()
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.base+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		panic("BUG: " + err.Error())
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := client.Do(r)
	if err != nil {
		s.left.Add(1)
		s.early.Add(1)
		return
	}
	defer func() { _ = res.Body.Close() }()
	id := res.Header.Get("X-Request-Id")
	var u struct {
		Usage *struct {
			Prompt int64 `json:"prompt_tokens"`
			Output int64 `json:"completion_tokens"`
		} `json:"usage"`
	}
	ended := false
	if stream {
		in := bufio.NewReader(res.Body)
		for events := 0; ; events++ {
			line, err := in.ReadBytes('\n')
			if err != nil {
				break
			}
			data, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("data: "))
			if !ok {
				continue
			}
			if ended = ended || string(data) == "[DONE]"; bytes.Contains(data, []byte(`"usage":{`)) {
				_ = json.Unmarshal(data, &u) // what is not understood is no usage
			}
			if leave == 1 && events > 5 {
				cancel() // amid the stream
			}
		}
	} else {
		b, err := io.ReadAll(res.Body)
		ended = err == nil && res.StatusCode == http.StatusOK && json.Unmarshal(b, &u) == nil
	}
	if ctx.Err() != nil {
		s.left.Add(1)
	}
	if !ended || ctx.Err() != nil {
		return
	}
	s.whole.Add(1)
	if u.Usage != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.told[id] = heard{prompt: u.Usage.Prompt, output: u.Usage.Output}
	}
}

// play sends n requests while hosts fail, are outbid and go to sleep.
func (s *truth) play(n int, seed uint64) {
	for _, h := range s.apis {
		if err := h.SetFaults(fakecloud.Fault{Kind: fakecloud.Error500, P: 0.01}, fakecloud.Fault{Kind: fakecloud.ResetStream, After: 6, P: 0.01}, fakecloud.Fault{Kind: fakecloud.CutEvent, After: 9, P: 0.01}); err != nil {
			s.t.Fatal(err)
		}
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	defer client.CloseIdleConnections()
	quit := make(chan struct{})
	var beside sync.WaitGroup
	every := func(d time.Duration, f func(i int)) {
		beside.Go(func() {
			tick := time.NewTicker(d)
			defer tick.Stop()
			for i := 0; ; i++ {
				select {
				case <-tick.C:
					f(i)
				case <-quit:
					return
				}
			}
		})
	}
	var away bool
	every(2*time.Second, func(i int) { // one of the instances at a time is away for half of it
		in := s.vast[i/2%len(s.vast)]
		since := time.Now()
		switch out := i%2 == 0; {
		case out && stateOf(s.app.router.Hosts(), fmt.Sprint("vast:", in.ID())) != "ready":
			return // on a machine that stands still its streams broke: what was lost by then would be taken for not paid since
		case out:
			in.Outbid(fakevast.ExitedStopped)
		case away:
			in.Resume()
		default:
			return
		}
		away = i%2 == 0
		look := time.NewTicker(2 * time.Millisecond)
		defer look.Stop()
		for out := i%2 == 0; (stateOf(s.app.router.Hosts(), fmt.Sprint("vast:", in.ID())) == "preempted") != out; {
			select {
			case <-look.C:
			case <-s.t.Context().Done():
				return
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.late += time.Since(since).Hours() * in.Config().DPHBase
	})
	sleepy := rand.New(rand.NewPCG(seed, 99)) //nolint:gosec // a test's
	pause := 10 * time.Second
	if n < 20_000 {
		pause = 3 * time.Second // that there are some
	}
	var woken atomic.Int64
	every(pause, func(int) {
		s.ask(client, "on-worker", sleepy)
		woken.Add(1)
	})
	var crowd sync.WaitGroup
	many := rand.New(rand.NewPCG(seed, 98)) //nolint:gosec // a test's
	every(pause/2, func(int) {
		for range 2 + many.IntN(6) {
			rng := rand.New(rand.NewPCG(seed, many.Uint64())) //nolint:gosec // a test's
			crowd.Go(func() { s.ask(client, "on-workers", rng) })
		}
	})
	var wg sync.WaitGroup
	var next atomic.Int64
	for w := range 24 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(w)))                                                     //nolint:gosec // a test's
			for next.Add(1) <= int64(n) || s.resumed.Load() == 0 || s.gone.Load() == 0 || woken.Load() == 0 { // until it has happened
				model := "on-api"
				switch k := rng.IntN(10); {
				case k < 4:
					model = "on-vast"
				case k < 6:
					model = "on-runpod"
				}
				s.ask(client, model, rng)
			}
		})
	}
	wg.Wait()
	close(quit)
	beside.Wait()
	crowd.Wait()
}

// TestLedgerTruth compares the ledger with the fake clouds' own books and with what callers were told.
func TestLedgerTruth(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	file := filepath.Join(t.TempDir(), "ledger.db")
	s := startTruth(t, file)
	if underRace && *ledgerRequests == 3000 {
		*ledgerRequests = 1000
	}
	s.play(*ledgerRequests, seed)
	for _, e := range []*fakerunpod.Endpoint{s.sleepy, s.many} { // their last workers are paid for until they have gone
		if err := e.Wait(t.Context(), func(st fakerunpod.Stats) bool { return st.Workers == 0 }); err != nil {
			t.Fatal(err)
		}
	}
	(&rented{t: t, app: s.app, base: s.base}).until("the workers are seen to have gone", func(hs []router.HostView) bool {
		return stateOf(hs, "runpod:sleepy") == "cold" && stateOf(hs, "runpod:many") == "cold"
	})
	now := s.stands()
	p, err := s.app.books.Period(t.Context(), s.began.Add(-time.Hour), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	total := p.Report([]books.Dim{books.ByProvider, books.ByHost}, nil)
	t.Log("\n" + reportText(&total))
	t.Logf("%d requests, %d answered, %d left by their callers, %v", s.sent.Load(), s.whole.Load(), s.left.Load(), time.Since(s.began).Round(time.Millisecond))

	// Requests, one by one.
	type reported struct {
		attempts               int
		prompt, cached, output float64
	}
	exact := map[string]reported{} // of attempts whose host reported its tokens, by host
	seen := map[string]bool{}
	kinds := map[string]int{}
	if err := books.Each(file, func(r *ledger.Record) bool {
		if seen[r.ID] {
			t.Errorf("%s is there twice", r.ID)
		}
		seen[r.ID] = true
		kinds[r.Class.String()]++
		if r.Resumes > 0 {
			kinds["gone on with"]++
		}
		if r.Tries > 1 {
			kinds["more than one attempt"]++
		}
		for i := range r.Attempts {
			if a := &r.Attempts[i]; a.Counted {
				e := exact[string(a.Endpoint)]
				exact[string(a.Endpoint)] = reported{e.attempts + 1, e.prompt + float64(a.Prompt), e.cached + float64(a.Cached), e.output + float64(a.Output)}
			}
		}
		if a, known := s.told[r.ID]; known && (a.prompt != r.Prompt || a.output != r.Output) {
			t.Errorf("%s: the ledger has %d and %d tokens, its caller was told %d and %d (%d resumes)", r.ID, r.Prompt, r.Output, a.prompt, a.output, r.Resumes)
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%v, %d compared with what callers were told", kinds, len(s.told))
	if n := int64(len(seen)); n > s.sent.Load() || n < s.sent.Load()-s.early.Load() || total.Total.N[books.Requests] != n {
		t.Errorf("%d requests were sent, %d of them left at once, %d are in the ledger, %d in its sums", s.sent.Load(), s.early.Load(), n, total.Total.N[books.Requests])
	}
	for id := range s.told {
		if !seen[id] {
			t.Errorf("%s is not in the ledger", id)
		}
	}
	if kinds["gone on with"] == 0 || kinds["more than one attempt"] == 0 || kinds["client_gone"] == 0 {
		t.Errorf("nothing happened: %v", kinds)
	}

	// By provider. What a host reported is exact. Of answers that broke off, and of the tests that the gateway makes itself, there is an
	// estimate or nothing: each of them comes to no more than the most that was asked for.
	const mostPrompt, mostOutput = 500, 70
	within := func(what string, got, low, high, slack float64) {
		t.Helper()
		whole := !strings.Contains(what, ":") || strings.Contains(what, ": ") // of a provider, and not of one of its hosts
		off := 0.0
		if mid := (low + high) / 2; mid != 0 {
			off = 100 * (got - mid) / mid
		}
		t.Logf("%-28s ledger %14.6f, cloud %14.6f to %14.6f, %+.3f %%, may differ by %.6f", what, got, low, high, off, slack)
		if got < low*0.995-slack || got > high*1.005+slack || whole && *ledgerRequests >= 20_000 && math.Abs(off) > 0.5 {
			t.Errorf("%s is off by %.3f %%", what, off)
		}
	}
	tokens := func(name string, hosts map[string][]*fakecloud.Host) (prompt, cached, output, slack float64) {
		t.Helper()
		var ledgerPrompt, ledgerOutput, generations float64
		var e reported
		for id, hs := range hosts {
			for _, h := range hs {
				st := h.Stats()
				prompt, cached, output = prompt+float64(st.PromptTokens), cached+float64(st.CachedTokens), output+float64(st.OutputTokens)
				generations += float64(st.Generations)
			}
			x := exact[id]
			e = reported{e.attempts + x.attempts, e.prompt + x.prompt, e.cached + x.cached, e.output + x.output}
		}
		for i := range total.Lines {
			if l := &total.Lines[i]; hosts[l.Group[1]] != nil {
				ledgerPrompt += float64(l.N[books.PromptTokens] + l.N[books.WastedPrompt])
				ledgerOutput += float64(l.N[books.OutputTokens] + l.N[books.WastedOutput])
			}
		}
		slack = generations - float64(e.attempts)
		t.Logf("%s: %d attempts of %v were reported, with %v and %v tokens", name, e.attempts, generations, e.prompt, e.output)
		if slack < 0 || e.prompt > prompt || e.cached > cached || e.output > output {
			t.Errorf("%s: hosts have reported more than they did: %+v of %v, %v, %v and %v", name, e, generations, prompt, cached, output)
		}
		within(name+" prompt tokens", ledgerPrompt, prompt, prompt, slack*mostPrompt)
		within(name+" output tokens", ledgerOutput, output, output, slack*mostOutput)
		return prompt, cached, output, slack
	}
	lines := func(prefix string) (l books.Line) {
		for i := range total.Lines {
			if strings.HasPrefix(total.Lines[i].Group[1], prefix) {
				l.Add(&total.Lines[i].Sums)
				l.IdleUSD += total.Lines[i].IdleUSD
			}
		}
		return l
	}
	hosts := map[string][]*fakecloud.Host{}
	for i, h := range s.apis {
		hosts[fmt.Sprint("static:api", i)] = []*fakecloud.Host{h}
	}
	prompt, cached, output, slack := tokens("api", hosts)
	api := lines("static:")
	usd := ((prompt-cached)*apiIn + cached*apiCached + output*apiOut) / 1e6
	within("api USD", api.Allocated(), usd, usd, slack*(mostPrompt*apiIn+mostOutput*apiOut)/1e6)

	hosts = map[string][]*fakecloud.Host{}
	for _, in := range s.vast {
		hosts[fmt.Sprint("vast:", in.ID())] = []*fakecloud.Host{in.Host()}
	}
	tokens("vast", hosts)
	for id := range hosts {
		booked, low, high, _ := s.since(&now, id)
		t.Logf("%s: ledger $%.6f, cloud $%.6f to $%.6f", id, booked, low, high)
	}
	booked, low, high, _ := s.since(&now, "vast:")
	within("vast USD", booked, low, high, s.late)

	hosts = map[string][]*fakecloud.Host{}
	for _, w := range s.steady.Workers() { // of those that sleep the books are gone
		hosts["runpod:steady"] = append(hosts["runpod:steady"], w.Host)
	}
	tokens("runpod", hosts)
	perSecond := s.app.router.Snapshot().Endpoint("runpod:sleepy").Price.USDPerWorkerSecond
	for _, of := range []string{"runpod:steady", "runpod:sleepy", "runpod:many", "runpod:"} { // looks leave open when workers that sleep came and went
		booked, low, high, doubt := s.since(&now, of)
		t.Logf("%s: %.3f worker seconds of doubt", of, doubt)
		within(of+" USD", booked, low, high, doubt*perSecond)
	}
	for id, e := range map[string]*fakerunpod.Endpoint{"runpod:sleepy": s.sleepy, "runpod:many": s.many} {
		got, want := now.meters[id].Starts, int64(e.Stats().WorkersStarted)
		t.Logf("%s: %d starts, the cloud has %d", id, got, want)
		if e == s.sleepy && got != want || want == 0 {
			t.Errorf("%d starts of %s's workers, the cloud has %d", got, id, want)
		}
	}
	va, rp := lines("vast:"), lines("runpod:")
	// Where less was booked than a host was used for, because a change was heard of late, more is allocated than was paid.
	_, _, _, doubt := s.since(&now, "runpod:")
	rented, slack := va.Allocated()+rp.Allocated(), s.late+doubt*perSecond
	if more := rented - total.Rented - va.F[books.TrafficUSD]; more < -1e-9*rented || more > 1e-9*rented+slack {
		t.Errorf("allocated $%v, hosts were paid $%v", rented, total.Rented)
	}
}
