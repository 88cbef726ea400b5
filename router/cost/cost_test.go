package cost_test

import (
	"math"
	"testing"
	"time"

	"headrace/router/cost"
	"headrace/router/endpoint"
)

func TestUSD(t *testing.T) {
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	for name, tc := range map[string]struct {
		price endpoint.Price
		used  cost.Used
		want  float64
		ok    bool
	}{
		"an hour alone costs the hour": {
			endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 1.8}, cost.Used{Busy: time.Hour, InFlight: 1}, 1.8, true,
		},
		"a million tokens of one stream at 35 tokens per second, $0.90 an hour": {
			endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 0.9}, cost.Used{Busy: seconds(1e6 / 35), InFlight: 1}, 7.142857142857, true,
		},
		"eight share the host": {
			endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 0.9}, cost.Used{Busy: time.Hour, InFlight: 8}, 0.1125, true,
		},
		"less than one in flight is one": {
			endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 0.9}, cost.Used{Busy: time.Hour}, 0.9, true,
		},
		"worker seconds": {
			endpoint.Price{Basis: endpoint.PerWorkerSecond, USDPerWorkerSecond: 0.00076}, cost.Used{Busy: seconds(9.265), InFlight: 1}, 0.0070414, true,
		},
		"tokens, 430 in and 233 out at 0.60 and 0.90": {
			endpoint.Price{Basis: endpoint.PerToken, USDPerMTokIn: 0.6, USDPerMTokCached: 0.6, USDPerMTokOut: 0.9}, cost.Used{Prompt: 430, Cached: -1, Output: 233}, 0.0004677, true,
		},
		"cached tokens have a price of their own": {
			endpoint.Price{Basis: endpoint.PerToken, USDPerMTokIn: 1, USDPerMTokCached: 0.1, USDPerMTokOut: 2}, cost.Used{Prompt: 1000, Cached: 600, Output: 100}, 0.00066, true,
		},
		"more cached than prompted is all cached": {
			endpoint.Price{Basis: endpoint.PerToken, USDPerMTokIn: 1, USDPerMTokCached: 0.1}, cost.Used{Prompt: 1000, Cached: 5000}, 0.0001, true,
		},
		"tokens unknown": {endpoint.Price{Basis: endpoint.PerToken, USDPerMTokOut: 1}, cost.Used{Prompt: -1, Output: 5}, 0, false},
		"price unknown":  {endpoint.Price{}, cost.Used{Busy: time.Hour, InFlight: 1}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := cost.USD(&tc.price, tc.used)
			if ok != tc.ok || math.Abs(got-tc.want) > 1e-9 {
				t.Errorf("got %.9f, %v, want %.9f, %v", got, ok, tc.want, tc.ok)
			}
		})
	}
}
