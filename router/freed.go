package router

import (
	"math"
	"time"

	"headrace/router/endpoint"
)

// OnFreed has f called whenever an endpoint may take a request that it did not take before: a lease ended, a first token came, it was
// found alive or able to go on with others' answers, or let in, or there is another one. The id is "" where it may be any. What time alone brings, such as the end of a
// cool-down, is not told: UnavailableError.Soon says when that is. f runs in whatever goroutine it came about, with no lock of
// the Router held; it must be quick and must not block. There is one f; nil for none.
func (r *Router) OnFreed(f func(id endpoint.ID)) {
	if f == nil {
		r.onFreed.Store(nil)
		return
	}
	r.onFreed.Store(&f)
}

func (r *Router) freed(id endpoint.ID) {
	if f := r.onFreed.Load(); f != nil {
		(*f)(id)
	}
}

// Offers returns the models that the endpoint's requests are for. Nobody changes the slice.
func (s *Snapshot) Offers(id endpoint.ID) []string {
	if c := s.byID[id]; c != nil {
		return c.names
	}
	return nil
}

// Outlook returns what q is promised, every field filled in, and about how many tokens its prompt and so many answers have together; 0 is one. Of an
// unknown model it returns the default and what q says.
func (r *Router) Outlook(q *Request, answers int64) (promise SLO, tokens float64) {
	output, prompt := priorOutput, float64(q.PromptTokens)
	promise = q.SLO
	if m := r.snap.Load().pool(q.Model); m != nil {
		promise = promise.or(m.slo)
		output = m.stats.output.get(priorOutput)
	}
	if q.MaxTokens > 0 {
		output = min(output, float64(q.MaxTokens))
	}
	if prompt <= 0 {
		prompt = float64(q.BodyBytes) / 4
	}
	if q.Tokenless {
		output = 0
	}
	return promise.or(DefaultSLO()), max(1, prompt+output*float64(max(1, answers)))
}

// earlier0 is the earlier of two times at which somebody may take a request, in seconds; 0 is never.
func earlier0(a, b float64) float64 {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// startsWithin is about how long a host that is starting takes, in seconds; 0 for one that is not.
func startsWithin(ep *endpoint.Endpoint) float64 {
	if ep.State != endpoint.Starting {
		return 0
	}
	if d := ep.Price.ColdStart.Seconds(); d > 0 {
		return d * startingShare
	}
	return coldStart * startingShare
}

// turnover is about how long a host takes until it is done with one of its requests, in seconds.
func (s *scratch) turnover(h *host) float64 {
	h.pub.load(&s.state, s.at)
	n := math.Max(1, h.running(s.at))
	itl, _ := s.state.ITL(n)
	return s.output * itl / n
}

// crowded is about how long all that are full take until one of them is done with a request, in seconds; 0 where nobody is
// full.
func (s *scratch) crowded() float64 {
	rate, start := 0.0, 0.0
	for i := range s.views {
		v := &s.views[i]
		switch {
		case v.verdict >= limited:
		case v.coldSeconds > 0:
			start = earlier0(start, v.coldSeconds)
		case v.itl > 0:
			rate += max(1, v.inFlight) / (s.output * v.itl)
		}
	}
	if rate > 0 {
		return earlier0(start, 1/rate)
	}
	return start
}

// within is seconds as a Duration that is above 0 where they are.
func within(s float64) time.Duration {
	if !(s > 0) { //nolint:staticcheck // NaN as well
		return 0
	}
	return max(1, seconds(min(s, maxOverdue)))
}
