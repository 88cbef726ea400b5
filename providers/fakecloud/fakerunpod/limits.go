package fakerunpod

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// allowance is what one operation of an endpoint may be used: requests in 10 s, and at once; 0 for no such limit.
type allowance struct{ per10s, atOnce int }

// allowances are documented for August 2026.
var allowances = map[string]allowance{
	"runsync": {2000, 400}, "status": {2000, 400}, "status-sync": {2000, 400}, "stream": {2000, 400}, "openai": {2000, 400},
	"run": {1000, 200}, "cancel": {100, 20}, "purge-queue": {2, 0}, "requests": {10, 2},
}

const window = 10 * time.Second

// limiter counts the requests of one endpoint.
type limiter struct {
	mu  sync.Mutex // guards all below
	ops map[string]*usage
}

type usage struct {
	times []time.Time // of the last 10 s
	now   int
}

// begin says whether a request may come in; done is to be called at its end.
func (l *limiter) begin(op string, r RateLimits, running int) (done func(), ok bool) {
	a := allowances[op]
	if r.Off || a.per10s == 0 {
		return func() {}, true
	}
	rate := max(scaled(a.per10s, r.Scale), running*r.PerWorker)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ops == nil {
		l.ops = map[string]*usage{}
	}
	u := l.ops[op]
	if u == nil {
		u = &usage{}
		l.ops[op] = u
	}
	now := time.Now()
	i := slices.IndexFunc(u.times, func(t time.Time) bool { return now.Sub(t) < window })
	if i < 0 {
		i = len(u.times)
	}
	u.times = u.times[i:]
	if len(u.times) >= rate || a.atOnce > 0 && u.now >= scaled(a.atOnce, r.Scale) {
		return nil, false
	}
	u.times = append(u.times, now)
	u.now++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		u.now--
	}, true
}

func scaled(n int, by float64) int { return max(1, int(math.Round(float64(n)*by))) }

// tooMany is a 429 of the data plane.
func (c *Cloud) tooMany(w http.ResponseWriter, retryAfter time.Duration) {
	if retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(retryAfter.Seconds()))))
	}
	if c.cfg.RateLimits.Plain {
		writeBody(w, http.StatusTooManyRequests, "text/plain; charset=utf-8", []byte("too many requests\n"))
		return
	}
	envelope(w, http.StatusTooManyRequests, "too many requests")
}

// quota counts the requests of the management API in windows of real time.
type quota struct {
	mu   sync.Mutex // guards all below
	used [3]int
	from [3]time.Time
}

var quotaNames = [3]string{"minute", "hour", "day"}

var quotaWindows = [3]time.Duration{time.Minute, time.Hour, 24 * time.Hour}

// take counts a request and writes the headers that tell how many are left. It answers 429 itself when none is.
func (q *quota) take(w http.ResponseWriter, m Management) bool {
	most := [3]int{m.PerMinute, m.PerHour, m.PerDay}
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	over, wait := -1, 0
	var left, policy string
	for i, d := range quotaWindows {
		if now.Sub(q.from[i]) >= d {
			q.from[i], q.used[i] = now, 0
		}
		t := int(math.Ceil(q.from[i].Add(d).Sub(now).Seconds()))
		if q.used[i] >= most[i] {
			over, wait = i, max(wait, t)
		}
		if i > 0 {
			left, policy = left+", ", policy+", "
		}
		left += fmt.Sprintf("%q;r=%d;t=%d", quotaNames[i], max(0, most[i]-q.used[i]-1), t)
		policy += fmt.Sprintf("%q;q=%d;w=%d", quotaNames[i], most[i], int(d.Seconds()))
	}
	w.Header()["RateLimit"] = []string{left}
	w.Header()["RateLimit-Policy"] = []string{policy}
	if over >= 0 {
		w.Header().Set("Retry-After", strconv.Itoa(wait))
		problem(w, http.StatusTooManyRequests, "rate limit exceeded for the "+quotaNames[over]+" window")
		return false
	}
	for i := range q.used {
		q.used[i]++
	}
	return true
}
