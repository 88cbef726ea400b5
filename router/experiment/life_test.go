package experiment

import (
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var t0 = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

func at(minutes float64) time.Time { return t0.Add(time.Duration(minutes * float64(time.Minute))) }

func canary() *Spec {
	s := &Spec{
		Name: "e", Model: "m", Arms: []Arm{{Name: "control"}, {Name: "canary", Share: 1}}, Steps: []float64{0.05, 0.5, 1},
		MinTime: time.Minute, MinUnits: 100, MaxTime: 24 * time.Hour,
	}
	s.Ready()
	return s
}

// saw are readings of a control and one arm.
func saw(units int64, j Judgement) Readings {
	return Readings{Arms: []Reading{{Units: 10 * units, Requests: 10 * units}, {Units: units, Requests: units, Judgement: j, Metric: "ttft", Figure: 0.3, Bound: 0.1, Why: "because"}}}
}

// TestRamp takes a good arm from its first step to everything, each step no sooner than its time and its requests allow.
func TestRamp(t *testing.T) {
	s := canary()
	d := NewDoc(s, t0)
	for i, tc := range []struct {
		at     float64
		r      Readings
		state  State
		canary float64
		waits  string
	}{
		{0.5, saw(500, Advance), Running, 0.05, "30s more"},
		{2, saw(99, Advance), Running, 0.05, "99 of 100 units"},
		{2, saw(100, Hold), Running, 0.05, "because"},
		{2, saw(100, Advance), Running, 0.5, ""},
		{2.5, saw(400, Pass), Running, 0.5, "30s more"},
		{4, saw(99, Pass), Running, 0.5, "99 of 100 units"},
		{4, saw(200, Advance), Running, 0.5, "because"},
		{4, saw(200, Pass), Promoted, 1, ""},
		{5, saw(300, Stop), Promoted, 1, ""},
	} {
		if got := d.Waits(s, tc.r, at(tc.at)); d.State == Running && (tc.waits == "") != (got == "") || !strings.Contains(got, tc.waits) {
			t.Errorf("%d: waits for %q, want %q", i, got, tc.waits)
		}
		d, _ = d.Decide(s, tc.r, at(tc.at))
		if d.State != tc.state || d.Shares[1] != tc.canary || math.Abs(d.Shares[0]+d.Shares[1]-1) > 1e-9 {
			t.Fatalf("%d: %s with %v", i, d.State, d.Shares)
		}
	}
	var words []string
	for _, e := range d.Log {
		words = append(words, e.What)
	}
	if !slices.Equal(words, []string{"started", "step up", "promoted"}) {
		t.Errorf("log %v", words)
	}
	if len(d.Weights) != 3 || d.Weights[2].Shares[1] != 1 {
		t.Errorf("weights %v", d.Weights)
	}
}

// TestHarm ends a bad arm at any step, at whichever state, with the figure that said so.
func TestHarm(t *testing.T) {
	for _, pause := range []bool{false, true} {
		s := canary()
		d := NewDoc(s, t0)
		d, _ = d.Decide(s, saw(100, Advance), at(2))
		if pause {
			var err error
			if d, err = d.Apply(s, Pause, "", "operator", at(2)); err != nil {
				t.Fatal(err)
			}
			if next, changed := d.Decide(s, saw(1000, Pass), at(100)); changed {
				t.Errorf("a paused one went to %s %v", next.State, next.Shares)
			}
		}
		d, changed := d.Decide(s, saw(120, Stop), at(3))
		last := d.Log[len(d.Log)-1]
		if !changed || d.State != RolledBack || d.Shares[1] != 0 || d.Shares[0] != 1 || last.Metric != "ttft" || *last.Figure != 0.3 || *last.Bound != 0.1 || last.Why != "because" || last.By != "guardrail" {
			t.Errorf("paused %v: %s %v %+v", pause, d.State, d.Shares, last)
		}
	}
	d := NewDoc(canary(), t0)
	broken := saw(1000, Pass)
	broken.Broken = "units fall where they should not"
	if d, _ := d.Decide(canary(), broken, at(9)); d.State != RolledBack || d.Log[1].Metric != "assignment" {
		t.Errorf("a broken assignment: %s %+v", d.State, d.Log)
	}
}

// TestArms drops one bad arm of two, and promotes the other.
func TestManyArms(t *testing.T) {
	s := threeArms()
	d := NewDoc(s, t0)
	r := Readings{Arms: []Reading{{Units: 9000, Requests: 9000}, {Units: 500, Requests: 500, Judgement: Stop}, {Units: 500, Requests: 500, Judgement: Advance}}}
	d, _ = d.Decide(s, r, at(2))
	if d.State != Running || !d.Dropped[1] || d.Shares[1] != 0 || math.Abs(d.Shares[2]-0.05*0.75) > 1e-9 {
		t.Fatalf("%s %v %v", d.State, d.Dropped, d.Shares)
	}
	for i := range 3 {
		r.Arms[2].Requests += 500
		r.Arms[2].Judgement = Pass
		d, _ = d.Decide(s, r, at(4+2*float64(i)))
	}
	if d.State != Promoted || d.Shares[2] != 1 {
		t.Errorf("%s %v: the one that is left was not promoted", d.State, d.Shares)
	}
	r.Arms[1].Judgement, r.Arms[2].Judgement = Pass, Pass // of two that are good nobody but the operator chooses
	d = NewDoc(s, t0)
	for i := range 9 {
		r.Arms[1].Requests += 500
		r.Arms[2].Requests += 500
		d, _ = d.Decide(s, r, at(4+2*float64(i)))
	}
	if d.State != Running || !d.Passed {
		t.Errorf("two that passed: %s, passed %v", d.State, d.Passed)
	}
	if _, err := d.Apply(s, Promote, "", "operator", at(60)); !errors.Is(err, ErrArm) {
		t.Errorf("promote without a name: %v", err)
	}
	if d, err := d.Apply(s, Promote, "b", "operator", at(60)); err != nil || d.Shares[2] != 1 || d.Shares[1] != 0 {
		t.Errorf("promote b: %v %v", d.Shares, err)
	}
}

// TestOutOfArmShare keeps an arm from being promoted by what others did.
func TestOutOfArmShare(t *testing.T) {
	s := canary()
	d := NewDoc(s, t0)
	d, _ = d.Decide(s, saw(100, Pass), at(2))
	r := saw(1000, Pass)
	r.Arms[1].OutOfArm = 101
	if next, _ := d.Decide(s, r, at(9)); next.State != Running || !strings.Contains(d.Waits(s, r, at(9)), "went elsewhere") {
		t.Errorf("%s: %s", next.State, d.Waits(s, r, at(9)))
	}
}

// TestControlWithoutHosts: against a control whose requests its own hosts do not serve nobody goes further, however good he looks.
func TestControlWithoutHosts(t *testing.T) {
	s := canary()
	for name, tc := range map[string]struct {
		change func(*Reading)
		waits  string
	}{
		"none":              {func(c *Reading) { c.Hostless = true }, "hosts of control: there is none now"},
		"others serve them": {func(c *Reading) { c.OutOfArm = c.Requests / 5 }, "hosts of control: 20.02 % of its requests"},
		"few of them":       {func(c *Reading) { c.OutOfArm = c.Requests / 20 }, ""},
		"some were lost":    {func(c *Reading) { c.Requests = 0 }, ""},
	} {
		d := NewDoc(s, t0)
		d.StepBase[0] = 10
		r := saw(1000, Pass)
		r.Arms[0].Requests += d.StepBase[0]
		tc.change(&r.Arms[0])
		got := d.Waits(s, r, at(9))
		if next, changed := d.Decide(s, r, at(9)); !strings.HasPrefix(got, tc.waits) || (tc.waits == "") != (got == "") || changed != (tc.waits == "") {
			t.Errorf("%s: waits for %q, then %v", name, got, next.Shares)
		}
	}
}

// TestOver tries nothing of what is over before it began, and says so to who would start it, until the config has a later end.
func TestOver(t *testing.T) {
	s := canary()
	s.End = at(10)
	d := NewDoc(s, at(11))
	d, _ = d.Decide(s, saw(0, Hold), at(12))
	if d.State != Scheduled || d.Shares[1] != 0 || len(d.Log) != 1 || !strings.Contains(d.Log[0].Why, "its end was at 2026-03-01T09:10:00Z") {
		t.Errorf("%s with %v: %+v", d.State, d.Shares, d.Log)
	}
	if _, err := d.Apply(s, Start, "", "operator", at(12)); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "give it a later one in the config") {
		t.Errorf("start: %v", err)
	}
	ended, err := NewDoc(canary(), t0).Apply(s, Abort, "", "operator", at(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ended.Apply(s, Start, "", "operator", at(12)); !errors.Is(err, ErrState) {
		t.Errorf("start anew: %v", err)
	}
	if ended, _ = ended.Return(s, at(2), at(12)); ended.State != Scheduled || ended.Shares[1] != 0 || ended.Run != 2 {
		t.Errorf("written down again it is %s with %v", ended.State, ended.Shares)
	}
	s.End = at(20)
	if d, _ = d.Decide(s, saw(0, Hold), at(13)); d.State != Running || d.Run != 1 {
		t.Errorf("with a later end it is %s, run %d", d.State, d.Run)
	}
}

// TestPauseTakesNoTime: while it is paused nothing can be shown, so that is none of the time that it has.
func TestPauseTakesNoTime(t *testing.T) {
	s := canary()
	s.MaxTime = 30 * time.Minute
	d := NewDoc(s, t0)
	apply := func(c Command, minute float64) {
		t.Helper()
		var err error
		if d, err = d.Apply(s, c, "", "operator", at(minute)); err != nil {
			t.Fatal(err)
		}
	}
	is := func(minute float64, want State) {
		t.Helper()
		if d, _ = d.Decide(s, saw(10, Hold), at(minute)); d.State != want {
			t.Fatalf("in minute %v it is %s, want %s", minute, d.State, want)
		}
	}
	apply(Pause, 10)
	is(100, Paused)
	apply(Resume, 110)
	is(111, Running)
	apply(Pause, 115) // 15 of its minutes are over
	apply(Resume, 1000)
	is(1014, Running)
	is(1016, Inconclusive)
	apply(Resume, 2000)
	is(2029, Running)
	is(2031, Inconclusive)
	if !d.StartedAt.Equal(at(2000)) || d.Rested != 0 {
		t.Errorf("its time began %s, less %s", d.StartedAt, d.Rested)
	}
}

// TestStepFrom finds the shares by which a step began, whatever was ended since.
func TestStepFrom(t *testing.T) {
	s := threeArms()
	d := NewDoc(s, t0)
	if d.StepFrom() != 0 {
		t.Errorf("at first: %d", d.StepFrom())
	}
	r := Readings{Arms: make([]Reading, 3)}
	for i := range r.Arms {
		r.Arms[i] = Reading{Units: 500, Requests: 500, Judgement: Advance}
	}
	d, _ = d.Decide(s, r, at(2))
	if d.Step != 1 || d.StepFrom() != 1 {
		t.Errorf("at step %d: %d", d.Step, d.StepFrom())
	}
	r.Arms[1].Judgement = Stop
	if d, _ = d.Decide(s, r, at(2.1)); !d.Dropped[1] || len(d.Weights) != 3 || d.StepFrom() != 1 {
		t.Errorf("an arm was ended: %d of %d", d.StepFrom(), len(d.Weights))
	}
	for i := range r.Arms {
		r.Arms[i].Requests += 500
	}
	if d, _ = d.Decide(s, r, at(4)); d.Step != 2 || d.StepFrom() != 3 {
		t.Errorf("at step %d: %d", d.Step, d.StepFrom())
	}
}

// TestCheck refuses documents that nobody here has written.
func TestCheck(t *testing.T) {
	for name, spoil := range map[string]func(*Doc){
		"empty":             func(d *Doc) { *d = Doc{} },
		"no shares":         func(d *Doc) { d.Shares = nil },
		"ended, of whom":    func(d *Doc) { d.Dropped = d.Dropped[:1] },
		"more bases":        func(d *Doc) { d.StepBase = append(d.StepBase, 0) },
		"fewer of them":     func(d *Doc) { d.StepOut = d.StepOut[:1] },
		"no such state":     func(d *Doc) { d.State = "asleep" },
		"before its run":    func(d *Doc) { d.Run = 0 },
		"tried by nothing":  func(d *Doc) { d.Weights = nil },
		"less than nothing": func(d *Doc) { d.Shares[1] = -0.05 },
		"more than all":     func(d *Doc) { d.Weights[0].Shares = []float64{0.95, 0.5} },
		"shares of another": func(d *Doc) { d.Weights[0].Shares = []float64{1} },
	} {
		d := NewDoc(canary(), t0)
		if err := d.Check(); err != nil {
			t.Fatal(err)
		}
		spoil(&d)
		if d.Check() == nil {
			t.Errorf("%s: it is fine", name)
		}
	}
	old := NewDoc(canary(), t0)
	old.StepOut = nil
	if err := old.Check(); err != nil {
		t.Errorf("one of an older version: %v", err)
	}
}

// TestSchedule starts and ends by the clock, and gives up on what shows nothing.
func TestSchedule(t *testing.T) {
	s := canary()
	s.Start, s.End, s.MaxTime = at(10), at(100), 30*time.Minute
	d := NewDoc(s, t0)
	if d.State != Scheduled || d.Shares[0] != 1 {
		t.Fatalf("%s %v", d.State, d.Shares)
	}
	if d, _ = d.Decide(s, Readings{}, at(9)); d.State != Scheduled {
		t.Errorf("before its time: %s", d.State)
	}
	if d, _ = d.Decide(s, Readings{}, at(10)); d.State != Running || d.Shares[1] != 0.05 {
		t.Errorf("at its time: %s %v", d.State, d.Shares)
	}
	if d, _ = d.Decide(s, saw(10, Hold), at(41)); d.State != Inconclusive || d.Shares[1] != 0.05 {
		t.Errorf("nothing shown: %s %v", d.State, d.Shares)
	}
	if next, _ := d.Decide(s, saw(10, Stop), at(42)); next.State != RolledBack {
		t.Errorf("harm after that: %s", next.State)
	}
	if d, _ = d.Decide(s, saw(10, Hold), at(100)); d.State != Ended || d.Shares[0] != 1 {
		t.Errorf("at its end: %s %v", d.State, d.Shares)
	}
}

// TestCommands tells which command is understood in which state.
func TestCommands(t *testing.T) {
	can := map[State][]Command{
		Scheduled: {Start, Promote, Abort}, Running: {Pause, Promote, Abort}, Paused: {Resume, Promote, Abort}, Inconclusive: {Resume, Promote, Abort},
		Promoted: {Start, Abort}, RolledBack: {Start, Promote, Abort}, Aborted: {Start, Promote}, Ended: {Start, Promote, Abort},
	}
	s := canary()
	for state, understood := range can {
		for _, c := range []Command{Start, Pause, Resume, Promote, Abort, "hop"} {
			d := NewDoc(s, t0)
			d.State = state
			before, _ := json.Marshal(d)
			next, err := d.Apply(s, c, "", "operator", at(1))
			if ok := slices.Contains(understood, c); ok != (err == nil) || err != nil && !errors.Is(err, ErrState) {
				t.Errorf("%s of a %s one: %v", c, state, err)
			}
			if after, _ := json.Marshal(d); string(after) != string(before) {
				t.Errorf("%s of a %s one changed the document it was given", c, state)
			}
			if c == Start && err == nil && next.Run != map[bool]int{true: 1, false: 2}[state == Scheduled] {
				t.Errorf("started from %s it is run %d", state, next.Run)
			}
		}
	}
}

// TestAdopt follows a config: what it tries, and what it asks for. An operator's later word holds until the config says something else.
func TestAdopt(t *testing.T) {
	s := canary()
	d := NewDoc(s, t0)
	if next, changed := d.Adopt(s, at(1)); changed {
		t.Errorf("nothing is new: %+v", next)
	}
	s.Wanted = WantPause
	d, changed := d.Adopt(s, at(1))
	if !changed || d.State != Paused {
		t.Fatalf("asked to pause: %s", d.State)
	}
	d, err := d.Apply(s, Resume, "", "operator", at(2))
	if err != nil {
		t.Fatal(err)
	}
	if next, changed := d.Adopt(s, at(3)); changed || next.State != Running {
		t.Errorf("a config that is read once more: %s", next.State)
	}
	s.Wanted = WantAbort
	if d, _ = d.Adopt(s, at(4)); d.State != Aborted {
		t.Errorf("asked to abort: %s", d.State)
	}
	other := canary()
	other.Arms[1].Policy = "latency"
	d, changed = d.Adopt(other, at(5))
	if !changed || d.State != Running || d.Run != 2 || d.Shares[1] != 0.05 || !d.Matches(other) || d.Matches(s) {
		t.Errorf("something else is tried: %s, run %d, %v", d.State, d.Run, d.Shares)
	}
}

// TestAnyLife lets everything happen in any order: what is written is read as it was, shares are always whole, no arm has any outside of
// the states that try, no unit is taken from an arm but by a step back, and no step lasts less than it should.
func TestAnyLife(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 2))
	rounds := 300
	if underRace { // nothing in it is shared
		rounds = 30
	}
	for round := range rounds {
		s := threeArms()
		now := t0
		d := NewDoc(s, now)
		requests := []int64{0, 0, 0}
		for range 60 {
			now = now.Add(time.Duration(rng.IntN(90)) * time.Second)
			was := d
			var by string
			switch rng.IntN(5) {
			case 4: // the config has other steps, none of them less than what is in force is gone back to
				s.Steps = nil
				for range 1 + rng.IntN(4) {
					s.Steps = append(s.Steps, 0.01+0.99*rng.Float64())
				}
				slices.Sort(s.Steps)
				d, _ = d.Adopt(s, now)
				if d.State.Tries() && !slices.Equal(d.Shares, was.Shares) {
					t.Fatalf("seed %d, round %d: steps %v made shares %v of %v", seed, round, s.Steps, d.Shares, was.Shares)
				}
			case 0:
				c := []Command{Start, Pause, Resume, Promote, Abort}[rng.IntN(5)]
				d, _ = d.Apply(s, c, []string{"", "a", "b"}[rng.IntN(3)], "operator", now)
				by = string(c)
			default:
				r := Readings{Arms: make([]Reading, 3)}
				for i := range r.Arms {
					requests[i] += int64(rng.IntN(200))
					r.Arms[i] = Reading{Units: requests[i], Requests: requests[i], Judgement: Judgement(rng.IntN(40)) / 13}
				}
				d, _ = d.Decide(s, r, now)
				if d.Run == was.Run && d.Step > was.Step && was.Step >= 0 && now.Sub(was.StepAt) < s.MinTime {
					t.Fatalf("seed %d, round %d: a step of %s", seed, round, now.Sub(was.StepAt))
				}
			}
			sum := 0.0
			for i, share := range d.Shares {
				sum += share
				if share < 0 || i > 0 && share > 0 && !d.State.Tries() && d.State != Promoted {
					t.Fatalf("seed %d, round %d: %s with shares %v", seed, round, d.State, d.Shares)
				}
				if d.Run == was.Run && was.State.Tries() && d.State.Tries() && i > 0 && share < was.Shares[i] && !d.Dropped[i] {
					t.Fatalf("seed %d, round %d, %q: shares went from %v to %v", seed, round, by, was.Shares, d.Shares)
				}
			}
			if math.Abs(sum-1) > 1e-9 {
				t.Fatalf("seed %d, round %d: shares %v", seed, round, d.Shares)
			}
			b, err := json.Marshal(d)
			var again Doc
			if err != nil || json.Unmarshal(b, &again) != nil || !reflect.DeepEqual(again, d) {
				t.Fatalf("seed %d, round %d: written as %s, %v", seed, round, b, err)
			}
			if err := d.Check(); err != nil {
				t.Fatalf("seed %d, round %d: %v", seed, round, err)
			}
			if len(d.Log) > logKept {
				t.Fatalf("seed %d, round %d: %d entries", seed, round, len(d.Log))
			}
		}
	}
}

// armsOnSteps are three, judged by those steps.
func armsOnSteps(steps ...float64) *Spec {
	s := &Spec{Name: "e", Model: "m", Units: []Unit{{Kind: ByUser}}, Arms: []Arm{{Name: "control"}, {Name: "a", Share: .5}, {Name: "b", Share: .5}}, Steps: steps, MinUnits: 10}
	s.Ready()
	return s
}

// A replica that has read another config, with fewer steps, finds harm: the others' shares stay as they are.
func TestGuardWithFewerSteps(t *testing.T) {
	more, fewer := armsOnSteps(.05, .1, .2, .5), armsOnSteps(.05, .1)
	read := func(units int64, a Judgement) Readings {
		return Readings{Arms: []Reading{{Units: units, Requests: units}, {Units: units, Requests: units, Judgement: a}, {Units: units, Requests: units, Judgement: Advance}}}
	}
	now := time.Now()
	d := NewDoc(more, now)
	for range 3 {
		d, _ = d.Decide(more, read(int64(1000*(d.Step+2)), Advance), now)
	}
	if d.Step != 3 || d.Shares[2] != .25 {
		t.Fatalf("step %d, shares %v", d.Step, d.Shares)
	}
	next, ended := d.Guard(fewer, read(5000, Stop), now)
	if want := []float64{.75, 0, .25}; !ended || !slices.Equal(next.Shares, want) || d.Shares[1] != .25 {
		t.Errorf("ended %v with shares %v, want %v; before %v", ended, next.Shares, want, d.Shares)
	}
}

// A document that nobody has read yet refuses commands.
func TestApplyBeforeKnown(t *testing.T) {
	for _, c := range []Command{Start, Pause, Resume, Promote, Abort} {
		if d, err := (Doc{}).Apply(armsOnSteps(.05), c, "", "operator", time.Now()); !errors.Is(err, ErrState) || d.State != "" {
			t.Errorf("%s: %v, state %q", c, err, d.State)
		}
	}
}

// TestStepsEnd: however often the config gets further steps, shares do not become more than statistics tell apart, those of arms that are
// ended later among them, and what it waits for says so.
func TestStepsEnd(t *testing.T) {
	s := armsOnSteps(.001)
	d := NewDoc(s, t0)
	r := Readings{Arms: make([]Reading, 3)}
	for i := 1; i <= 60; i++ {
		s = armsOnSteps(.001, .001+.01*float64(i), .9)
		d, _ = d.Adopt(s, at(float64(i)))
		for k := range r.Arms {
			r.Arms[k] = Reading{Units: int64(100 * i), Requests: int64(100 * i), Judgement: Advance}
		}
		d, _ = d.Decide(s, r, at(float64(i)))
	}
	if w := d.Waits(s, r, at(61)); len(d.Weights) != mostWeighings-1 || !strings.Contains(w, "shares have changed 30 times") {
		t.Errorf("%d shares, waits for %q", len(d.Weights), w)
	}
	bare := armsOnSteps()
	if w, _ := d.Adopt(bare, at(61)); len(w.Weights) != len(d.Weights) || !slices.Equal(w.Shares, d.Shares) || !strings.Contains(w.Log[len(w.Log)-1].Why, "shares stay as they are") {
		t.Errorf("no steps any more: %d shares, %v", len(w.Weights), w.Shares)
	}
	r.Arms[1].Judgement = Stop
	if d, _ = d.Decide(s, r, at(62)); !d.Dropped[1] || len(d.Weights) != mostWeighings {
		t.Errorf("harm: dropped %v, %d shares", d.Dropped, len(d.Weights))
	}
}
