package experiment

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestOtherSteps goes on, with steps that the config did not have before, from what is in force: the next step is the first that is more,
// and nothing is taken away without a word in the log.
func TestOtherSteps(t *testing.T) {
	read := func(units int64) Readings {
		r := Readings{Arms: make([]Reading, 3)}
		for i := range r.Arms {
			r.Arms[i] = Reading{Units: units, Requests: units, Judgement: Advance}
		}
		return r
	}
	for name, tc := range map[string]struct {
		steps []float64
		share float64 // of one of two arms, after the config was read
		step  int
		next  float64 // after the next step; 0 where the verdict is due
		why   string
	}{
		"more of them":    {[]float64{.01, .02, .1, .5, .9}, .125, 2, .25, "the next step is 50 %"},
		"fewer":           {[]float64{.05}, .125, 0, 0, "no further step is more"},
		"all are more":    {[]float64{.4, .8}, .125, -1, .2, "the next step is 40 %"},
		"the same share":  {[]float64{.25, .3}, .125, 0, .15, "the next step is 30 %"},
		"all are less":    {[]float64{.01, .02}, .125, 1, 0, "no further step is more"},
		"none any more":   {nil, .5, 0, 0, "every arm gets its weight"},
		"everything next": {[]float64{.1, 1}, .125, 0, 0, "the next step is 100 %"},
	} {
		t.Run(name, func(t *testing.T) {
			s := armsOnSteps(.05, .25, .5)
			d := NewDoc(s, t0)
			d, _ = d.Decide(s, read(100), at(1))
			if d.Step != 1 || d.Shares[1] != .125 {
				t.Fatalf("step %d, shares %v", d.Step, d.Shares)
			}
			other := armsOnSteps(tc.steps...)
			d, changed := d.Adopt(other, at(2))
			if last := d.Log[len(d.Log)-1]; !changed || d.Shares[1] != tc.share || d.Step != tc.step || last.What != "steps changed" || !strings.Contains(last.Why, tc.why) {
				t.Errorf("changed %v: step %d, shares %v, %q", changed, d.Step, d.Shares, last.Why)
			}
			if _, again := d.Adopt(other, at(3)); again {
				t.Error("the same steps are other ones")
			}
			d, _ = d.Decide(s, read(1000), at(4)) // whoever decides has not read the config yet
			if last := d.Log[len(d.Log)-1]; tc.next > 0 && (d.Shares[1] != tc.next || last.What != "step up") || tc.next == 0 && last.What == "step up" {
				t.Errorf("then %q to %v, want %v", last.What, d.Shares, tc.next)
			}
		})
	}
}

// TestStepsAfterAll takes steps that are written down when the ones before were passed or nothing was shown in time, to the end where they
// have one, and says what is left to the operator.
func TestStepsAfterAll(t *testing.T) {
	one := func(steps ...float64) *Spec {
		s := armsOnSteps(steps...)
		s.Arms, s.MinTime, s.MaxTime = s.Arms[:2], 10*time.Minute, 1000*time.Minute
		s.Ready()
		return s
	}
	requests := int64(0)
	read := func(j Judgement) Readings {
		requests += 10_000
		r := Readings{Arms: make([]Reading, 2)}
		for i := range r.Arms {
			r.Arms[i] = Reading{Units: requests, Requests: requests, Judgement: j}
		}
		return r
	}
	few, more := one(.05, .25), one(.05, .25, .5, 1)
	for name, tc := range map[string]struct {
		judgement Judgement
		passed    bool
		state     State
		why       string
	}{
		"passed":       {Pass, true, Running, "the next step is 50 %, for what it has passed was less"},
		"inconclusive": {Advance, false, Inconclusive, "it is inconclusive: headrace experiment resume e has it go on"},
	} {
		t.Run(name, func(t *testing.T) {
			d := NewDoc(few, t0)
			minute := 0.0
			goOn := func(s *Spec, j Judgement, minutes float64) {
				for end := minute + minutes; minute < end; minute += 30 {
					d, _ = d.Decide(s, read(j), at(minute))
				}
			}
			goOn(few, tc.judgement, 1200)
			if d.Passed != tc.passed || d.State != tc.state || d.Step != 1 {
				t.Fatalf("passed %v, %s at step %d", d.Passed, d.State, d.Step)
			}
			d, _ = d.Adopt(more, at(minute))
			if last := d.Log[len(d.Log)-1]; d.Passed || !strings.Contains(last.Why, tc.why) || d.Shares[1] != .25 {
				t.Errorf("passed %v, shares %v, %q", d.Passed, d.Shares, last.Why)
			}
			if next, changed := d.Decide(more, read(Pass), at(minute)); changed && d.State == Running {
				t.Errorf("the next step comes at once: %q", next.Log[len(next.Log)-1].What)
			}
			if d.State == Inconclusive {
				var err error
				if d, err = d.Apply(more, Resume, "", "operator", at(minute)); err != nil {
					t.Fatal(err)
				}
			}
			goOn(more, Pass, 300)
			if d.State != Promoted {
				t.Errorf("%s at step %d, shares %v", d.State, d.Step, d.Shares)
			}
		})
	}
}

// TestWordsLeft: a word that stays in the config while it tries something else, or comes back with it, promotes nothing that was not
// tried; abort and pause hold for the next run as well.
func TestWordsLeft(t *testing.T) {
	for word, want := range map[Wanted]State{WantRun: Running, WantPromote: Running, WantPause: Scheduled, WantAbort: Aborted} {
		s := canary()
		d := NewDoc(s, t0)
		s.Wanted = word
		d, _ = d.Adopt(s, at(1))
		before := d
		edited := canary()
		edited.Arms[1].Policy, edited.Wanted = "latency", word
		d, changed := d.Adopt(edited, at(2))
		if !changed || d.State != want || d.Run != 2 || want == Running && d.Shares[1] != 0.05 || want != Running && d.Shares[1] != 0 {
			t.Errorf("state: %s left while another arm is tried: %s, run %d, %v", word, d.State, d.Run, d.Shares)
		}
		if again, changed := d.Adopt(edited, at(3)); changed || again.State != want {
			t.Errorf("state: %s, read once more: %s", word, again.State)
		}
		if word == WantPromote {
			edited.Wanted = WantRun
			d, _ = d.Adopt(edited, at(4))
			edited.Wanted = WantPromote
			if d, _ = d.Adopt(edited, at(5)); d.State != Promoted || d.Run != 2 {
				t.Errorf("said anew: %s, run %d", d.State, d.Run)
			}
			if d, _ = before.Return(s, at(10), at(20)); d.State != Running || d.Run != 2 {
				t.Errorf("back in the config with its word: %s, run %d", d.State, d.Run)
			}
		}
	}
}

// TestPauseFirst tries nothing of an experiment that the config has pause from its first day, until it says run.
func TestPauseFirst(t *testing.T) {
	s := canary()
	s.Wanted = WantPause
	d := NewDoc(s, t0)
	d, changed := d.Adopt(s, t0)
	if d, _ = d.Decide(s, Readings{}, at(1)); changed || d.State != Scheduled || d.Shares[1] != 0 {
		t.Fatalf("%s, %v", d.State, d.Shares)
	}
	s.Wanted = WantRun
	d, _ = d.Adopt(s, at(2))
	if d, _ = d.Decide(s, Readings{}, at(3)); d.State != Running || d.Shares[1] != 0.05 || d.Run != 1 {
		t.Errorf("then %s, %v, run %d", d.State, d.Shares, d.Run)
	}
}

// TestAskedInVain says in the log what to do when the config asks for what the experiment's state does not allow, and nothing where it is so already.
func TestAskedInVain(t *testing.T) {
	s := canary()
	d := NewDoc(s, t0)
	s.Wanted = WantAbort
	d, _ = d.Adopt(s, at(1))
	n := len(d.Log)
	s.Wanted = WantRun
	d, _ = d.Adopt(s, at(2))
	if last := d.Log[len(d.Log)-1]; d.State != Aborted || len(d.Log) != n+1 || last.By != "config" || !strings.Contains(last.Why, "headrace experiment start e") {
		t.Errorf("run after abort: %s, %+v", d.State, last)
	}
	d, err := d.Apply(s, Start, "", "operator", at(3))
	if err != nil {
		t.Fatal(err)
	}
	n = len(d.Log)
	s.Wanted = WantPause
	d, _ = d.Adopt(s, at(4))
	if d, err = d.Apply(s, Resume, "", "operator", at(5)); err != nil || len(d.Log) != n+2 {
		t.Fatal(err, d.Log)
	}
	s.Wanted = WantRun
	if d, _ = d.Adopt(s, at(6)); d.State != Running || len(d.Log) != n+2 {
		t.Errorf("run while it runs: %s, %+v", d.State, d.Log[len(d.Log)-1])
	}
}

// TestWithdraw: what is out of all configs is noted once, and what had come to its end before begins anew when it is written down again.
func TestWithdraw(t *testing.T) {
	s := canary()
	d, err := NewDoc(s, t0).Apply(s, Promote, "", "operator", at(1))
	if err != nil {
		t.Fatal(err)
	}
	down, changed := d.Withdraw(at(2), false, at(12))
	if back, cleared := down.Adopt(s, at(1000)); !changed || !cleared || !down.Away(at(1000)).IsZero() || back.Run != 1 || back.State != Promoted || !back.Withdrawn.IsZero() {
		t.Errorf("its replicas were down: away since %s, then run %d %s", down.Away(at(1000)), back.Run, back.State)
	}
	if week := at(2).Add(Forgotten); !down.Away(week).Equal(at(2)) {
		t.Errorf("down for a week: away since %s", down.Away(week))
	}
	d, changed = down.Withdraw(at(3), true, at(12))
	if _, again := d.Withdraw(at(3), true, at(13)); !changed || again || !d.Away(at(13)).Equal(at(2)) || !d.Withdrawn.Equal(at(2)) || d.Shares[1] != 1 {
		t.Errorf("withdrawn %v, again %v, since %s, shares %v", changed, again, d.Withdrawn, d.Shares)
	}
	d, changed = d.Return(s, d.Away(at(1000)), at(1000))
	if !changed || d.Run != 2 || d.State != Running || !slices.Equal(d.Shares, []float64{0.95, 0.05}) || !d.Withdrawn.IsZero() || d.TakenOut {
		t.Errorf("back: run %d %s with %v, withdrawn %s", d.Run, d.State, d.Shares, d.Withdrawn)
	}
	if again, changed := d.Return(s, at(2), at(1000).Add(Forgotten)); changed || again.Run != 2 {
		t.Errorf("another replica was away for longer: run %d", again.Run)
	}
	running, _ := NewDoc(s, t0).Withdraw(at(2), true, at(12))
	if back, changed := running.Return(s, running.Withdrawn, at(20)); !changed || back.Run != 1 || back.State != Running || !back.Withdrawn.IsZero() {
		t.Errorf("one that ran comes back: run %d %s", back.Run, back.State)
	}
}

// TestReconcile makes one document of what replicas share and what one of them knows.
func TestReconcile(t *testing.T) {
	s := armsOnSteps(.2, .5)
	stop := func(arm int) Readings {
		r := Readings{Arms: make([]Reading, 3)}
		r.Arms[arm].Judgement, r.Arms[arm].Why = Stop, "harm"
		return r
	}
	start := NewDoc(s, t0)
	without, _ := start.Guard(s, stop(1), at(1))
	both, _ := without.Guard(s, stop(2), at(2))
	paused, err := start.Apply(s, Pause, "", "operator", at(1))
	if err != nil {
		t.Fatal(err)
	}
	resumed, err := paused.Apply(s, Resume, "", "operator", at(2))
	if err != nil {
		t.Fatal(err)
	}
	aborted, err := start.Apply(s, Abort, "", "operator", at(1))
	if err != nil {
		t.Fatal(err)
	}
	next, err := aborted.Apply(s, Start, "", "operator", at(2))
	if err != nil {
		t.Fatal(err)
	}
	promoted, err := start.Apply(s, Promote, "a", "operator", at(1))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		shared, mine Doc
		alone        bool
		changed      bool
		state        State
		shares       []float64
		run, log     int
	}{
		"the same":                     {start, start, false, false, Running, []float64{.8, .1, .1}, 1, 1},
		"gone back in time":            {start, paused, false, true, Paused, []float64{.8, .1, .1}, 1, 2},
		"an arm was taken away":        {paused, without, false, true, Paused, []float64{.9, 0, .1}, 1, 3},
		"all arms were":                {resumed, both, false, true, RolledBack, []float64{1, 0, 0}, 1, 4},
		"aborted, and paused there":    {paused, aborted, true, true, Aborted, []float64{1, 0, 0}, 1, 3},
		"rolled back, and aborted":     {both, aborted, true, true, Aborted, []float64{1, 0, 0}, 1, 4},
		"heard of it later":            {both, aborted, false, false, RolledBack, []float64{1, 0, 0}, 1, 3},
		"another run has begun":        {next, both, true, false, Running, []float64{.8, .1, .1}, 2, 3},
		"promoted, and lost since":     {resumed, promoted, false, false, Running, []float64{.8, .1, .1}, 1, 3},
		"promoted, and then lost":      {start, promoted, false, true, Promoted, []float64{0, 1, 0}, 1, 2},
		"back before this run's start": {both, next, false, true, Running, []float64{.8, .1, .1}, 2, 3},
	} {
		d, changed := tc.shared.Reconcile(&tc.mine, tc.alone, at(5))
		if changed != tc.changed || d.State != tc.state || !slices.Equal(d.Shares, tc.shares) || d.Run != tc.run || len(d.Log) != tc.log {
			t.Errorf("%s: changed %v, run %d is %s with %v after %d decisions", name, changed, d.Run, d.State, d.Shares, len(d.Log))
		}
		if again, more := d.Reconcile(&tc.mine, false, at(6)); more {
			t.Errorf("%s: once more it changes to %s", name, again.State)
		}
	}
}
