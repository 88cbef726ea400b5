package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakerunpod"
	"headrace/providers/fakecloud/fakevast"
	"headrace/router/sim"
)

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
	s := &liveStage{t: t, sc: sc, plan: plan, classes: map[string]int{}, attempts: map[string]int{}, instances: make([]*fakevast.Instance, len(plan.Hosts)), apis: make([]*fakecloud.Host, len(plan.Hosts)), workers: make([]*fakerunpod.Endpoint, len(plan.Hosts))}
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
	s.mu.Lock()
	defer s.mu.Unlock()
	o.classes = fmt.Sprint(s.classes)
	o.attempts = fmt.Sprint(slices.Sorted(maps.Values(s.attempts)))
	return o
}

// ownTime is the seconds to a first token from a host that takes none, sorted: what client, gateway and sockets take of them on
// this machine, one request at a time.
func ownTime(t *testing.T) (took []float64) {
	t.Helper()
	h := startHost(t, fakecloud.HostConfig{Models: []string{liveModel}})
	app := startApp(t, t.TempDir(), fmt.Sprintf(appYAML, h.URL()+"/v1"), nil)
	s := &liveStage{t: t, base: app.base}
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	defer client.CloseIdleConnections()
	lone := make([]sim.Arrival, 100)
	for i := range lone {
		lone[i] = sim.Arrival{Session: i, Prompt: 300, Output: 20}
	}
	for _, body := range liveBodies(lone) {
		began := time.Now()
		a := s.ask(client, body)
		if !a.whole {
			t.Fatalf("a lone request ended with %+v", a)
		}
		took = append(took, a.first.Sub(began).Seconds())
	}
	slices.Sort(took)
	return took
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
		switch {
		case s.instances[i] != nil:
			o.usd += s.plan.Hosts[i].USDPerHour * s.sc.Hours
			continue
		case s.workers[i] != nil:
			e := s.workers[i] // the last worker is paid for until it has gone
			if err := e.Wait(s.t.Context(), func(st fakerunpod.Stats) bool { return st.Workers == 0 }); err != nil {
				s.t.Error(err)
			}
			o.metered += s.runpod.Bill(e.ID())
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
		talks[c.Session] = append(slices.Clip(turns), liveTurn{"assistant", strings.ToValidUTF8(said[:min(len(said), 4*c.Output)], "")})
	}
	return bodies
}

// liveText is text of that many bytes, one at least.
func liveText(begin string, size int) string {
	text := begin + strings.Repeat("lore ", 1+size/5)
	return text[:max(1, size)]
}
