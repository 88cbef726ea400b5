package experiment

import (
	"fmt"
	"slices"
	"time"
)

// Adopt returns the document with what the config says now, and whether that changed anything. It is to be called once for each
// config that is read: later words of an operator hold against it. What was withdrawn is in a config again.
func (d Doc) Adopt(s *Spec, now time.Time) (Doc, bool) {
	changed := !d.Withdrawn.IsZero()
	d = d.Kept()
	if !d.Matches(s) {
		d = d.anew(s, now, Entry{By: "config", What: "changed", Why: "the config tries something else now: what was seen before says nothing of it"})
		changed = true
	}
	if !slices.Equal(d.Steps, s.Steps) {
		d = d.restep(s, now)
		changed = true
	}
	if wanted := s.wanted(); wanted != d.Wanted {
		d = d.ask(s, wanted, now)
		changed = true
	}
	return d, changed
}

// restep takes up other steps. Shares stay as they are, so that no unit is moved: the next step is the first that is more.
func (d Doc) restep(s *Spec, now time.Time) Doc {
	d.Steps = slices.Clone(s.Steps)
	if !d.State.Tries() {
		return d
	}
	share := d.steppedTo(s)
	d.Step = -1
	for i, step := range d.Steps {
		if step <= share+1e-9 {
			d.Step = i
		}
	}
	e := Entry{By: "config", What: "steps changed"}
	switch {
	case len(d.Steps) == 0 && len(d.Weights)+d.left() > mostWeighings:
		e.Why = "the config has no steps any more, and shares stay as they are: they have changed so often that statistics tell no more of them apart"
	case len(d.Steps) == 0: // each arm has a weight of its own from now on
		d.Step = 0
		d.weigh(d.stepShares(s, 0), now)
		e.Why = "the config has no steps any more: every arm gets its weight"
	case d.Step+1 < len(d.Steps):
		e.Why = fmt.Sprintf("shares stay as they are; the next step is %s", percent(d.Steps[d.Step+1]))
		if d.Passed { // the steps that there were
			d.Passed, d.StepAt, d.StartedAt, d.Rested = false, now, now, 0 // it gets its time once more
			if !d.PausedAt.IsZero() {
				d.PausedAt = now
			}
			e.Why += ", for what it has passed was less"
		}
		if d.State != Running {
			e.Why += fmt.Sprintf("; it is %s: headrace experiment resume %s has it go on", d.State, s.Name)
		}
	default:
		e.Why = "shares stay as they are; no further step is more"
	}
	return d.note(now, e)
}

// steppedTo is the share of a step that the shares in force are those of.
func (d *Doc) steppedTo(s *Spec) (share float64) {
	for i := 1; i < len(s.Arms); i++ {
		if part := s.part(i); !d.Dropped[i] && part > 0 {
			share = max(share, d.Shares[i]/part)
		}
	}
	return share
}

// ask has the config's new word carried out, and notes why it cannot be.
func (d Doc) ask(s *Spec, wanted Wanted, now time.Time) Doc {
	d.Wanted = wanted
	cmd := map[Wanted]Command{WantRun: Resume, WantPause: Pause, WantPromote: Promote, WantAbort: Abort}[wanted]
	next, err := d.Apply(s, cmd, "", "config", now)
	if err == nil {
		return next
	}
	is := map[Wanted][]State{WantRun: {Running, Scheduled}, WantPause: {Paused, Scheduled}, WantPromote: {Promoted}, WantAbort: {Aborted}}[wanted]
	if slices.Contains(is, d.State) {
		return d
	}
	why := fmt.Sprintf("the config says state: %s, and %v", wanted, err)
	if wanted == WantRun {
		why = fmt.Sprintf("the config says state: run, and it is %s: begin it anew with headrace experiment start %s", d.State, s.Name)
	}
	return d.note(now, Entry{By: "config", What: "not done", Why: why})
}

// Forgotten is how long an experiment may be out of every config before what was seen of it is deleted.
const Forgotten = 7 * 24 * time.Hour

// Return is Adopt of an experiment that was out of the config until now, since the given time: one that had come to its end before
// then is another one, which begins anew. So is one that was away for long (Forgotten). A name that is written down again gives nothing to the arm that had it once.
func (d Doc) Return(s *Spec, since, now time.Time) (Doc, bool) {
	over := d.State.over() && !d.EndedAt.After(since) || d.State != Scheduled && !d.StartedAt.After(since) && now.Sub(since) >= Forgotten
	if over && d.Matches(s) {
		d = d.anew(s, now, Entry{By: "config", What: "returned", Why: fmt.Sprintf("it was %s, taken out of the config, and written down again: this is another run", d.State)})
	}
	next, changed := d.Adopt(s, now)
	return next, changed || over
}

// anew is the document of the next run, which begins if it is time. A word of the config that was one on the run before promotes nothing.
func (d Doc) anew(s *Spec, now time.Time, e Entry) Doc {
	said := d.Wanted
	d = Doc{
		Name: s.Name, Digest: s.Digest(), Run: d.Run + 1, State: Scheduled, Wanted: WantRun, Steps: slices.Clone(s.Steps),
		Log: d.Log, Decisions: d.Decisions, Withdrawn: d.Withdrawn, TakenOut: d.TakenOut,
	}
	if said == WantPromote && s.wanted() == WantPromote {
		d.Wanted = said
		e.Why += "; state: promote was said of the run before: this one is tried first"
	}
	d.reset(s)
	return d.note(now, e).first(s, now, "config")
}

// Withdraw says that no replica has had the experiment in its config since then, and whether that changed anything. said tells that one was
// seen to leave it out; else all who had it have gone silent, which is no decision: they may be back.
func (d Doc) Withdraw(since time.Time, said bool, now time.Time) (Doc, bool) {
	if !d.Withdrawn.IsZero() && (d.TakenOut || !said) {
		return d, false
	}
	if d.Withdrawn.IsZero() {
		d.Withdrawn = since
	}
	if d.TakenOut = said; !said {
		return d, true
	}
	return d.note(now, Entry{By: "config", What: "withdrawn", Why: "no replica has it in its config since " + d.Withdrawn.UTC().Format(time.RFC3339)}), true
}

// Kept is the document of an experiment that a replica has in its config all the while, whatever others thought.
func (d Doc) Kept() Doc {
	d.Withdrawn, d.TakenOut = time.Time{}, false
	return d
}

// Away is since when the experiment was in nobody's config, zero where that is not known: who had it may have been down, unless somebody was
// seen to leave it out or it took long (Forgotten).
func (d *Doc) Away(now time.Time) time.Time {
	if d.TakenOut || now.Sub(d.Withdrawn) >= Forgotten {
		return d.Withdrawn
	}
	return time.Time{}
}

// over tells whether everything is one arm's.
func (s State) over() bool { return s != Scheduled && !s.Tries() }

// Reconcile returns what becomes of the document, as replicas share it, now that somebody knows mine of the same experiment, and whether
// that changed anything. Each decision of a document counts it up, so one that was decided less often is from before mine: what replicas
// share has gone back in time, and mine is what holds. Otherwise theirs does, but for what mine takes away: within a run, what was
// ended is not tried again. (A promotion takes nothing away.) alone says that mine was decided while nobody else could be asked: it holds
// against what they made of the run meanwhile, but not against what they decided when they knew of it.
func (d Doc) Reconcile(mine *Doc, alone bool, now time.Time) (Doc, bool) {
	switch {
	case d.Run < mine.Run, d.Run == mine.Run && d.Digest == mine.Digest && d.Decisions < mine.Decisions:
		return *mine, true
	case d.Run > mine.Run || d.Digest != mine.Digest:
		return d, false
	case mine.State.over() && mine.State != Promoted && (d.State.Tries() || alone && d.State != mine.State && d.times(mine.State) < mine.times(mine.State)):
		return d.end(mine.State, now, mine.last()), true
	case !d.State.Tries():
		return d, false
	}
	changed := false
	for i := 1; i < len(d.Dropped) && i < len(mine.Dropped); i++ {
		if mine.Dropped[i] && !d.Dropped[i] {
			e := mine.last()
			for k := range mine.Log {
				if mine.Log[k].Arm == d.Arms[i] && mine.Log[k].By == "guardrail" {
					e = mine.Log[k]
				}
			}
			d, changed = d.drop(i, now, e), true
		}
	}
	return d, changed
}

// times is how often the run has come to a state, as far as its log goes back.
func (d *Doc) times(s State) (n int) {
	for i := len(d.Log) - 1; i >= 0 && d.Log[i].What != "started"; i-- {
		if d.Log[i].State == s && (i == 0 || d.Log[i-1].State != s) {
			n++
		}
	}
	return n
}

// last is the last decision.
func (d *Doc) last() Entry {
	if len(d.Log) == 0 {
		return Entry{By: "replica", What: "ended", Why: "another replica has ended it"}
	}
	return d.Log[len(d.Log)-1]
}

func (s *Spec) wanted() Wanted {
	if s.Wanted == "" {
		return WantRun
	}
	return s.Wanted
}
