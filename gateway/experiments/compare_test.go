package experiments

import (
	"math"
	"testing"
	"time"

	"headrace/gateway/ledger"
	"headrace/gateway/state"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/experiment/stats"
)

// TestPriceCompared: a host that is paid by the hour is compared by its price at full load, whatever share of an hour the request was
// charged; of others that is compared which was paid.
func TestPriceCompared(t *testing.T) {
	m := New(Options{Store: state.NewMemory(), Host: func(id endpoint.ID) *endpoint.Endpoint {
		ep := &endpoint.Endpoint{ID: id, Hardware: endpoint.Hardware{GPU: "A100 80GB"}}
		ep.Price.Basis = map[endpoint.ID]endpoint.Basis{"hour": endpoint.PerHour, "worker": endpoint.PerWorkerSecond, "api": endpoint.PerToken}[id]
		return ep
	}})
	tr := &trial{Trial: trialOf()}
	for name, tc := range map[string]struct {
		host     endpoint.ID
		fullLoad float64
		want     float64
		metered  bool
	}{
		"by the hour":               {"hour", 1.5, 1.5, false},
		"by the hour, nobody knows": {"hour", math.NaN(), 20, false},
		"by the hour, not decided":  {"hour", 0, 20, false},
		"by the worker's second":    {"worker", 1.5, 20, true},
		"by the token":              {"api", 1.5, 20, true},
		"whatever":                  {"unpriced", 1.5, 1.5, false},
	} {
		at := time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)
		r := ledger.Record{At: at, Status: 200, USD: 0.002, USDKnown: true, Prompt: 100, Output: 100, Attempts: []ledger.Attempt{{Endpoint: tc.host, Decision: router.Decision{Seq: 1, Use: 0.3, FullUSD: tc.fullLoad, FullSigma: 0.3}}}}
		s := seen{Observation: stats.Unknown(1, 0)}
		m.fill(&s, &r)
		m.compare(tr, &s)
		if math.Abs(s.USDPerMtok-tc.want) > 1e-9 || s.Metered != tc.metered || s.SpentUSD != 0.002 {
			t.Errorf("%s: compared at %v, metered %t: want %v, %t", name, s.USDPerMtok, s.Metered, tc.want, tc.metered)
		}
		if unsure := s.USDUnsure; (unsure == 0.3) != (s.USDPerMtok == 1.5) || unsure != 0 && unsure != 0.3 {
			t.Errorf("%s: compared at %v, unsure by %v: want that of a full engine's price, and nothing of what was billed", name, s.USDPerMtok, unsure)
		}
		if s.Load != 0.3 || !s.At.Equal(at) || s.Host == 0 || s.Block != stats.BlockOf(m.kind(tr.Spec, tc.host), 100, 0.3) {
			t.Errorf("%s: %+v", name, s.Observation)
		}
	}
}
