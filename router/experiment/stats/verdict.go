package stats

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Action is what an arm's figures call for.
type Action uint8

// Actions, from the one that waits to the one that ends it.
const (
	Hold    Action = iota // not enough is known, or hosts are in the way: leave the weight as it is
	Advance               // nothing speaks against the next step
	Promote               // shown to be within every margin
	Stop                  // harm, or an assignment that cannot be trusted
)

// String is the name that reports and JSON use.
func (a Action) String() string {
	if a > Stop {
		return fmt.Sprintf("action %d", uint8(a))
	}
	return [...]string{"hold", "advance", "promote", "stop"}[a]
}

// MarshalText writes String.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what String writes.
func (a *Action) UnmarshalText(b []byte) error {
	for i := Hold; i <= Stop; i++ {
		if i.String() == string(b) {
			*a = i
			return nil
		}
	}
	return fmt.Errorf("action %q: unknown", b)
}

// Finding is what one metric says of an arm.
type Finding string

// Findings. The first decisive one in this order is what the arm's verdict rests on.
const (
	Harm       Finding = "harm"    // proven worse, and beyond what is tolerated
	Hosts      Finding = "hosts"   // worse as it runs, but hosts may be why: no verdict on the model
	Suspicion  Finding = "suspect" // signs of harm that prove nothing yet
	Open       Finding = "open"    // not shown to be within the margin
	Few        Finding = "few"     // too few units
	Unmeasured Finding = "unknown" // no request of the arm or of the control had such a figure
	Within     Finding = "within"  // shown to be within the margin, or, of a goal, shown to be better by it
)

// Estimate is an arm against the control by one metric.
type Estimate struct {
	Metric Metric `json:"metric"`
	Guard  bool   `json:"guard"` // it decides; others are shown
	Goal   bool   `json:"goal,omitempty"`
	Margin Figure `json:"margin"`
	// Tolerate is how much worse it may be without being stopped.
	Tolerate Figure `json:"tolerate"`
	// Steps are what each of the weights has shown by itself, when there were several; the difference is of them together.
	Steps   []Step `json:"steps,omitempty"`
	Control Figure `json:"control"` // typical figures: geometric means of requests' TTFT, TPS and USD, means of units' shares and of scores; of steps weighed together like diff
	Arm     Figure `json:"arm"`
	Units   [2]int `json:"units"` // that were compared: the control's, the arm's, each once
	Diff    Figure `json:"diff"`  // best estimate: arm less control, a ratio less 1 of relative metrics
	Low     Figure `json:"low"`   // always-valid interval of the arm as it runs, on these hosts
	High    Figure `json:"high"`
	Bad     [2]int `json:"bad"`   // of failures and SLO misses: votes of units that went bad, the control's, the arm's
	Due     Figure `json:"due"`   // how many of them were to be expected of the arm
	LogE    Figure `json:"log_e"` // natural log of the evidence of harm beyond what is tolerated, that stops: of an e-process or, with hosts' spread in it, a mixture likelihood ratio; of both the lesser where failures are tolerated
	Needs   Figure `json:"needs"` // what LogE must reach
	// Unsure is the standard deviation, as a ratio, that the difference of USD has because prices at full load are expected, not billed; NaN of
	// other metrics. It is in the evidence and in what is said of the model, not in the interval.
	Unsure  Figure  `json:"unsure"`
	Finding Finding `json:"finding"`
	Reason  string  `json:"reason"`

	// Hosts is nil for metrics that are counted whoever is to blame.
	Hosts *Spread `json:"hosts,omitempty"`
}

// Spread is what hosts have to do with a difference.
type Spread struct {
	Arm          Figure `json:"arm"`     // hosts the arm ran on, those with little work counting less
	Control      Figure `json:"control"` // likewise
	Shared       Figure `json:"shared"`  // share of work that both did on the same hosts, in [0,1]
	SD           Figure `json:"sd"`      // by which hosts of one kind differ, as a ratio
	Low          Figure `json:"low"`     // interval of the model's effect, as if on other hosts of the kind
	High         Figure `json:"high"`
	Identifiable bool   `json:"identifiable"` // enough hosts, or enough shared ones, to tell model from hosts
}

// HostBlock is one host's work for one arm.
type HostBlock struct {
	Host     uint32            `json:"host"` // the caller's number
	Kind     uint32            `json:"kind"`
	Requests int64             `json:"requests"` // that were not set aside
	Against  [logMetrics]Range `json:"against"`  // TTFT, TPS, USD against the control's requests of the same blocks, as ratios less 1
}

// Range is an estimate with its standard error to both sides; it is for comparing hosts by eye, and proves nothing.
type Range struct {
	Mean Figure `json:"mean"`
	Low  Figure `json:"low"`
	High Figure `json:"high"`
}

// ArmVerdict is what is known of an arm.
type ArmVerdict struct {
	Name    string  `json:"name"`
	Control bool    `json:"control,omitempty"`
	Weight  float64 `json:"weight"`
	Action  Action  `json:"action"` // Hold of the control
	// By is the metric that decided, -1 when none did.
	By     int    `json:"-"`
	Reason string `json:"reason"`
	Units  int    `json:"units"` // seen, of those remembered
	// UnitsFrom are units, of those remembered, that had requests in an epoch or in a later one, by epoch from 0 on; nil of a Peek.
	UnitsFrom []int `json:"-"`
	// Model says what can be said of the arm's model apart from the hosts it runs on.
	Model string `json:"model,omitempty"`
	Counts
	SRM       Figure      `json:"srm_log_e"` // natural log of the two-sided e-value of unit counts
	Estimates []Estimate  `json:"estimates,omitempty"`
	Hosts     []HostBlock `json:"hosts,omitempty"`
}

// Verdict is what is known of an experiment.
type Verdict struct {
	Seq    uint64       `json:"seq"`    // observations that it rests on
	Alpha  float64      `json:"alpha"`  // of the experiment
	Sample float64      `json:"sample"` // share of units that are remembered
	Broken string       `json:"broken,omitempty"`
	Arms   []ArmVerdict `json:"arms"`
}

// srmLogE is the evidence that says "assignment broken": a thousand.
var srmLogE = math.Log(1000) //nolint:gochecknoglobals // a constant, if it could be

// suspicion is the evidence of harm that keeps an arm from its next step: ten.
var suspicion = math.Log(10) //nolint:gochecknoglobals // likewise

// Verdict says what is known, with the observations of replicas that were merged.
func (e *Experiment) Verdict() Verdict { return e.look(true, 1) }

// Peek is Verdict without the words, the hosts and what decides nothing, for who looks after every request.
func (e *Experiment) Peek() Verdict { return e.look(false, 1) }

// VerdictOf is Verdict by one of several who look at figures of their own, each of whom may end the experiment: by its part of alpha, in
// (0,1]. The parts of all who look have to be 1 together; then alpha holds for all of them.
func (e *Experiment) VerdictOf(part float64) Verdict { return e.look(true, part) }

// PeekOf is Peek by one of several, as VerdictOf.
func (e *Experiment) PeekOf(part float64) Verdict { return e.look(false, part) }

func (e *Experiment) look(words bool, part float64) Verdict {
	if !(part > 0 && part <= 1) { //nolint:staticcheck // NaN
		panic(fmt.Sprintf("BUG: %v of alpha", part))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.own
	if len(e.peers) > 0 {
		s = e.combined()
	}
	if part == 1 {
		return s.verdict(&e.design, words)
	}
	d := e.design
	d.Alpha *= part
	return s.verdict(&d, words)
}

// alpha is that of guardrail g for one arm. Units that are forgotten leave another test behind; all of them share what there is.
func (s *state) alpha(d *Design, g *Guardrail) float64 {
	sum := 0.0
	for i := range d.Guardrails {
		sum += d.Guardrails[i].share()
	}
	a := (1 - earlyPart) * d.Alpha * g.share() / (max(sum, g.share()) * float64(len(d.Arms)-1))
	if !d.Sticky {
		return a
	}
	if l := float64(s.units.level); l > 0 {
		return 0.1 * a / (l * (l + 1))
	}
	return 0.9 * a
}

// early is the alpha of what the first units of one arm tell.
func (d *Design) early() float64 { return earlyPart * d.Alpha / float64(len(d.Arms)-1) }

// optional tells whether nobody has asked for the guardrail on m.
func (d *Design) optional(m Metric) bool {
	i := slices.IndexFunc(d.Guardrails, func(g Guardrail) bool { return g.Metric == m })
	return i >= 0 && d.Guardrails[i].Optional && !d.Guardrails[i].Goal
}

func (g *Guardrail) share() float64 {
	if g.Share == 0 {
		return 1
	}
	return g.Share
}

func (s *state) verdict(d *Design, words bool) Verdict {
	v := Verdict{Seq: s.seq, Alpha: d.Alpha, Sample: math.Exp2(-float64(s.units.level))}
	now := s.epochs[len(s.epochs)-1]
	for k := range s.arms {
		a := &s.arms[k]
		v.Arms = append(v.Arms, ArmVerdict{Name: d.Arms[k], Control: k == d.Control, Weight: now[k], By: -1, Units: a.units(), Counts: a.counts, SRM: Figure(math.NaN())})
	}
	if words {
		s.unitsFrom(v.Arms, d.Sticky)
	}
	for k := range s.arms {
		if words {
			v.Arms[k].Hosts = s.hostBlocks(k)
		}
		if k != d.Control {
			s.judge(&v.Arms[k], d, k, words)
			if v.Arms[k].Broken() {
				v.Broken = v.Arms[k].Reason
			}
		}
	}
	if v.Broken != "" {
		for k := range v.Arms {
			if k != d.Control {
				v.Arms[k].Action, v.Arms[k].Reason = Stop, v.Broken
			}
		}
	}
	return v
}

// unitsFrom counts each arm's units by the epochs in which they had requests.
func (s *state) unitsFrom(vs []ArmVerdict, sticky bool) {
	for k := range s.arms {
		vs[k].UnitsFrom = make([]int, len(s.epochs))
		for e := range s.arms[k].strata {
			if !sticky {
				vs[k].UnitsFrom[e] = int(s.arms[k].strata[e].sum[Failed].n)
			}
		}
	}
	for i := range s.units.recs {
		r, last := &s.units.recs[i], -1
		for j := r.stays; j > 0; j = s.units.stays[j-1].next {
			if t := &s.units.stays[j-1]; t.requests > 0 {
				last = max(last, int(t.epoch))
			}
		}
		if last >= 0 {
			vs[r.arm].UnitsFrom[last]++
		}
	}
	for k := range vs {
		for e := len(s.epochs) - 2; e >= 0; e-- {
			vs[k].UnitsFrom[e] += vs[k].UnitsFrom[e+1]
		}
	}
}

// Broken says that units do not fall on the arm as they should: no comparison can be trusted.
func (v *ArmVerdict) Broken() bool { return float64(v.SRM) >= srmLogE }

// judge compares arm k with the control.
func (s *state) judge(v *ArmVerdict, d *Design, k int, words bool) {
	c, a := &s.arms[d.Control], &s.arms[k]
	v.SRM = Figure(s.logE(s.seen, mismatched, d.Control, k))
	v.Estimates = make([]Estimate, 0, metrics)
	cs := s.contrasts(d, k, words)
	for m := range metrics {
		var g Guardrail
		i := slices.IndexFunc(d.Guardrails, func(g Guardrail) bool { return g.Metric == m })
		guarded := i >= 0
		if guarded {
			g = d.Guardrails[i]
		}
		if !guarded && (!words || c.with[m]+a.with[m] == 0) {
			continue
		}
		v.Estimates = append(v.Estimates, s.estimate(d, k, m, &cs[m], g, guarded, words))
	}
	if words {
		v.Model = v.model()
	}
	if v.Broken() {
		v.Action = Stop
		v.Reason = fmt.Sprintf("assignment broken: %s and %s have %d and %d units, which their weights do not give (E = %s, 1000 stops)",
			d.Arms[d.Control], v.Name, c.units(), a.units(), evidence(float64(v.SRM)))
		return
	}
	tolerate := 0.0
	if i := slices.IndexFunc(d.Guardrails, func(g Guardrail) bool { return g.Metric == Failed }); i >= 0 {
		tolerate = d.Guardrails[i].Tolerate
	}
	if a.early.alarm(d.early(), tolerate) <= 1 {
		v.Action, v.By, v.Reason = Stop, int(Failed), a.early.tell(d.Arms[d.Control], tolerate)
		return
	}
	neither := func(e *Estimate) bool { return !c.known(e.Metric) && !a.known(e.Metric) }
	for _, want := range []Finding{Harm, Hosts, Suspicion, Few, Open, Unmeasured} {
		for i := range v.Estimates {
			e := &v.Estimates[i]
			if !e.Guard || e.Finding != want || e.Finding == Unmeasured && neither(e) && d.optional(e.Metric) {
				continue // what neither has cannot be held against either, unless somebody has asked for it
			}
			v.By, v.Reason = int(e.Metric), e.Metric.String()+": "+e.Reason
			if want == Hosts {
				v.Reason = e.Reason
			}
			switch want {
			case Harm:
				v.Action = Stop
				if e.Hosts == nil && words && v.blind() {
					v.Reason += "; whether hosts or the model are to blame cannot be told"
				}
			case Open, Unmeasured:
				v.Action = Advance
				if want == Unmeasured && e.Metric == TTFT && c.known(TTFT) { // nobody has had an answer of the arm's that was timed
					v.Action = Hold
				}
			case Hosts, Suspicion, Few, Within:
				v.Action = Hold
			}
			return
		}
	}
	if len(d.Guardrails) == 0 {
		v.Action, v.Reason = Advance, "no guardrail to hold it to"
		return
	}
	v.Action, v.Reason = Promote, "every guardrail's interval is within its margin"
	if words {
		var none []string
		for i := range v.Estimates {
			if e := &v.Estimates[i]; e.Guard && e.Finding == Unmeasured {
				none = append(none, e.Metric.String())
			}
		}
		if len(none) > 0 {
			v.Reason = "the interval of every guardrail that was measured is within its margin; of neither arm there was any " + strings.Join(none, ", ")
		}
	}
	if i := slices.IndexFunc(v.Estimates, func(e Estimate) bool { return e.Guard && e.Hosts != nil && !e.Hosts.Identifiable }); i >= 0 {
		v.Reason += ", on the hosts it runs on: too few of them to speak of others"
	}
}

// blind says that hosts stand between the figures and the model.
func (v *ArmVerdict) blind() bool {
	return slices.ContainsFunc(v.Estimates, func(e Estimate) bool {
		return e.Guard && e.Hosts != nil && (e.Finding == Hosts || !e.Hosts.Identifiable)
	})
}

// model puts into words what there is to say of the model.
func (v *ArmVerdict) model() string {
	var seen *Estimate
	for i := range v.Estimates {
		e := &v.Estimates[i]
		if !e.Guard || e.Hosts == nil {
			continue
		}
		switch {
		case e.Finding == Hosts:
			return e.Reason
		case e.Finding == Harm && (seen == nil || seen.Finding != Harm), seen == nil:
			seen = e
		}
	}
	switch {
	case seen == nil:
		return ""
	case seen.Finding == Harm && seen.Hosts.Identifiable:
		return fmt.Sprintf("%s: worse than hosts of one kind explain: the model's part is %s to %s", seen.Metric, seen.Metric.Signed(float64(seen.Hosts.Low)), seen.Metric.Signed(float64(seen.Hosts.High)))
	case seen.Finding == Harm:
		return fmt.Sprintf("%s: worse by more than hosts of one kind have been seen to differ, on few hosts (%.3g, control %.3g): look at them before blaming the model", seen.Metric, float64(seen.Hosts.Arm), float64(seen.Hosts.Control))
	case seen.Units[0] == 0 || seen.Units[1] == 0:
		return "no verdict: nothing could be compared like with like"
	case !seen.Hosts.Identifiable:
		return fmt.Sprintf("no verdict: the arm runs on %.3g hosts, the control on %.3g, %.0f %% of work on the same ones: with fewer than 3 on a side hosts and model cannot be told apart",
			float64(seen.Hosts.Arm), float64(seen.Hosts.Control), 100*float64(seen.Hosts.Shared))
	}
	return "hosts are not in the way: enough of them, or the same ones, serve both"
}

// estimate compares arm k with the control by m.
func (s *state) estimate(d *Design, k int, m Metric, cmp *contrast, g Guardrail, guarded, words bool) Estimate {
	c, a := &s.arms[d.Control], &s.arms[k]
	nan := Figure(math.NaN())
	e := Estimate{
		Unsure: nan, Metric: m, Guard: guarded, Goal: g.Goal, Margin: Figure(g.Margin), Tolerate: Figure(g.Tolerate), Control: cmp.control, Arm: cmp.arm,
		Units: cmp.units, Diff: nan, Low: nan, High: nan, LogE: nan, Due: nan,
	}
	if cmp.epochs > 1 {
		e.Steps = cmp.steps
	}
	if !guarded {
		e.Margin = nan
	}
	alpha := s.alpha(d, &g)
	needs := -math.Log(alpha)
	e.Needs = Figure(needs)
	diff, variance := cmp.diff, cmp.variance
	if m.Relative() && a.off[m].w > 0 && c.off[m].w > 0 {
		off := a.off[m].sum/a.off[m].w - c.off[m].sum/c.off[m].w
		variance += off * off * s.slopeVariance[m]
	}
	few := cmp.units[0] < d.MinUnits || cmp.units[1] < d.MinUnits
	ballot, voted := m.ballot()
	if cmp.epochs > 0 {
		e.Diff = m.natural(diff)
	}
	tau := m.tau()
	// How much worse it is, on the scale of comparison, and by how much that is more than is tolerated.
	worse := diff
	if m.more() {
		worse = -diff
	}
	excess := worse - m.scaled(g.Tolerate)
	var sp hostSpread
	unsure := 0.0 // variance
	if m.Relative() {
		if sp = s.hostSpread(d, k, m); m == USD {
			unsure = s.unsure(d.Control, k, float64(sp.Shared))
			e.Unsure = Figure(math.Expm1(math.Sqrt(unsure)))
		}
	}
	wide := math.Sqrt(tau*tau + unsure) // what is expected to differ has the doubt in it as well, or nothing would ever be beyond it
	runs := math.NaN()                  // evidence against the arm as it runs
	if !few && variance > 0 {
		half := HalfWidth(variance, tau, alpha)
		runs = Worse(max(0, excess), variance+unsure, wide)
		e.Low, e.High = m.natural(diff-half), m.natural(diff+half)
		e.LogE = Figure(runs)
	}
	if m.Relative() {
		if !few && variance > 0 {
			v := variance + sp.variance + unsure
			h := HalfWidth(v, wide, alpha)
			sp.Low, sp.High = m.natural(diff-h), m.natural(diff+h)
			e.LogE = Figure(Worse(max(0, excess), v, wide))
		}
		e.Hosts = &sp.Spread
	}
	votes := math.Inf(-1) // evidence that units of the arm go bad more often at all
	if voted {
		v := s.bad[ballot]
		votes = s.logE(v, harmful, d.Control, k)
		e.Due = 0
		for i := range v {
			if w := s.odds(&v[i], d.Control, k); w > 0 {
				others, hits := v[i].count[d.Control], v[i].count[k]
				e.Bad[0], e.Bad[1] = e.Bad[0]+int(others), e.Bad[1]+int(hits)
				e.Due += Figure(w * float64(others+hits))
			}
		}
		switch {
		case g.Tolerate == 0:
			e.LogE = Figure(votes)
		case math.IsNaN(runs): // it may be worse, and nobody knows by how much
			e.LogE = Figure(min(0, votes))
		default: // it is worse, and by more than is tolerated
			e.LogE = Figure(min(runs, votes))
		}
	}
	bad := float64(e.High)
	if m.more() {
		bad = -float64(e.Low)
	}
	within := bad <= g.Margin
	if g.Goal {
		within = bad < -g.Margin
	}
	switch {
	case excess > 0 && float64(e.LogE) >= needs:
		e.Finding = Harm
	case votes >= needs && worse <= 0: // more units go bad, and yet not more of what they ask for: one of both misleads
		e.Finding = Suspicion
	case within:
		e.Finding = Within
	case e.Hosts != nil && excess > 0 && runs >= needs:
		e.Finding = Hosts
	case excess > 0 && float64(e.LogE) >= suspicion:
		e.Finding = Suspicion
	case (!c.known(m) || !a.known(m)) && (m.Relative() || m == Score) && !s.few(d, k):
		e.Finding = Unmeasured
	case few:
		e.Finding = Few
	default:
		e.Finding = Open
	}
	if words {
		e.Reason = e.tell(d, a.counts.Unmatched)
	}
	return e
}

// unsure is the variance of the difference of arm k's prices from the control's for what is not known of their hosts' speed at full load: as if
// each arm's hosts were all misjudged alike, for it is one catalogue by which they are. What both do on the same hosts is the same to both.
func (s *state) unsure(control, k int, shared float64) float64 {
	apart, sum := 1-max(0, min(1, shared)), 0.0
	for _, i := range [2]int{control, k} {
		if u := &s.arms[i].unsure; u.w > 0 {
			sum += u.sum / u.w * u.sum / u.w
		}
	}
	return apart * apart * sum
}

// tellUnsure is what has to be unsure of prices for it to be told.
const tellUnsure = 0.05

// few says that one of both has too few units for anything.
func (s *state) few(d *Design, k int) bool {
	return s.arms[d.Control].units() < d.MinUnits || s.arms[k].units() < d.MinUnits
}

// natural turns a difference on the scale of comparison into one that is told.
func (m Metric) natural(d float64) Figure {
	if m.Relative() {
		return Figure(math.Expm1(d))
	}
	return Figure(d)
}

// tell says in words what was found.
func (e *Estimate) tell(d *Design, unmatched int64) string {
	if e.Finding == Few {
		if e.Hosts != nil && e.Units[1] < e.Units[0] && unmatched > int64(e.Units[1]) {
			return fmt.Sprintf("%d units: too few to compare (%d), for the control had nothing like %d requests of the arm: no such hosts, prompts or load", e.Units[1], d.MinUnits, unmatched)
		}
		return fmt.Sprintf("%d units, control %d: too few to compare (%d of each)", e.Units[1], e.Units[0], d.MinUnits)
	}
	if e.Finding == Unmeasured {
		why := "not known of any request of the arm, of the control or of both"
		switch e.Metric {
		case USD:
			why += ": a host without a price has none, and keeps the arm from being promoted; give it one, or leave the guardrail out"
		case Score:
			why += ": nobody has sent feedback"
		case TTFT, TPS, Truncated, Failed, Missed, metrics:
		}
		return why
	}
	var b strings.Builder
	if !math.IsNaN(float64(e.Due)) && (e.Finding == Harm || e.Finding == Suspicion) {
		fmt.Fprintf(&b, "%d of %d units that went bad are the arm's, %.3g were due: ", e.Bad[1], e.Bad[0]+e.Bad[1], float64(e.Due))
	}
	size, word := e.Metric.size(float64(e.Diff))
	fmt.Fprintf(&b, "%s %s", size, word)
	if !math.IsNaN(float64(e.Low)) {
		fmt.Fprintf(&b, " (%s to %s)", e.Metric.Signed(float64(e.Low)), e.Metric.Signed(float64(e.High)))
	}
	if e.Unsure >= tellUnsure {
		fmt.Fprintf(&b, ", by prices at full load that are known within some %.0f %% only", 100*float64(e.Unsure))
	}
	switch e.Finding {
	case Harm:
		fmt.Fprintf(&b, ": harm proven%s, E = %s (%s stops)", e.beyond(), evidence(float64(e.LogE)), evidence(float64(e.Needs)))
	case Hosts:
		h := e.Hosts
		why := ""
		if !h.Identifiable {
			why = "; not identifiable with so few"
		}
		return fmt.Sprintf("hosts differ: no verdict on the model: %s is %s on the arm's hosts (%.3g of them, control %.3g, %.0f %% of work on the same ones), "+
			"hosts of one kind differ by %.0f %% anyway, so that the model's part is %s to %s%s",
			e.Metric, b.String(), float64(h.Arm), float64(h.Control), 100*float64(h.Shared), 100*float64(h.SD),
			e.Metric.Signed(float64(h.Low)), e.Metric.Signed(float64(h.High)), why)
	case Suspicion:
		if !math.IsNaN(float64(e.Due)) && e.Diff <= 0 {
			b.WriteString(": more units go bad, though not more of their requests do; it goes no further")
			break
		}
		fmt.Fprintf(&b, ": signs of harm%s, E = %s (%s stops)", e.beyond(), evidence(float64(e.LogE)), evidence(float64(e.Needs)))
	case Within:
		if e.Guard {
			fmt.Fprintf(&b, ": within the margin of %s", e.Metric.Amount(float64(e.Margin)))
		}
	case Open, Few, Unmeasured:
		if e.Guard {
			fmt.Fprintf(&b, ": not shown to be within the margin of %s yet", e.Metric.Amount(float64(e.Margin)))
		}
	}
	return b.String()
}

// beyond says what is tolerated, if anything is.
func (e *Estimate) beyond() string {
	if !(e.Tolerate > 0) { //nolint:staticcheck // NaN
		return ""
	}
	return " beyond the " + e.Metric.Amount(float64(e.Tolerate)) + " that is tolerated"
}

// size is a difference in words.
func (m Metric) size(d float64) (amount, word string) {
	words := map[Metric][2]string{TTFT: {"longer", "shorter"}, TPS: {"faster", "slower"}, USD: {"dearer", "cheaper"}}[m]
	if words == [2]string{} {
		words = [2]string{"more", "less"}
	}
	if math.IsNaN(d) {
		return "difference", "unknown"
	}
	if d < 0 {
		return m.Amount(-d), words[1]
	}
	return m.Amount(d), words[0]
}

// Amount is a margin or a size as it is told.
func (m Metric) Amount(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case m.Relative():
		return fmt.Sprintf("%.3g %%", 100*v)
	case m == Score:
		return fmt.Sprintf("%.3g", v)
	}
	return fmt.Sprintf("%.3g points", 100*v)
}

// Signed is a difference as it is told, with its sign: +3.1 %, -0.2 points; of ratios beyond ten the ratio.
func (m Metric) Signed(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case m.Relative() && v > 99:
		return "more than ×100"
	case m.Relative() && v > 9:
		return fmt.Sprintf("×%.3g", 1+v)
	case m.Relative() && v < -0.99:
		return "less than -99 %"
	case m.Relative():
		return fmt.Sprintf("%+.3g %%", 100*v)
	case m == Score:
		return fmt.Sprintf("%+.3g", v)
	}
	return fmt.Sprintf("%+.3g points", 100*v)
}

// Value is a typical figure as it is told, with its unit.
func (m Metric) Value(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "–"
	}
	switch m {
	case TTFT:
		return fmt.Sprintf("%.3g s", v)
	case TPS:
		return fmt.Sprintf("%.3g tok/s", v)
	case USD:
		return fmt.Sprintf("$%.3g", v)
	case Score:
		return fmt.Sprintf("%.3g", v)
	case Truncated, Failed, Missed, metrics:
	}
	return fmt.Sprintf("%.3g %%", 100*v)
}

// Title is what the metric is, for people.
func (m Metric) Title() string {
	if m >= metrics {
		return m.String()
	}
	return [metrics]string{"time to the first token", "tokens per second", "dollars per million output tokens", "answers that broke off", "failed requests", "missed SLOs", "score"}[m]
}

// Evidence is the number whose natural logarithm is given, as it is told.
func Evidence(log float64) string {
	if math.IsNaN(log) {
		return "–"
	}
	return evidence(log)
}

// evidence is a natural logarithm as the number that it is of.
func evidence(log float64) string {
	if log > 13 {
		return fmt.Sprintf("10^%.0f", log/math.Ln10)
	}
	return fmt.Sprintf("%.3g", math.Exp(log))
}
