package router

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"headrace/router/capacity"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// liar returns a router with one host that is expected to be fast.
func liar() *Router {
	r := New(Options{Now: time.Now, Prior: func(*endpoint.Endpoint) capacity.Prior {
		return capacity.Prior{ITLSeconds: 0.01, Slope: 0.001, TTFTSeconds: 0.1, PrefillTokensPerSecond: 1e4, MaxNumSeqs: 256}
	}})
	r.Update([]endpoint.Endpoint{hourly("liar", 1, 256, "m")}, nil)
	return r
}

// wave runs n requests at once, each with its first token at ttft and then tps tokens a second.
func wave(t *testing.T, r *Router, n int, ttft time.Duration, tps float64) {
	t.Helper()
	leases := make([]*Lease, n)
	for i := range leases {
		leases[i] = mustPick(t, r)
	}
	for _, l := range leases {
		l.FirstContent(ttft)
		l.Done(Result{Class: outcome.Success, OutputTokens: 101, Streamed: seconds(100 / tps)})
	}
}

// TestCalibrationAlarm has a host that gives fast first tokens and then is slow: the alarm is raised while requests sent
// there in good faith miss their promise, and ends when predictions come true again.
func TestCalibrationAlarm(t *testing.T) {
	r := liar()
	wave(t, r, alarmRequests-1, 100*time.Millisecond, 5)
	if c := r.Calibration(); c.Alarm || c.TPSExcess == c.TPSExcess { //nolint:staticcheck // NaN is what is looked for
		t.Fatalf("after %d requests it judges already: %+v", alarmRequests-1, c)
	}
	r = liar()
	wave(t, r, 100, 100*time.Millisecond, 5)
	c := r.Calibration()
	if !c.Alarm || c.TPSExcess > -0.8 || c.TTFTExcess < 0 {
		t.Fatalf("it does not notice: %+v", c)
	}
	if b := c.TPS[9]; b.N != 100 || b.Kept != 0 || b.Predicted < 0.9 {
		t.Errorf("the highest bin holds %+v", b)
	}
	if ratio := r.Hosts()[0].Calibration.ITL; ratio == nil || *ratio < 10 {
		t.Errorf("the host is %v times as slow as predicted", ratio)
	}
	b, err := json.Marshal(c)
	if err != nil || !strings.Contains(string(b), `"alarm":true`) || !strings.Contains(string(b), `"kept":0`) {
		t.Errorf("%v: %s", err, b)
	}
	for range 200 {
		wave(t, r, 20, 100*time.Millisecond, 60) // as fast as it was taken for
		if !r.Calibration().Alarm {
			return
		}
	}
	t.Errorf("the alarm does not end: %+v", r.Calibration())
}

// TestCalibrationChance checks that truthful predictions seldom raise an alarm, and that ones five points too high do.
func TestCalibrationChance(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // repeatable on purpose
	const runs = 200
	alarmed := func(truth float64, after int) (times int) {
		for range runs {
			var b bins
			for range after {
				b.add(0.9, 0.9, dice.Float64() < truth)
			}
			if b.alarm {
				times++
			}
		}
		return times
	}
	for _, tc := range []struct {
		truth     float64
		after     int
		low, high int // runs in alarm
	}{
		{0.9, 50, 0, 12}, // at the very least of what passes for sure enough
		{0.9, 2000, 0, 20},
		{0.93, 2000, 0, 1},
		{0.85, 2000, 170, runs},
		{0.5, 50, runs, runs},
	} {
		if got := alarmed(tc.truth, tc.after); got < tc.low || got > tc.high {
			t.Errorf("promises of 0.9 kept with %.2f: %d of %d runs in alarm after %d, want %d to %d", tc.truth, got, runs, tc.after, tc.low, tc.high)
		}
	}
}
