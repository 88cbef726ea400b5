package sim

import "math/rand/v2"

// Call is a request of a trace.
type Call struct {
	At      float64 // seconds since the trace's first
	Prompt  int     // tokens
	Output  int     // tokens
	Session string  // "" for one of its own
}

// Spot is how many instances of a kind somebody held over time, one number every Gap seconds.
type Spot struct {
	Gap  float64
	Held []int
}

// replay hands out a trace's calls, again and again.
type replay struct {
	calls    []Call
	rand     *rand.Rand
	i        int
	from     float64 // when the present round began
	span     float64
	count    int
	sessions map[string]*conversation
}

func newReplay(calls []Call, seed uint64) *replay {
	r := &replay{calls: calls, rand: dice(seed, "load", 0), sessions: map[string]*conversation{}}
	last := calls[len(calls)-1].At
	r.span = last + last/float64(max(1, len(calls)-1)) // one mean gap after the last
	return r
}

func (r *replay) next() (call, bool) {
	if r.i == len(r.calls) {
		if r.span <= 0 {
			return call{}, false
		}
		r.i, r.from = 0, r.from+r.span
		clear(r.sessions)
	}
	t := &r.calls[r.i]
	r.i++
	c := call{at: r.from + t.At, prompt: max(1, t.Prompt), output: max(1, t.Output), resumable: r.rand.Float64() < resumables, door: r.rand.Float64()}
	v := &conversation{}
	if t.Session != "" {
		if o := r.sessions[t.Session]; o != nil {
			v = o
		} else {
			r.sessions[t.Session] = v
		}
	}
	if v.session == 0 {
		r.count++
		v.session = r.count
	}
	c.session = v.session
	c.shared = min(v.tokens, c.prompt)
	v.tokens = c.prompt + c.output
	from := max(0, len(v.ends)-keptTurns)
	v.ends = append(v.ends[from:len(v.ends):len(v.ends)], c.prompt)
	c.ends = v.ends
	return c, true
}
