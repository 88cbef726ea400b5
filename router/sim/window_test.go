package sim

import (
	"context"
	"errors"
	"slices"
	"testing"
)

func TestWindow(t *testing.T) {
	s := scenario(t, "S1")
	s.Events = []Event{
		{At: 3600, What: PriceTimes, Factor: 2},
		{At: 3600, For: 600, What: ControlDown},
		{At: 9 * 3600, For: 7200, What: SharingCut},
		{At: 11 * 3600, For: 60, What: ReplicaKilled},
		{At: 14 * 3600, What: PriceTimes, Factor: 3},
	}
	w := s.Window(10, 4)
	want := []Event{
		{At: 0, What: PriceTimes, Factor: 2},
		{At: 0, For: 3600, What: SharingCut},
		{At: 3600, For: 60, What: ReplicaKilled},
	}
	if !slices.Equal(w.Events, want) || w.Hours != 4 || w.Load.From != 10 {
		t.Errorf("events %+v, %g hours from %g", w.Events, w.Hours, w.Load.From)
	}
	if len(s.Events) != 5 || s.Hours != 24 {
		t.Error("the scenario itself is changed")
	}
	if err := w.Validate(); err != nil {
		t.Error(err)
	}
	for name, tc := range map[string]struct {
		hours, from, whole float64
		wantFrom           float64
	}{
		"around noon":               {6, 0, 24, 9},
		"a day from six":            {6, 6, 24, 9},
		"ends before noon":          {2, 0, 8, 6},
		"asked for more than it is": {48, 0, 24, 0},
	} {
		s.Load.From, s.Hours = tc.from, tc.whole
		if b := s.Busiest(tc.hours); b.Hours != tc.hours || b.Load.From != tc.wantFrom {
			t.Errorf("%s: %g hours from %g, want from %g", name, b.Hours, b.Load.From, tc.wantFrom)
		}
	}
}

// TestSuiteInterrupted keeps what was finished, whole cells only.
func TestSuiteInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := scenario(t, "S3").Busiest(0.1)
	o := SuiteOptions{
		Scenarios: []Scenario{s, scenario(t, "S1")}, Policies: []Policy{policy(t, "random"), policy(t, "round-robin")}, Seeds: []uint64{1, 2}, Parallel: 1,
		Only: func(scenario, policy string) bool { return scenario == "S3" || policy == "random" },
		Progress: func(done, total int) {
			if total != 6 {
				t.Errorf("%d runs in all, want 6", total)
			}
			if done == 4 {
				cancel()
			}
		},
	}
	rep, err := Suite(ctx, o)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if len(rep.Cells) != 2 || rep.Cell("S3", "round-robin") == nil || rep.Cell("S1", "random") != nil {
		t.Fatalf("%d cells", len(rep.Cells))
	}
	if m := rep.Cells[0].Mean.SLO.Mean; !(m > 0) {
		t.Errorf("the mean SLO is %v", m)
	}
}
