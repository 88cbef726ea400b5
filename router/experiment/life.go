package experiment

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// State is where an experiment stands.
type State string

// States. In the first the control serves everything, in the next three the arms have their shares, in Promoted the winner serves
// everything, and in the others the control does again.
const (
	Scheduled    State = "scheduled"
	Running      State = "running"
	Paused       State = "paused"       // shares stay as they are; harm that is proven still ends it
	Inconclusive State = "inconclusive" // as Paused: its time is over and nothing was shown
	Promoted     State = "promoted"
	RolledBack   State = "rolled_back" // harm was proven
	Aborted      State = "aborted"     // by its operator
	Ended        State = "ended"       // by its schedule
)

// Tries tells whether the arms have their shares.
func (s State) Tries() bool { return s == Running || s == Paused || s == Inconclusive }

// Doc is what is remembered of an experiment, the same at every replica. It is a value: whoever changes it makes another.
type Doc struct {
	Name   string `json:"name"`
	Digest string `json:"digest"` // of the Spec that it belongs to
	Run    int    `json:"run"`    // from 1; each start anew is one more
	State  State  `json:"state"`
	// Steps are the shares that it goes by: those of the config that was heard last, whichever a replica has.
	Steps     []float64 `json:"steps"`
	Step      int       `json:"step"` // index of Steps: the last that is not more than what is in force; -1 before the first
	StepAt    time.Time `json:"step_at"`
	StepBase  []int64   `json:"step_base"`          // requests of each arm when the step began
	StepOut   []int64   `json:"step_out,omitempty"` // of these, those that others' hosts served
	StartedAt time.Time `json:"started_at"`
	EndedAt   time.Time `json:"ended_at"`
	// PausedAt is when it was paused, zero while it is not, and Rested how long it was paused in earlier times since StartedAt.
	PausedAt time.Time     `json:"paused_at,omitzero"`
	Rested   time.Duration `json:"rested,omitempty"`
	Arms     []string      `json:"arms"`
	Shares   []float64     `json:"shares"` // of each arm, as they are in force
	// Weights are all that were in force in this run, one after another; the last may be older than the end of it.
	Weights   []Weighing `json:"weights"`
	Dropped   []bool     `json:"dropped"`
	Wanted    Wanted     `json:"wanted"`              // what the config asked for when it was last heard
	Withdrawn time.Time  `json:"withdrawn,omitzero"`  // since when no replica's config has it; zero while one does
	TakenOut  bool       `json:"taken_out,omitempty"` // a replica's config was seen to leave it out: Withdrawn is more than silence
	Passed    bool       `json:"passed"`              // all is shown that was asked, and somebody has to promote it
	Log       []Entry    `json:"log"`                 // oldest first
	Decisions int64      `json:"decisions"`
}

// Weighing is when shares came into force.
type Weighing struct {
	At     time.Time `json:"at"`
	Shares []float64 `json:"shares"`
}

// Entry is one decision.
type Entry struct {
	At     time.Time `json:"at"`
	By     string    `json:"by"` // guardrail, schedule, steps, operator, config or replica
	What   string    `json:"what"`
	Arm    string    `json:"arm,omitempty"`
	Shares []float64 `json:"shares"` // in force from then on
	State  State     `json:"state"`
	// Figure and Bound are what was measured and what it was held against, where a figure decided.
	Metric string   `json:"metric,omitempty"`
	Figure *float64 `json:"figure,omitempty"`
	Bound  *float64 `json:"bound,omitempty"`
	Why    string   `json:"why"`
}

const logKept = 200

// known is a figure for an Entry: JSON has no word for one that is none.
func known(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return &v
}

// Judgement is what the statistics say of one arm.
type Judgement uint8

// Judgements.
const (
	Hold    Judgement = iota // too little is known, or something is in the way
	Advance                  // nothing speaks against the next step
	Pass                     // all that was asked is shown
	Stop                     // harm is proven
)

// Reading is what was seen of an arm so far.
type Reading struct {
	Units     int64 // that had requests in the step, whose arm was found by its shares: see Doc.StepFrom
	Requests  int64 // of the run
	OutOfArm  int64 // of these, those that its hosts could not serve
	Hostless  bool  // it has no host now
	Judgement Judgement
	Metric    string // that decided, "" for none
	Figure    float64
	Bound     float64
	Why       string
}

// Readings are those of all arms, in their order. Broken says that units do not fall on arms as they should, "" that they do.
type Readings struct {
	Arms   []Reading
	Broken string
}

// mostOutOfArm is the share of an arm's requests that others may have served before it goes no further: what was seen of it says little
// then.
const mostOutOfArm = 0.1

// mostWeighings is how many shares, one after another, the statistics of a run tell apart. Each arm may take one by being ended, so that no
// step leaves an arm that nobody watches.
const mostWeighings = 32

// NewDoc is an experiment's first document.
func NewDoc(s *Spec, now time.Time) Doc {
	d := Doc{Name: s.Name, Digest: s.Digest(), Run: 1, State: Scheduled, Wanted: WantRun, Steps: slices.Clone(s.Steps)}
	d.reset(s)
	return d.first(s, now, "schedule")
}

// first begins a run if it is time and the config does not ask to wait.
func (d Doc) first(s *Spec, now time.Time, by string) Doc {
	switch wanted := s.wanted(); {
	case wanted == WantPause || wanted == WantAbort:
		d.Wanted = wanted
		if wanted == WantAbort {
			return d.end(Aborted, now, Entry{By: "config", What: "aborted", Why: "asked for before it began"})
		}
		return d.note(now, Entry{By: "config", What: "scheduled", Why: "state: pause: nothing is tried until the config says run, or somebody starts it"})
	case s.ended(now):
		return d.note(now, Entry{By: "schedule", What: "scheduled", Why: "nothing is tried: its end was at " + s.End.UTC().Format(time.RFC3339)})
	case now.Before(s.Start):
		return d.note(now, Entry{By: "schedule", What: "scheduled", Why: "starts at " + s.Start.UTC().Format(time.RFC3339)})
	}
	return d.begin(s, now, by, "it is in the config, and its time has come")
}

// ended tells whether its time is over.
func (s *Spec) ended(now time.Time) bool { return !s.End.IsZero() && !now.Before(s.End) }

// reset forgets shares and steps.
func (d *Doc) reset(s *Spec) {
	d.Arms = make([]string, len(s.Arms))
	for i := range s.Arms {
		d.Arms[i] = s.Arms[i].Name
	}
	d.Shares, d.Dropped, d.StepBase, d.StepOut = make([]float64, len(s.Arms)), make([]bool, len(s.Arms)), make([]int64, len(s.Arms)), make([]int64, len(s.Arms))
	d.Weights = nil
	d.Shares[0] = 1
	d.Step, d.Passed, d.StartedAt, d.EndedAt, d.StepAt = -1, false, time.Time{}, time.Time{}, time.Time{}
	d.PausedAt, d.Rested = time.Time{}, 0
}

// note returns d with one more entry in its log.
func (d Doc) note(now time.Time, e Entry) Doc {
	e.At, e.State, e.Shares = now, d.State, slices.Clone(d.Shares)
	d.Log = append(slices.Clone(d.Log[max(0, len(d.Log)-logKept+1):]), e)
	d.Decisions++
	return d
}

// begin starts to try the arms.
func (d Doc) begin(s *Spec, now time.Time, by, why string) Doc {
	d.reset(s)
	d.State, d.StartedAt, d.StepAt, d.Step = Running, now, now, 0
	d.weigh(d.stepShares(s, 0), now)
	return d.note(now, Entry{By: by, What: "started", Why: why})
}

// stepShares are those of a step, the control's first.
func (d *Doc) stepShares(s *Spec, step int) []float64 {
	shares := make([]float64, len(s.Arms))
	rest := 1.0
	for i := 1; i < len(s.Arms); i++ {
		switch {
		case d.Dropped[i]:
		case len(d.Steps) > 0:
			shares[i] = d.Steps[min(step, len(d.Steps)-1)] * s.part(i)
		default:
			shares[i] = s.Arms[i].Share
		}
		rest -= shares[i]
	}
	shares[0] = max(0, rest)
	return shares
}

// Matches tells whether the document belongs to the spec, as far as it says what is tried.
func (d *Doc) Matches(s *Spec) bool { return len(d.Arms) == len(s.Arms) && d.Digest == s.Digest() }

// Check tells what is wrong with a document that was read, which anybody may have written; nil where it can be gone by.
func (d *Doc) Check() error {
	n := len(d.Arms)
	switch {
	case n < 2:
		return fmt.Errorf("it has %d arms", n)
	case len(d.Shares) != n, len(d.Dropped) != n, len(d.StepBase) != n, len(d.StepOut) != n && len(d.StepOut) != 0:
		return fmt.Errorf("it has %d arms, and figures of others", n)
	case !slices.Contains([]State{Scheduled, Running, Paused, Inconclusive, Promoted, RolledBack, Aborted, Ended}, d.State):
		return fmt.Errorf("state %q is not known", d.State)
	case d.Run < 1 || d.Step < -1:
		return fmt.Errorf("run %d, step %d", d.Run, d.Step)
	case d.State.Tries() && len(d.Weights) == 0:
		return errors.New("it is tried, by no shares")
	}
	if err := checkShares(d.Shares); err != nil {
		return err
	}
	for i := range d.Weights {
		if len(d.Weights[i].Shares) != n {
			return fmt.Errorf("it has %d arms, and shares of %d", n, len(d.Weights[i].Shares))
		}
		if err := checkShares(d.Weights[i].Shares); err != nil {
			return err
		}
	}
	return nil
}

// checkShares tells whether they can be those of all units.
func checkShares(shares []float64) error {
	sum := 0.0
	for _, v := range shares {
		if !(v >= 0) { //nolint:staticcheck // NaN
			return fmt.Errorf("an arm has a share of %v", v)
		}
		sum += v
	}
	if sum > 1+1e-9 {
		return fmt.Errorf("its arms have shares of %v together", sum)
	}
	return nil
}

// Command is what an operator can ask for.
type Command string

// Commands.
const (
	Start   Command = "start"   // now, or anew
	Pause   Command = "pause"   // keep the shares as they are
	Resume  Command = "resume"  // go on after Pause, or after it was inconclusive
	Promote Command = "promote" // give everything to an arm
	Abort   Command = "abort"   // give everything to the control
)

// Errors of Apply, fit for the operator.
var (
	ErrState = errors.New("not in this state")
	ErrArm   = errors.New("no such arm")
)

// Apply carries out an operator's command. arm is Promote's, "" where only one is left. by is whose word it is. The error is an
// ErrState or ErrArm with its reason; a document that is not known yet refuses every command.
func (d Doc) Apply(s *Spec, c Command, arm, by string, now time.Time) (Doc, error) {
	if len(d.Arms) == 0 {
		return d, fmt.Errorf("%w: how experiment %q stands is not known yet, and the control serves its requests until it is; ask again then", ErrState, s.Name)
	}
	refuse := func(hint string) (Doc, error) {
		return d, fmt.Errorf("%w: experiment %q is %s, so it cannot %s; %s", ErrState, d.Name, d.State, c, hint)
	}
	switch c {
	case Start:
		switch {
		case d.State.Tries():
			return refuse("abort it first to start it anew")
		case s.ended(now):
			return refuse("its end was at " + s.End.UTC().Format(time.RFC3339) + ": give it a later one in the config, or none")
		case d.State != Scheduled:
			d.Run++
		}
		return d.begin(s, now, by, "asked for"), nil
	case Pause:
		if d.State != Running {
			return refuse("only a running one can")
		}
		d.State, d.PausedAt = Paused, now
		return d.note(now, Entry{By: by, What: "paused", Why: "asked for: shares stay as they are, and harm still ends it"}), nil
	case Resume:
		switch d.State {
		case Paused:
			if !d.PausedAt.IsZero() { // an older version did not say
				d.Rested += max(0, now.Sub(d.PausedAt))
			}
		case Inconclusive:
			d.StartedAt, d.Rested = now, 0 // it gets its time once more
		default:
			return refuse("only a paused or inconclusive one can; start begins one anew")
		}
		d.State, d.StepAt, d.PausedAt = Running, now, time.Time{}
		return d.note(now, Entry{By: by, What: "resumed", Why: "asked for"}), nil
	case Promote:
		if d.State == Promoted {
			return refuse("it is already")
		}
		i, err := d.winner(s, arm)
		if err != nil {
			return d, err
		}
		return d.promote(s, i, now, Entry{By: by, Why: "asked for"}), nil
	case Abort:
		if d.State == Aborted {
			return refuse("it is already")
		}
		return d.end(Aborted, now, Entry{By: by, What: "aborted", Why: "asked for"}), nil
	}
	return d, fmt.Errorf("%w: %q is no command", ErrState, c)
}

// winner is the index of the arm that is to be promoted.
func (d *Doc) winner(s *Spec, arm string) (int, error) {
	if arm == "" {
		left, n := 0, 0
		for i := 1; i < len(s.Arms); i++ {
			if !d.Dropped[i] || len(s.Arms) == 2 {
				left, n = i, n+1
			}
		}
		if n != 1 {
			return 0, fmt.Errorf("%w: experiment %q has %d arms that could be promoted: name one", ErrArm, d.Name, n)
		}
		return left, nil
	}
	_, i := s.Arm(arm)
	switch {
	case i < 0:
		return 0, fmt.Errorf("%w: experiment %q has no arm %q; it has %v", ErrArm, d.Name, arm, d.Arms)
	case i == 0:
		return 0, fmt.Errorf("%w: %q is the control of experiment %q: abort gives everything to it", ErrArm, arm, d.Name)
	}
	return i, nil
}

func (d Doc) promote(s *Spec, i int, now time.Time, e Entry) Doc {
	d.State, d.EndedAt, d.Passed = Promoted, now, true
	shares := make([]float64, len(s.Arms))
	shares[i] = 1
	d.weigh(shares, now)
	e.What, e.Arm = "promoted", s.Arms[i].Name
	return d.note(now, e)
}

// end gives everything to the control.
func (d Doc) end(state State, now time.Time, e Entry) Doc {
	d.State, d.EndedAt, d.Passed = state, now, false
	shares := make([]float64, len(d.Arms))
	shares[0] = 1
	d.weigh(shares, now)
	return d.note(now, e)
}

// weigh puts shares in force.
func (d *Doc) weigh(shares []float64, now time.Time) {
	d.Shares = shares
	d.Weights = append(slices.Clip(d.Weights), Weighing{now, shares})
}

// Dated returns the document with now as the time of all decisions but the first so many: they took something away, and were made by a clock of
// which it was not known how far it is off.
func (d Doc) Dated(but int64, now time.Time) Doc {
	n := int(max(0, d.Decisions-but))
	if n == 0 {
		return d
	}
	d.Log, d.Weights = slices.Clone(d.Log), slices.Clone(d.Weights)
	for i := max(0, len(d.Log)-n); i < len(d.Log); i++ {
		d.Log[i].At = now
	}
	for i := max(0, len(d.Weights)-n); i < len(d.Weights); i++ { // each has changed the shares
		d.Weights[i].At = now
	}
	if d.State.over() {
		d.EndedAt = now
	}
	return d
}

// Decide returns the document as what was seen and the time make it, and whether that changed anything. It decides one thing at a time.
func (d Doc) Decide(s *Spec, r Readings, now time.Time) (Doc, bool) {
	if d.State == Scheduled && d.Wanted != WantPause && !now.Before(s.Start) && !s.ended(now) {
		return d.begin(s, now, "schedule", "its time has come"), true
	}
	if !d.State.Tries() || len(r.Arms) != len(s.Arms) {
		return d, false
	}
	if s.ended(now) {
		return d.end(Ended, now, Entry{By: "schedule", What: "ended", Why: "its time is over"}), true
	}
	if next, ended := d.Guard(s, r, now); ended {
		return next, true
	}
	if d.State != Running || d.Passed {
		return d, false
	}
	if next, ready := d.advance(s, r, now); ready {
		return next, true
	}
	if s.MaxTime > 0 && now.Sub(d.StartedAt)-d.Rested >= s.MaxTime {
		d.State = Inconclusive
		return d.note(now, Entry{By: "schedule", What: "inconclusive", Why: fmt.Sprintf("nothing was shown within %s: shares stay as they are until somebody promotes or aborts it", s.MaxTime)}), true
	}
	return d, false
}

// Guard is the part of Decide that only takes away: what a replica may do that cannot ask the others.
func (d Doc) Guard(s *Spec, r Readings, now time.Time) (Doc, bool) {
	if !d.State.Tries() || len(r.Arms) != len(s.Arms) {
		return d, false
	}
	if r.Broken != "" {
		return d.end(RolledBack, now, Entry{By: "guardrail", What: "rolled back", Metric: "assignment", Why: r.Broken}), true
	}
	for i := 1; i < len(s.Arms); i++ {
		a := &r.Arms[i]
		if d.Dropped[i] || a.Judgement != Stop {
			continue
		}
		return d.drop(i, now, Entry{By: "guardrail", Arm: s.Arms[i].Name, Metric: a.Metric, Figure: known(a.Figure), Bound: known(a.Bound), Why: a.Why}), true
	}
	return d, false
}

// drop takes an arm away, and ends the experiment with the last one.
func (d Doc) drop(i int, now time.Time, e Entry) Doc {
	d.Dropped = slices.Clone(d.Dropped)
	d.Dropped[i] = true
	if d.left() == 0 {
		e.What = "rolled back"
		return d.end(RolledBack, now, e)
	}
	e.What = "arm rolled back"
	shares := slices.Clone(d.Shares) // not the step's: this replica's config may have other steps than whoever took it
	shares[0], shares[i] = shares[0]+shares[i], 0
	d.weigh(shares, now)
	return d.note(now, e)
}

// left is how many arms are still tried.
func (d *Doc) left() (n int) {
	for _, dropped := range d.Dropped[1:] {
		if !dropped {
			n++
		}
	}
	return n
}

// Waits says what the next step waits for, "" when nothing is missing.
func (d *Doc) Waits(s *Spec, r Readings, now time.Time) string {
	if left := d.StepAt.Add(s.MinTime).Sub(now); left > 0 {
		return fmt.Sprintf("%s more of this step", left.Round(time.Second))
	}
	last := d.lastStep()
	for i := range s.Arms { // the control's hosts as well: against one that has none, anything looks good
		if d.Dropped[i] {
			continue
		}
		a, name := &r.Arms[i], s.Arms[i].Name
		requests, out := float64(a.Requests-d.StepBase[i]), float64(d.outInStep(i, a)) // less than none where some were lost in a crash
		switch {
		case i > 0 && a.Units < int64(s.MinUnits):
			return fmt.Sprintf("%d of %d units of %s in this step", a.Units, s.MinUnits, name)
		case a.Hostless:
			return "hosts of " + name + ": there is none now"
		case requests > 0 && out > mostOutOfArm*requests:
			return fmt.Sprintf("hosts of %s: %s of its requests in this step went elsewhere", name, percent(out/requests))
		case i == 0:
		case last && a.Judgement != Pass, !last && a.Judgement < Advance:
			if a.Why != "" {
				return name + ": " + a.Why
			}
			return "proof that " + name + " keeps every guardrail"
		}
	}
	if !last && len(d.Weights)+d.left() > mostWeighings {
		return fmt.Sprintf("somebody to promote it, or to begin it anew: shares have changed %d times, and statistics tell no more of them apart", len(d.Weights)-1)
	}
	return ""
}

// StepFrom is which of Weights the step began with: the first since which no arm that is still tried has had another share. (An arm that is
// ended gives its share to the control, and begins no step.)
func (d *Doc) StepFrom() int {
	from := len(d.Weights) - 1
	for ; from > 0; from-- {
		for i := 1; i < len(d.Shares); i++ {
			if !d.Dropped[i] && d.Weights[from-1].Shares[i] != d.Shares[i] {
				return from
			}
		}
	}
	return max(from, 0)
}

// outInStep is how many of an arm's requests others' hosts served since the step began.
func (d *Doc) outInStep(i int, a *Reading) int64 {
	if i >= len(d.StepOut) { // an older version did not count them
		return a.OutOfArm
	}
	return a.OutOfArm - d.StepOut[i]
}

// lastStep tells whether what comes next is no step but the verdict.
func (d *Doc) lastStep() bool {
	return len(d.Steps) == 0 || d.Step+1 >= len(d.Steps) || d.Steps[d.Step+1] >= 1
}

// advance goes to the next step once all is there that it needs.
func (d Doc) advance(s *Spec, r Readings, now time.Time) (Doc, bool) {
	if d.Waits(s, r, now) != "" {
		return d, false
	}
	if !d.lastStep() {
		d.Step++
		d.StepAt = now
		d.weigh(d.stepShares(s, d.Step), now)
		d.StepBase, d.StepOut = make([]int64, len(s.Arms)), make([]int64, len(s.Arms))
		for i := range r.Arms {
			d.StepBase[i], d.StepOut[i] = r.Arms[i].Requests, r.Arms[i].OutOfArm
		}
		return d.note(now, Entry{By: "steps", What: "step up", Why: fmt.Sprintf("%s went by without proven harm: step %d of %d", s.MinTime, d.Step+1, len(d.Steps))}), true
	}
	if len(d.Steps) > 0 && d.Steps[len(d.Steps)-1] >= 1 && d.left() == 1 {
		i, err := d.winner(s, "")
		if err == nil {
			return d.promote(s, i, now, Entry{By: "steps", Metric: r.Arms[i].Metric, Figure: known(r.Arms[i].Figure), Bound: known(r.Arms[i].Bound), Why: r.Arms[i].Why}), true
		}
	}
	d.Passed = true
	return d.note(now, Entry{By: "steps", What: "passed", Why: "every guardrail is shown to be kept: promote it, or go on watching"}), true
}
