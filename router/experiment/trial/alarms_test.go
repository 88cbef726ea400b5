package trial_test

import (
	"context"
	"errors"
	"math"
	"testing"

	"headrace/router/experiment/stats"
	"headrace/router/experiment/trial"
)

// TestFalseAlarms: the same seed counts the same however many run at once, and other seeds meet other experiments.
func TestFalseAlarms(t *testing.T) {
	const runs = 16
	tc := trial.NoDifference()
	want := trial.Alarms{}
	for seed := uint64(17); seed <= 32; seed++ { // those of seed 2
		want.Runs++
		if trial.Run(&tc, seed, false).Action == stats.Stop {
			want.Stopped++
		}
	}
	for _, jobs := range []int{0, 1, 3} {
		if got, err := trial.FalseAlarms(t.Context(), runs, 2, jobs); got != want || err != nil {
			t.Errorf("%d at once: %+v, error %v, want %+v", jobs, got, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := trial.FalseAlarms(ctx, runs, 1, 1); !errors.Is(err, context.Canceled) || got != (trial.Alarms{}) {
		t.Errorf("cancelled: %+v, error %v", got, err)
	}
}

// TestAlarmsShare: at each end of the interval, what was counted lies 1.96 standard deviations off; this is what makes it Wilson's.
func TestAlarmsShare(t *testing.T) {
	for _, a := range []trial.Alarms{{10, 5}, {20, 1}, {201, 0}, {2000, 5}, {20, 20}} {
		share, low, high := a.Share()
		n := float64(a.Runs)
		if share != float64(a.Stopped)/n || low < 0 || low > share || high < share || high > 1 {
			t.Errorf("%+v: %v (%v to %v)", a, share, low, high)
		}
		for _, end := range []float64{low, high} {
			off := math.Abs(share-end) / math.Sqrt(end*(1-end)/n)
			if extreme := end == share && (share == 0 || share == 1); !extreme && math.Abs(off-1.96) > 1e-3 {
				t.Errorf("%+v: %v is %v standard deviations from %v, want 1.96", a, share, off, end)
			}
		}
	}
	if _, low, high := (trial.Alarms{Runs: 20}).Share(); low != 0 || high < 0.16 || high > 0.17 { // 1.96² / (20 + 1.96²)
		t.Errorf("none of 20: %v to %v, want 0 to 0.161", low, high)
	}
	if share, low, high := (trial.Alarms{}).Share(); !math.IsNaN(share) || !math.IsNaN(low) || !math.IsNaN(high) {
		t.Errorf("no experiment: %v (%v to %v), want NaN", share, low, high)
	}
}
