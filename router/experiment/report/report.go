package report

import (
	"math"
	"slices"
	"time"

	"headrace/router/experiment/stats"
)

// Report is all that there is to tell of an experiment. Its JSON is for other programs.
type Report struct {
	Name     string    `json:"name"`
	Model    string    `json:"model"`     // as callers name it
	AssignBy string    `json:"assign_by"` // what a unit is: user, session, key, request
	State    string    `json:"state"`
	At       time.Time `json:"at"`
	Started  time.Time `json:"started"` // zero when it has not
	Ended    time.Time `json:"ended"`   // zero while it runs
	Alpha    float64   `json:"alpha"`   // of the experiment; the Verdict's is less where several replicas share it

	Arms      []Arm             `json:"arms"` // as the Verdict's
	Verdict   stats.Verdict     `json:"verdict"`
	Hosts     map[uint32]string `json:"hosts"` // names of those that the Verdict numbers
	Kinds     map[uint32]string `json:"kinds"`
	History   []Point           `json:"history"`
	Decisions []Decision        `json:"decisions"` // oldest first

	Shadow *Shadow `json:"shadow,omitempty"` // nil when no copies were made

	Advice  string `json:"advice,omitempty"`  // what its operator should do now, as to make a promotion last
	Command string `json:"command,omitempty"` // that makes the page again
	Version string `json:"version,omitempty"`
}

// Shadow is what came of copies of requests that an arm answered for nobody, at the gateway that tells. Figures of copies that failed are in
// none but Failed and USD.
type Shadow struct {
	Experiment string  `json:"experiment"`
	Arm        string  `json:"arm"`
	Copied     int64   `json:"copied"`
	NoRoom     int64   `json:"no_room"` // no host was idle enough, or too many copies waited
	Failed     int64   `json:"failed"`
	Output     int64   `json:"output_tokens"`
	USD        float64 `json:"usd"` // share of the hosts' bills; of hosts that are paid anyway nothing more is billed
	TTFT       float64 `json:"ttft_seconds_mean"`
	TPS        float64 `json:"tokens_per_second_mean"`

	SameFinish int64 `json:"same_finish"` // of Finished
	Finished   int64 `json:"finished"`    // both answers gave a reason
	Longer     int64 `json:"longer"`      // than the control's, as far as max_tokens let it be; as are those below
	Shorter    int64 `json:"shorter"`
	SameText   int64 `json:"same_text"`   // of Compared: the beginning of the control's answer, word by word
	Compared   int64 `json:"texts"`       // at temperature 0, where the control's answer came in one piece
	ValidJSON  int64 `json:"valid_json"`  // of JSON
	JSON       int64 `json:"json_wanted"` // answers that were to be JSON and came to their end
}

// Arm is what an arm was meant to be.
type Arm struct {
	Name string `json:"name"`
	What string `json:"what"` // its selector, in words
}

// Decision is a change of an experiment's course.
type Decision struct {
	At      time.Time    `json:"at"`
	By      string       `json:"by"` // guardrail, schedule, operator, …
	What    string       `json:"what"`
	Arm     string       `json:"arm,omitempty"`
	Weights []float64    `json:"weights"` // in force from then on
	Metric  string       `json:"metric,omitempty"`
	Figure  stats.Figure `json:"figure"` // NaN for none
	Bound   stats.Figure `json:"bound"`  // likewise
	Why     string       `json:"why"`
}

// Point is how an experiment stood at one time.
type Point struct {
	At      time.Time `json:"at"`
	Weights []float64 `json:"weights"` // by arm, as are all below
	Units   []int     `json:"units"`
	USD     []float64 `json:"usd"`
	Arms    [][]Trace `json:"arms"` // empty of the control
}

// Trace is one metric of an arm at one time.
type Trace struct {
	Metric stats.Metric `json:"metric"`
	Diff   stats.Figure `json:"diff"`
	Low    stats.Figure `json:"low"`
	High   stats.Figure `json:"high"`
	LogE   stats.Figure `json:"log_e"`
}

// points are kept by a History of two arms, fewer of more, but leastPoints: the more time has passed, the farther they are apart.
const (
	points      = 160
	leastPoints = 32
)

// History keeps how an experiment stood over time, in bounded memory: at most 160 points, evenly over the time since the first. As JSON
// it is less than half a megabyte. Its fields are for JSON. It is not safe for concurrent use.
type History struct {
	Every  time.Duration `json:"every"` // between two points
	Points []Point       `json:"points"`
}

// NewHistory keeps points that are at least every apart, and more once there are many.
func NewHistory(every time.Duration) *History { return &History{Every: max(time.Millisecond, every)} }

// Add remembers a verdict unless the last was remembered just before; force remembers it all the same, as for a decision.
func (h *History) Add(at time.Time, v *stats.Verdict, force bool) {
	if n := len(h.Points); n > 0 && !force && at.Sub(h.Points[n-1].At) < h.Every {
		return
	}
	if len(h.Points) >= max(leastPoints, points/max(1, len(v.Arms)-1)) {
		kept := h.Points[:0]
		for i := range h.Points {
			if i%2 == 0 {
				kept = append(kept, h.Points[i])
			}
		}
		clear(h.Points[len(kept):])
		h.Points = kept
		h.Every *= 2
	}
	p := Point{At: at}
	for i := range v.Arms {
		a := &v.Arms[i]
		p.Weights, p.Units, p.USD = append(p.Weights, a.Weight), append(p.Units, a.Units), append(p.USD, a.SpentUSD)
		traces := []Trace{}
		for k := range a.Estimates {
			e := &a.Estimates[k]
			traces = append(traces, Trace{e.Metric, short(e.Diff), short(e.Low), short(e.High), short(e.LogE)})
		}
		p.Arms = append(p.Arms, traces)
	}
	h.Points = append(h.Points, p)
}

// short is v with four digits, for it is drawn and not computed with.
func short(v stats.Figure) stats.Figure {
	f := float64(v)
	if f == 0 || math.IsNaN(f) || math.IsInf(f, 0) {
		return v
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(f))))
	if math.IsInf(scale, 0) {
		return 0
	}
	return stats.Figure(math.Round(f*scale) / scale)
}

// trace finds an arm's metric in a point.
func (p *Point) trace(arm int, m stats.Metric) (Trace, bool) {
	if arm >= len(p.Arms) {
		return Trace{}, false
	}
	i := slices.IndexFunc(p.Arms[arm], func(t Trace) bool { return t.Metric == m })
	if i < 0 {
		return Trace{}, false
	}
	return p.Arms[arm][i], true
}
