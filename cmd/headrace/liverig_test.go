package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/gateway/config"
	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakevast"
	"headrace/router"
	"headrace/router/sim"
)

const (
	liveModel = "llama-70b"
	// Control planes are late as the simulator has it, 2 to 15 s of life after what the network shows: the account is polled
	// every livePoll, and tells what has happened liveLag ago.
	liveLag, livePoll = 2 * time.Second, 13 * time.Second
	// What the simulated gateway has patience for, in life as well.
	liveConnect, liveFirst, liveGap = 2 * time.Second, 12 * time.Second, 5 * time.Second
)

// liveStage is a fake cloud and the gateway in front of it.
type liveStage struct {
	t         *testing.T
	sc        *sim.Scenario
	plan      *sim.Plan
	instances []*fakevast.Instance // by host of the plan; nil where it is none
	apis      []*fakecloud.Host    // likewise
	app       *app
	base      string
}

// life makes seconds of the plan a duration of life, which the fakes divide by their TimeScale again.
func (s *liveStage) life(seconds float64) time.Duration {
	return time.Duration(seconds * s.sc.Speed * float64(time.Second))
}

func (s *liveStage) class(h *sim.Drawn) fakecloud.Class {
	c := fakecloud.Classes[2]
	c.BatchCost, c.PrefillTPS, c.MaxNumSeqs = h.Slope/h.Base, h.Prefill/s.sc.Speed, h.Seqs
	return c
}

func (s *liveStage) tps(h *sim.Drawn) float64 { return 1 / (h.Base + h.Slope) / s.sc.Speed }

// build starts the fakes and returns the gateway's config.
func (s *liveStage) build(seed uint64) string {
	speed := s.sc.Speed
	cloud := startVast(s.t, fakevast.Config{
		TimeScale: speed, Seed: seed, DetectionLag: liveLag, Boot: fakevast.Boot{Provision: 1, Pull: 1, Ports: 1, Model: 1},
	})
	var statics, expect strings.Builder
	for i := range s.plan.Hosts {
		h, class := &s.plan.Hosts[i], &s.sc.Hosts[i]
		id := "static:" + class.Name
		switch class.Kind {
		case sim.Hourly:
			in := cloud.AddInstance(fakevast.InstanceConfig{
				IsBid: true, DPHBase: h.USDPerHour, StorageCost: 1e-9, Class: s.class(h), Models: []string{liveModel}, TPS: s.tps(h), TTFT: s.life(h.First), MaxNumSeqs: h.Seqs,
			})
			s.instances[i] = in
			id = "vast:" + strconv.FormatInt(in.ID(), 10)
		case sim.API:
			a := startHost(s.t, fakecloud.HostConfig{Name: class.Name, Models: []string{liveModel}, Class: s.class(h), TPS: s.tps(h), TTFT: s.life(h.First), TimeScale: speed})
			s.apis[i] = a
			fmt.Fprintf(&statics, "    - {name: %s, base_url: %q, models: [%s], price: {usd_per_mtok: {in: %g, cached: %g, out: %g}}}\n",
				class.Name, a.URL()+"/v1", liveModel, class.USDPerMTokIn, class.USDPerMTokCached, class.USDPerMTokOut)
		default:
			s.t.Fatalf("no fake for a %s host", class.Kind)
		}
		p := &h.Prior
		fmt.Fprintf(&expect, "  - {host: %q, tps: %g, slope: %g, ttft: %v, prefill_tps: %g, max_num_seqs: %d}\n",
			id, 1/p.ITLSeconds, p.Slope, time.Duration(p.TTFTSeconds*float64(time.Second)), p.PrefillTokensPerSecond, p.MaxNumSeqs)
	}
	slo := &s.sc.SLO
	text := fmt.Sprintf("listen: \"127.0.0.1:0\"\nadmin: \"off\"\nlog: {level: warn, access: false}\nproviders:\n  vast: {api_key: vast-key, console_url: %q, run_url: %q, openai_url: %q, poll: %v}\n",
		cloud.ConsoleURL(), cloud.RunURL(), cloud.OpenAIURL(), brought(livePoll, speed))
	if statics.Len() > 0 {
		text += "  static:\n" + statics.String()
	}
	text += fmt.Sprintf("timeouts: {connect: %v, first_event: %v, gap: %v}\n", brought(liveConnect, speed), brought(liveFirst, speed), brought(liveGap, speed))
	text += fmt.Sprintf("models:\n  %s:\n    serves: [%s]\n    slo: {ttft: %v, tps: %g, confidence: %g}\n", liveModel, liveModel, time.Duration(slo.TTFT*float64(time.Second)), slo.TPS, slo.Confidence)
	return text + "catalogue:\n" + expect.String()
}

// start brings clouds and gateway up and waits until every host can be used.
func (s *liveStage) start(seed uint64) {
	t := s.t
	cfg, err := config.Parse("live.yaml", []byte(s.build(seed)), config.Overrides{}, noEnv)
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
	s.app.rented.Store(hurried(cfg, 1/s.sc.Speed, s.app.log))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.app.run(ctx, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", log)
		}
	})
	s.base = "http://" + s.app.listeners[0].Addr().String()
	r := rented{t: t, app: s.app, log: log, base: s.base}
	r.until("all hosts are found", func(hosts []router.HostView) bool {
		n := 0
		for i := range hosts {
			if (hosts[i].State == "ready" || hosts[i].State == "unknown") && len(hosts[i].Models) > 0 { // nobody tells of an API
				n++
			}
		}
		return n == len(s.plan.Hosts)
	})
}

// preempt plays the outages from begin on, and returns what stops it.
func (s *liveStage) preempt(begin time.Time) (stop func()) {
	var wg sync.WaitGroup
	quit := make(chan struct{})
	at := func(seconds float64) bool {
		if math.IsInf(seconds, 1) {
			return false
		}
		timer := time.NewTimer(time.Until(begin.Add(time.Duration(seconds * float64(time.Second)))))
		defer timer.Stop()
		select {
		case <-timer.C:
			return true
		case <-quit:
			return false
		}
	}
	for _, o := range s.plan.Outages {
		in := s.instances[o.Host]
		wg.Go(func() {
			if !at(o.From) {
				return
			}
			if o.Silent {
				in.HostOffline()
			} else {
				in.Outbid(fakevast.ExitedStopped)
			}
			if !at(o.To) {
				return
			}
			if o.Silent {
				in.Host().Kill() // nothing of what it held goes on
				in.HostOnline()
			}
			in.Resume()
		})
	}
	return func() { close(quit); wg.Wait() }
}

// liveAnswer is what became of a request.
type liveAnswer struct {
	status      int
	first, last time.Time // of the content
	tokens      int
	whole       bool
}

// ask sends a request and reads its stream.
func (s *liveStage) ask(client *http.Client, body []byte) (a liveAnswer) {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.base+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return a
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := client.Do(req)
	if err != nil {
		return a
	}
	defer func() { _ = res.Body.Close() }()
	a.status = res.StatusCode
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		line := lines.Bytes()
		switch {
		case bytes.Equal(line, []byte("data: [DONE]")):
			a.whole = true
		case bytes.Contains(line, []byte(`"error":`)):
			return a
		case bytes.Contains(line, []byte(`"content":"`)) && !bytes.Contains(line, []byte(`"content":""`)):
			a.last = time.Now()
			if a.tokens++; a.tokens == 1 {
				a.first = a.last
			}
		}
	}
	return a
}

// playLive plays a plan on real sockets.
func playLive(t *testing.T, sc *sim.Scenario, plan *sim.Plan, seed uint64) *liveOutcome {
	t.Helper()
	s := &liveStage{t: t, sc: sc, plan: plan, instances: make([]*fakevast.Instance, len(plan.Hosts)), apis: make([]*fakecloud.Host, len(plan.Hosts))}
	s.start(seed)
	bodies := liveBodies(plan.Calls)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1000, DisableCompression: true}}
	defer client.CloseIdleConnections()
	answers := make([]liveAnswer, len(plan.Calls))
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // the clients' and the fakes' garbage is not the gateway's business
	begin := time.Now()
	stop, lateness := s.preempt(begin), watchLateness()
	var wg sync.WaitGroup
	for i, c := range plan.Calls {
		wg.Go(func() {
			<-time.After(time.Until(begin.Add(time.Duration(c.At * float64(time.Second)))))
			answers[i] = s.ask(client, bodies[i])
		})
	}
	wg.Wait()
	stop()
	o := s.settle(begin, answers)
	o.late = lateness()
	return o
}

// watchLateness measures how late the machine wakes who waits for a time; the result is sorted, in seconds.
func watchLateness() (result func() []float64) {
	quit, done := make(chan struct{}), make(chan []float64)
	go func() {
		var late []float64
		for {
			due := time.Now().Add(2 * time.Millisecond)
			select {
			case <-time.After(time.Until(due)):
				late = append(late, time.Since(due).Seconds())
			case <-quit:
				slices.Sort(late)
				done <- late
				return
			}
		}
	}()
	return func() []float64 { close(quit); return <-done }
}

// settle counts as the simulator's ledger does.
func (s *liveStage) settle(begin time.Time, answers []liveAnswer) *liveOutcome {
	o := &liveOutcome{requests: len(answers)}
	slo := &s.sc.SLO
	for i := range answers {
		a, c := &answers[i], &s.plan.Calls[i]
		switch {
		case a.status == http.StatusTooManyRequests || a.status == http.StatusServiceUnavailable:
			o.shed++
			continue
		case a.status != http.StatusOK || !a.whole:
			o.failed++
			continue
		case a.tokens != c.Output:
			s.t.Errorf("request %d got %d tokens of %d", i, a.tokens, c.Output)
		}
		o.tokens += int64(a.tokens)
		ttft := a.first.Sub(begin).Seconds() - c.At
		tps := float64(max(1, a.tokens-1)) / max(1e-3, a.last.Sub(a.first).Seconds())
		o.ttft = append(o.ttft, ttft)
		const short = 10 // tokens of an answer whose speed nobody notices, as the simulator has it
		if a.tokens > short {
			o.tps = append(o.tps, tps)
		}
		if ttft <= slo.TTFT && (a.tokens <= short || tps >= slo.TPS) {
			o.good++
		}
	}
	slices.Sort(o.ttft)
	slices.Sort(o.tps)
	for i := range s.plan.Hosts {
		class := &s.sc.Hosts[i]
		if s.instances[i] != nil {
			o.usd += s.plan.Hosts[i].USDPerHour * s.sc.Hours
			continue
		}
		st := s.apis[i].Stats()
		o.metered += (float64(st.PromptTokens-st.CachedTokens)*class.USDPerMTokIn + float64(st.CachedTokens)*class.USDPerMTokCached + float64(st.OutputTokens)*class.USDPerMTokOut) / 1e6
	}
	o.usd += o.metered
	return o
}

type liveTurn struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// liveBodies are the requests, turns of conversations with as many tokens as planned: four bytes each, as the fake counts. A
// later turn tells all that was said before; of answers, whose tokens are longer, it tells as much as they count.
func liveBodies(calls []sim.Arrival) [][]byte {
	bodies := make([][]byte, len(calls))
	talks := map[int][]liveTurn{}
	for i, c := range calls {
		turns := talks[c.Session]
		begin := ""
		if len(turns) == 0 {
			begin = fmt.Sprintf("%06d ", c.Session) // like no other's
		}
		turns = append(turns, liveTurn{"user", liveText(begin, 4*(c.Prompt-c.Shared))})
		var all []string
		for _, t := range turns {
			all = append(all, t.Content)
		}
		body, err := json.Marshal(map[string]any{"model": liveModel, "stream": true, "max_tokens": c.Output, "seed": 1, "messages": turns})
		if err != nil {
			panic("BUG: " + err.Error())
		}
		bodies[i] = body
		said := fakecloud.Answer(liveModel, strings.Join(all, "\n"), c.Output)
		talks[c.Session] = append(turns[:len(turns):len(turns)], liveTurn{"assistant", strings.ToValidUTF8(said[:min(len(said), 4*c.Output)], "")})
	}
	return bodies
}

// liveText is text of that many bytes, one at least.
func liveText(begin string, size int) string {
	text := begin + strings.Repeat("lore ", 1+size/5)
	return text[:max(1, size)]
}
