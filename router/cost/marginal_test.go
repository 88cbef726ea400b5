package cost_test

import (
	"math"
	"testing"
	"time"

	"headrace/router/cost"
	"headrace/router/endpoint"
)

func near(t *testing.T, what string, got, want, rel float64) {
	t.Helper()
	if !(math.Abs(got-want) <= rel*math.Abs(want)) { //nolint:staticcheck // NaN fails too
		t.Errorf("%s = %v, want %v", what, got, want)
	}
}

// The article's table: dollars per million tokens of one stream (test vector 1 of the routing facts).
func TestFullLoad(t *testing.T) {
	for _, v := range []struct{ usdPerHour, tps, want float64 }{
		{1.80, 35, 14.286},
		{0.90, 35, 7.143},
		{3.00, 52.5, 15.873},
		{2.00, 52.5, 10.582},
		{0.85, 25, 9.444},
		{0.45, 26.5, 4.717},
		{3.00, 90, 9.259},
		{2.00, 92.5, 6.006},
		{0.90, 220.6, 1.133},
		{0.90, 510.9, 0.489}, // 8 and 32 streams (vector 2)
	} {
		p := endpoint.Price{Basis: endpoint.PerHour, USDPerHour: v.usdPerHour}
		near(t, "USD per million", cost.FullLoad(&p, 1/v.tps)*1e6, v.want, 1e-3)
	}
	if !math.IsNaN(cost.FullLoad(&endpoint.Price{}, 0.01)) {
		t.Error("an unknown price was given a number")
	}
	if cost.FullLoad(&endpoint.Price{Basis: endpoint.PerHour}, 0.01) != 0 {
		t.Error("a price of 0 is one")
	}
}

// worker is an A100 of test vector 4: a request of 430 prompt and 233 output tokens on a serverless worker.
func worker(n float64) (endpoint.Price, cost.Load) {
	return endpoint.Price{Basis: endpoint.PerWorkerSecond, USDPerWorkerSecond: 0.00076, ColdStart: 30 * time.Second, IdleTimeout: 5 * time.Second},
		cost.Load{OutputTokens: 233, PromptTokens: 430, Concurrency: n, ITLSeconds: 0.0274725 + 0.0010989*n, PrefillPerSec: 1200, FirstSeconds: 0.25}
}

func TestMarginalOfWorker(t *testing.T) {
	p, l := worker(1)
	l.Cold, l.ColdSeconds = true, 30
	usd, _ := cost.Marginal(&p, &l)
	near(t, "cold alone", usd, 0.03268, 1e-3)
	p, l = worker(1)
	l.IdleSeconds = 2
	usd, _ = cost.Marginal(&p, &l)
	near(t, "warm and idle", usd, 0.00704, 1e-3)
	p, l = worker(10)
	usd, _ = cost.Marginal(&p, &l)
	near(t, "as the 10th", usd, 0.000817, 1e-3)
	p, l = worker(30)
	usd, _ = cost.Marginal(&p, &l)
	near(t, "as the 30th", usd, 0.000493, 1e-3)
	// Vector 5: what a worker that is full can take in a second, and what it would have to take to beat an API.
	api := endpoint.Price{Basis: endpoint.PerToken, USDPerMTokIn: 0.60, USDPerMTokOut: 0.90}
	other, _ := cost.Marginal(&api, &l)
	near(t, "API", other, 0.0004677, 1e-3)
	near(t, "requests per second of a full A100", p.USDPerWorkerSecond/usd, 1.542, 1e-3)
	near(t, "requests per second to beat the API", p.USDPerWorkerSecond/other, 1.625, 1e-3)
	h := endpoint.Price{Basis: endpoint.PerWorkerSecond, USDPerWorkerSecond: 0.00116}
	l.ITLSeconds, l.PrefillPerSec = 0.018493+0.000555*30, 3000
	usd, _ = cost.Marginal(&h, &l)
	near(t, "requests per second of a full H100", h.USDPerWorkerSecond/usd, 2.902, 1e-3)
	near(t, "requests per second to beat the API", h.USDPerWorkerSecond/other, 2.480, 1e-3)
}

func TestMarginal(t *testing.T) {
	base := cost.Load{OutputTokens: 500, PromptTokens: 1000, CachedTokens: 3000, BodyBytes: 16000, Concurrency: 1, ITLSeconds: 1.0 / 35, PrefillPerSec: 1200, FullLoadUSDPerToken: 1e-6}
	for name, tc := range map[string]struct {
		price endpoint.Price
		edit  func(*cost.Load)
		want  float64 // USD
		known bool
	}{
		"an hour that is paid anyway": {endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 1}, nil, 500 * 0.05 * 1e-6, true},
		"and its traffic":             {endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 1, USDPerGBIn: 1, USDPerGBOut: 2}, nil, 500*0.05*1e-6 + 16000e-9 + 500*250*2e-9, true},
		"each kind of token its own":  {endpoint.Price{Basis: endpoint.PerToken, USDPerMTokIn: 1, USDPerMTokCached: 0.1, USDPerMTokOut: 4}, nil, (1000*1 + 3000*0.1 + 500*4) / 1e6, true},
		"free is known":               {endpoint.Price{Basis: endpoint.PerHour}, func(l *cost.Load) { l.FullLoadUSDPerToken = 0 }, 0, true},
		// Vector 3: P(die) 6.61e-4 in an answer of 500 tokens at 35 a second, when a host stays 6 h.
		"the risk to lose it": {endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 1}, func(l *cost.Load) { l.LossPerSecond = 1.0 / 21600 }, 500*0.05*1e-6 + 6.61e-4*(0.5*500*1e-6+0.2*0.002), true},
		"nobody knows":        {endpoint.Price{}, nil, math.NaN(), false},
	} {
		t.Run(name, func(t *testing.T) {
			l := base
			if tc.edit != nil {
				tc.edit(&l)
			}
			usd, known := cost.Marginal(&tc.price, &l)
			if known != tc.known {
				t.Fatalf("known %v", known)
			}
			if known {
				near(t, "USD", usd, tc.want, 1e-3)
			}
		})
	}
}

// The article's example (vector 3): $0.90 at Vast, taken away every 6 h for 10 min, against $1.80 at RunPod.
func TestCovered(t *testing.T) {
	near(t, "availability", 6*60.0/370, 0.97297, 1e-5)
	near(t, "paid while away", cost.Covered(0.90, 0, 360, 10, true)/(360.0/370), 0.9250, 1e-4)
	near(t, "RunPod stands in", cost.Covered(0.90, 1.80, 360, 10, true), 0.9486, 1e-4)
	near(t, "not paid while away", cost.Covered(0.90, 1.80, 360, 10, false), 0.9243, 1e-4)
	// Vast stays cheaper until it is taken away every 10 min.
	if cost.Covered(0.90, 1.80, 10.1, 10, true) > 1.80 || cost.Covered(0.90, 1.80, 9.9, 10, true) < 1.80 {
		t.Error("it does not break even at 10 minutes")
	}
}
