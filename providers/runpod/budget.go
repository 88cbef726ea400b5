package runpod

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// budget spreads the management calls over what RunPod's rate limit leaves. The limit is the account's, not ours: a half of
// what is left in each window stays with the account's other users, of whom other replicas may be some.
type budget struct {
	windows []window
	blocked time.Time // a 429 named this as the earliest next call
	tokens  float64   // calls about workers that may be made at once
	filled  time.Time
}

// window is one stretch of time that a limit is for, as RunPod's RateLimit header tells it.
type window struct {
	name  string
	left  float64 // calls; ours are taken off between two headers
	ends  time.Time
	quota float64
	len   time.Duration
}

const (
	ourShare     = 0.5
	workerBurst  = 10.0
	maxBudgetGap = 30 * time.Minute
)

func newBudget(now time.Time) *budget { return &budget{tokens: workerBurst, filled: now} }

// told takes in the headers of an answer. It returns false when they are there and cannot be read.
func (b *budget) told(h http.Header, now time.Time) bool {
	limits, policies := h.Get("RateLimit"), h.Get("RateLimit-Policy")
	if limits == "" {
		return true
	}
	var fresh []window
	for item := range strings.SplitSeq(limits, ",") {
		name, param := parameters(item)
		left, okLeft := param["r"]
		ends, okEnds := param["t"]
		if !okLeft || !okEnds {
			return false
		}
		fresh = append(fresh, window{name: name, left: left, ends: now.Add(seconds(ends))})
	}
	for item := range strings.SplitSeq(policies, ",") {
		name, param := parameters(item)
		for i := range fresh {
			if fresh[i].name == name {
				fresh[i].quota, fresh[i].len = param["q"], seconds(param["w"])
			}
		}
	}
	b.windows = fresh
	return true
}

// parameters reads `"minute";r=0;t=12` (IETF draft ratelimit-headers, of which RunPod's documentation speaks).
func parameters(item string) (name string, param map[string]float64) {
	param = map[string]float64{}
	for i, part := range strings.Split(item, ";") {
		part = strings.TrimSpace(part)
		if i == 0 {
			name = strings.Trim(part, `"`)
			continue
		}
		key, value, _ := strings.Cut(part, "=")
		if v, err := strconv.ParseFloat(value, 64); err == nil && v >= 0 && v < 1e9 {
			param[key] = v
		}
	}
	return name, param
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// spend takes a call off.
func (b *budget) spend(now time.Time) {
	b.roll(now)
	for i := range b.windows {
		b.windows[i].left--
	}
}

// roll begins the windows anew that have ended.
func (b *budget) roll(now time.Time) {
	for i := range b.windows {
		w := &b.windows[i]
		if w.len > 0 && !now.Before(w.ends) {
			w.left, w.ends = w.quota, now.Add(w.len)
		}
	}
}

// gap is the time between two calls at which our share lasts to the end of every window.
func (b *budget) gap(now time.Time) time.Duration {
	b.roll(now)
	var gap time.Duration
	for _, w := range b.windows {
		rest := w.ends.Sub(now)
		if rest <= 0 {
			continue // of unknown length, and over
		}
		if ours := w.left * ourShare; ours >= 1 {
			rest = seconds(rest.Seconds() / ours)
		}
		gap = max(gap, rest)
	}
	return min(gap, maxBudgetGap)
}

// next is when a poll of so many calls may follow the last one. It leaves a half of our share for the calls about workers.
func (b *budget) next(last, now time.Time, calls int, poll time.Duration) time.Time {
	at := last.Add(max(poll, time.Duration(2*calls)*b.gap(now)))
	if at.Before(b.blocked) {
		return b.blocked
	}
	return at
}

// urgent is when a call that cannot wait for its turn may be made, not before at: while something of our share is left.
func (b *budget) urgent(at, now time.Time) time.Time {
	b.roll(now)
	for _, w := range b.windows {
		if w.left*ourShare < 1 && w.ends.After(at) {
			at = w.ends
		}
	}
	if at.Before(b.blocked) {
		return b.blocked
	}
	return at
}

// take lets a call about workers through, or says how long it has to wait.
func (b *budget) take(now time.Time) (wait time.Duration, ok bool) {
	if d := b.urgent(now, now).Sub(now); d > 0 {
		return d, false
	}
	per := 2 * b.gap(now).Seconds()
	if per > 0 {
		b.tokens = min(workerBurst, b.tokens+now.Sub(b.filled).Seconds()/per)
	} else {
		b.tokens = workerBurst
	}
	b.filled = now
	if b.tokens < 1 {
		return seconds((1 - b.tokens) * per), false
	}
	b.tokens--
	return 0, true
}

// refused notes a 429.
func (b *budget) refused(now time.Time, after time.Duration) {
	if after <= 0 {
		after = time.Minute // the shortest window
	}
	if at := now.Add(min(after, maxBudgetGap)); at.After(b.blocked) {
		b.blocked = at
	}
	b.tokens = 0
}
