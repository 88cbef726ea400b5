package runpod

import (
	"net/http"
	"testing"
	"time"
)

func limits(limit, policy string) http.Header {
	return http.Header{http.CanonicalHeaderKey("RateLimit"): {limit}, http.CanonicalHeaderKey("RateLimit-Policy"): {policy}}
}

const policy = `"minute";q=60;w=60, "hour";q=3000;w=3600, "day";q=50000;w=86400`

func TestBudget(t *testing.T) {
	t0 := time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		limit string
		next  time.Duration // one call, a minute between polls
	}{
		"nothing told":     {``, time.Minute},
		"plenty":           {`"minute";r=59;t=60, "hour";r=2999;t=3600, "day";r=49999;t=86400`, time.Minute},
		"minute used up":   {`"minute";r=0;t=12, "hour";r=2800;t=1812, "day";r=49500;t=45012`, time.Minute},
		"hour nearly done": {`"minute";r=59;t=60, "hour";r=20;t=3000`, 10 * time.Minute}, // 2 x 3000 s / 10
		"day used up":      {`"minute";r=59;t=60, "day";r=1;t=40000`, 2 * maxBudgetGap},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBudget(t0)
			if !b.told(limits(tc.limit, policy), t0) {
				t.Fatal("headers cannot be read")
			}
			if got := b.next(t0, t0, 1, time.Minute).Sub(t0); got != tc.next {
				t.Errorf("next poll after %v, want %v", got, tc.next)
			}
		})
	}
}

func TestBudgetOddHeaders(t *testing.T) {
	t0 := time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)
	for _, odd := range []string{`"minute"`, `minute;r=x;t=1`, `"minute";r=5`, `,`, `100`, `"minute";r=-1;t=5`, `"minute";r=NaN;t=5`} {
		b := newBudget(t0)
		if b.told(limits(odd, ``), t0) {
			t.Errorf("%q was understood", odd)
		}
		if got := b.gap(t0); got != 0 {
			t.Errorf("after %q: gap %v", odd, got)
		}
	}
}

func TestBudgetUrgentAndRefused(t *testing.T) {
	t0 := time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)
	b := newBudget(t0)
	b.told(limits(`"minute";r=3;t=30`, policy), t0)
	if got := b.urgent(t0.Add(time.Second), t0); got != t0.Add(time.Second) {
		t.Errorf("urgent call with 3 left: at %v", got.Sub(t0))
	}
	b.spend(t0)
	b.spend(t0)
	if got := b.urgent(t0.Add(time.Second), t0); got != t0.Add(30*time.Second) {
		t.Errorf("urgent call with 1 left, a half of which is ours: after %v, want 30s", got.Sub(t0))
	}
	if at := t0.Add(31 * time.Second); b.urgent(at, at) != at {
		t.Error("a new window has not begun")
	}
	b.refused(t0, 0)
	if got := b.urgent(t0, t0); got != t0.Add(time.Minute) {
		t.Errorf("after a 429 without Retry-After: %v, want a minute", got.Sub(t0))
	}
	b.refused(t0, 90*time.Second)
	if got := b.next(t0, t0, 1, time.Second); got != t0.Add(90*time.Second) {
		t.Errorf("after a 429: %v, want 90s", got.Sub(t0))
	}
	if _, ok := b.take(t0.Add(time.Minute)); ok {
		t.Error("a call about workers went out during the wait of a 429")
	}
	b.refused(t0, 12*24*time.Hour)
	if got := b.next(t0, t0, 1, time.Second); got != t0.Add(maxBudgetGap) {
		t.Errorf("after a 429 that speaks of 12 days: %v, want %v", got.Sub(t0), maxBudgetGap)
	}
}

// Whatever the header says, calls about workers and polls together stay below what is left.
func TestBudgetIsNeverOverdrawn(t *testing.T) {
	t0 := time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)
	for _, left := range []float64{2, 10, 60, 176} {
		b := newBudget(t0)
		b.windows = []window{{name: "minute", left: left, ends: t0.Add(time.Minute), quota: left, len: time.Minute}}
		b.tokens = workerBurst
		spent := 0.0
		poll := b.next(t0, t0, 1, time.Second)
		for now := t0; now.Before(t0.Add(time.Minute)); now = now.Add(50 * time.Millisecond) {
			if !now.Before(poll) {
				b.spend(now)
				spent++
				poll = b.next(now, now, 1, time.Second)
			}
			for {
				if _, ok := b.take(now); !ok {
					break
				}
				b.spend(now)
				spent++
			}
		}
		if spent > max(left, 1) {
			t.Errorf("%g calls were left in the minute, and %g were made", left, spent)
		}
	}
}
