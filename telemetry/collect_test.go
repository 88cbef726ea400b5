package telemetry

import (
	"testing"
	"time"

	"headrace/gateway/ledger"
	"headrace/router/outcome"
)

// unhurried is a sink that lets requests be counted whenever it is told something.
type unhurried struct {
	t    *testing.T
	m    *Metrics
	told map[instrument]int
}

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

// TestReadersHoldNobodyUp has a reader take its time.
func TestReadersHoldNobodyUp(t *testing.T) {
	start := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	m := NewMetrics(MetricsOptions{Names: NamesBoth, Now: func() time.Time { return start }})
	m.Record(&ledger.Record{
		At: start, Route: "/v1/chat/completions", Model: "llama", Known: true, Stream: true, Status: 200, TTFT: time.Second, Duration: 2 * time.Second, Prompt: 10, Output: 5, Tries: 1,
		Attempts: []ledger.Attempt{{Endpoint: "static:a", Provider: "static", Served: "llama", Class: outcome.Success, First: time.Second, Duration: 2 * time.Second, Output: 5}},
	})
	u := &unhurried{t, m, map[instrument]int{}}
	m.collect(u)
	for _, i := range []instrument{httpDuration, overhead, requests, serverTTFT, clientDuration, clientInput, clientUsage, attemptsMade, tokens} {
		if u.told[i] == 0 {
			t.Errorf("%s is not told", table[i].Name)
		}
	}
}
