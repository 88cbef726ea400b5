package fakevast

import (
	"cmp"
	"fmt"
	"net/http"
	"time"
)

// RateBody is how a 429 looks; the service has several.
type RateBody uint8

// Bodies of a 429.
const (
	RateAny       RateBody = iota // the others in turn
	RateText                      // plain text
	RateThreshold                 // plain text with the interval
	RateDetail                    // {"detail":…}
	RateCode                      // {"success":false,"error":"rate_limit_exceeded",…}
	numRateBodies
)

// interval is the least time between two calls; penalty the time after one that came too soon, if it is longer.
type interval struct{ least, penalty time.Duration }

// intervals are those of the OpenAPI files.
var intervals = map[string]interval{
	"GET /api/v1/instances/":                {least: time.Second},
	"GET /api/v0/instances/{id}/":           {least: 2 * time.Second},
	"PUT /api/v0/instances/{id}/":           {least: time.Second},
	"DELETE /api/v0/instances/{id}/":        {least: 3 * time.Second},
	"PUT /api/v0/instances/reboot/{id}/":    {least: time.Second},
	"PUT /api/v0/instances/recycle/{id}/":   {least: time.Second},
	"PUT /api/v0/asks/{id}/":                {least: 4500 * time.Millisecond, penalty: 12 * time.Second},
	"PUT /api/v0/instances/bid_price/{id}/": {least: 5500 * time.Millisecond},
	"GET /api/v0/endptjobs/":                {least: 3 * time.Second},
	"GET /api/v0/charges/":                  {least: time.Second},
	"GET /api/v0/metrics/gpu/current/":      {least: 3 * time.Second},
}

// bundlesPerMinute is the limit of searches, for each address.
const bundlesPerMinute = 10

// limiter keeps the distances between calls. Cloud.mu guards it.
type limiter struct {
	next    map[string]time.Time // by call, identity and address
	bundles map[string][]time.Time
	count   int
}

// early tells whether a call comes too soon, and what distance is asked for.
func (c *Cloud) early(call, key, ip string, now time.Time) (time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.cfg.RateLimits {
		return 0, false
	}
	scale := func(d time.Duration) time.Duration { return time.Duration(float64(d) / c.cfg.RateScale) }
	if call == "POST /api/v0/bundles/" {
		if c.limits.bundles == nil {
			c.limits.bundles = map[string][]time.Time{}
		}
		last := c.limits.bundles[ip]
		for len(last) > 0 && now.Sub(last[0]) > scale(time.Minute) {
			last = last[1:]
		}
		if len(last) >= bundlesPerMinute {
			return 6 * time.Second, true
		}
		c.limits.bundles[ip] = append(last, now)
		return 0, false
	}
	iv, ok := intervals[call]
	if !ok {
		return 0, false
	}
	who := call + " " + key + " " + ip
	if now.Before(c.limits.next[who]) {
		if iv.penalty > 0 {
			c.limits.next[who] = now.Add(scale(iv.penalty))
		}
		return cmp.Or(iv.penalty, iv.least), true
	}
	c.limits.next[who] = now.Add(scale(iv.least))
	return 0, false
}

// tooSoon answers 429 in one of the forms there are, without Retry-After.
func (c *Cloud) tooSoon(w http.ResponseWriter, distance time.Duration) {
	c.mu.Lock()
	form := c.cfg.RateBody
	if form == RateAny {
		form = RateText + RateBody(c.limits.count%int(numRateBodies-RateText))
		c.limits.count++
	}
	c.mu.Unlock()
	threshold := fmt.Sprintf("%.1f", distance.Seconds())
	text := "API requests too frequent"
	switch form {
	case RateThreshold:
		text += ": endpoint threshold=" + threshold
	case RateDetail:
		writeJSON(w, http.StatusTooManyRequests, map[string]any{"detail": text + " endpoint threshold=" + threshold})
		return
	case RateCode:
		writeError(w, http.StatusTooManyRequests, "rate_limit_exceeded", text)
		return
	default:
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusTooManyRequests)
	_, _ = w.Write([]byte(text))
}
