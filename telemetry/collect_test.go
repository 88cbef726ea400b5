package telemetry

import (
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"headrace/gateway/ledger"
	"headrace/router"
	"headrace/router/outcome"
)

// unhurried is a sink that lets requests be counted whenever it is told something.
type unhurried struct {
	t    *testing.T
	m    *Metrics
	told map[instrument]int
}

func (u *unhurried) from(time.Time)                              {}
func (u *unhurried) number(i instrument, _ float64, _ ...string) { u.free(i) }
func (u *unhurried) hist(i instrument, _ *hist, _ ...string)     { u.free(i) }

// free holds that no set is locked.
func (u *unhurried) free(i instrument) {
	u.told[i]++
	try := func(l interface{ TryLock() bool }, unlock func()) {
		if !l.TryLock() {
			u.t.Fatalf("a set is locked while %s is told", table[i].Name)
		}
		unlock()
	}
	u.m.http.each(func(_ httpKey, s *httpSet) { try(&s.mu, s.mu.Unlock) })
	u.m.routes.each(func(_ string, s *routeSet) { try(&s.mu, s.mu.Unlock) })
	u.m.models.each(func(_ string, s *modelSet) { try(&s.mu, s.mu.Unlock) })
	u.m.served.each(func(_ servedKey, s *servedSet) { try(&s.mu, s.mu.Unlock) })
	u.m.genai.each(func(_ genaiKey, s *genaiSet) { try(&s.mu, s.mu.Unlock) })
	u.m.hosts.each(func(_ hostKey, s *hostSet) { try(&s.mu, s.mu.Unlock) })
}

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// request is one with an attempt at a host, that ended at noon.
func request() *ledger.Record {
	return &ledger.Record{
		At: noon.Add(-2 * time.Second), Route: "/v1/chat/completions", Model: "llama", Known: true, Stream: true, Status: 200, TTFT: time.Second, Duration: 2 * time.Second, Prompt: 10, Output: 5, Tries: 1,
		Attempts: []ledger.Attempt{{Endpoint: "static:a", Provider: "static", Served: "llama", Class: outcome.Success, First: time.Second, Duration: 2 * time.Second, Output: 5}},
	}
}

// TestReadersHoldNobodyUp has a reader take its time.
func TestReadersHoldNobodyUp(t *testing.T) {
	m := NewMetrics(MetricsOptions{Names: NamesBoth, Now: func() time.Time { return noon }})
	m.Record(request())
	u := &unhurried{t, m, map[instrument]int{}}
	m.collect(u)
	for _, i := range []instrument{httpDuration, overhead, requests, serverTTFT, clientDuration, clientInput, clientUsage, attemptsMade, tokens} {
		if u.told[i] == 0 {
			t.Errorf("%s is not told", table[i].Name)
		}
	}
}

// TestForgottenAndBack holds that figures which begin anew say so to a collector, which would take them for a fall else.
func TestForgottenAndBack(t *testing.T) {
	now := noon
	m := NewMetrics(MetricsOptions{Now: func() time.Time { return now }, Sources: Sources{Hosts: func() []router.HostView { return nil }}})
	since := func() []time.Time {
		p := &pile{now: now}
		m.collect(p)
		var all []time.Time
		for _, d := range p.numbers[attemptsMade] {
			all = append(all, d.StartTime)
		}
		for _, d := range p.hists[clientDuration] {
			all = append(all, d.StartTime)
		}
		if at := p.hists[httpDuration][0].StartTime; !at.Equal(noon) {
			t.Errorf("requests are counted since %s", at)
		}
		return all
	}
	now = noon.Add(time.Minute)
	m.Record(request())
	if got := since(); !slices.Equal(got, []time.Time{now, now}) {
		t.Errorf("at first: since %s", got)
	}
	if now = now.Add(keepGone); len(since()) != 0 {
		t.Error("a host that is gone was not forgotten")
	}
	now = now.Add(time.Minute)
	m.Record(request())
	if got := since(); !slices.Equal(got, []time.Time{now, now}) {
		t.Errorf("again: since %s", got)
	}
}

// TestForgetting has hosts forgotten while their attempts are counted: each is counted where somebody reads it.
func TestForgetting(t *testing.T) {
	const counters, each = 4, 5000
	m := NewMetrics(MetricsOptions{Now: func() time.Time { return noon }})
	var sum int64
	forget := func() {
		m.naming.Lock()
		defer m.naming.Unlock()
		m.hosts.drop(func(_ hostKey, s *hostSet) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.gone = true
			sum += s.attempts[outcome.Success]
			return true
		})
	}
	var wg sync.WaitGroup
	for range counters {
		wg.Go(func() {
			r := request()
			for range each {
				m.Record(r)
			}
		})
	}
	done := make(chan struct{})
	go func() { defer close(done); wg.Wait() }()
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		default:
			runtime.Gosched()
		}
		forget()
	}
	if sum != counters*each {
		t.Errorf("%d attempts are counted, %d were made", sum, counters*each)
	}
}
