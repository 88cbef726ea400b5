package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"headrace/gateway/ledger"
	"headrace/providers/fakecloud/script"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// strike is an instance that was outbid, until it takes requests again.
type strike struct {
	at    time.Time
	why   string // "is outbid: somebody pays …"
	url   string // where it was
	left  bool   // the gateway has noticed
	again bool   // the cloud has given it its GPU back
}

// cuts are the answers of one host that broke off, told of together.
type cuts struct {
	n  int
	at time.Time // of the last
}

// heard takes the news of the market.
func (v *view) heard(n script.News) {
	if n.What != "outbid" {
		return
	}
	url := ""
	if h := v.hostNow(endpoint.ID(n.ID)); h != nil {
		url = h.URL
	}
	why, _, _ := strings.Cut(n.Text, ";")
	v.mu.Lock()
	s := v.struck[endpoint.ID(n.ID)]
	twice := s != nil && !n.Undo
	switch {
	case twice: // outbid before it served again
		s.again = false
	case n.Undo && s != nil:
		s.again = true
	case !n.Undo:
		v.struck[endpoint.ID(n.ID)] = &strike{at: time.Now(), why: why, url: url}
	}
	if !n.Undo {
		v.strikes++
	}
	v.mu.Unlock()
	if twice {
		v.tell("%s %s, before it served again", n.ID, why)
	}
}

func (v *view) hostNow(id endpoint.ID) *router.HostView {
	hosts := v.app.router.Hosts()
	if i := slices.IndexFunc(hosts, func(h router.HostView) bool { return h.ID == id }); i >= 0 {
		return &hosts[i]
	}
	return nil
}

const (
	watchEvery = 2 * time.Millisecond
	cutsWithin = 50 * time.Millisecond // answers that break off that close to each other are told of together
)

// watch tells when the gateway takes a host out of rotation and back in, until ctx is done.
func (v *view) watch(ctx context.Context) {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		v.mu.Lock()
		idle := len(v.struck) == 0 && len(v.cut) == 0
		v.mu.Unlock()
		if idle {
			continue
		}
		for _, line := range v.noticed(time.Now(), v.app.router.Hosts()) {
			v.tell("%s", line)
		}
	}
}

// noticed returns what is to be told of hosts at a time.
func (v *view) noticed(now time.Time, hosts []router.HostView) (lines []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := range hosts {
		h := &hosts[i]
		s := v.struck[h.ID]
		if s == nil {
			continue
		}
		in, after := rotates(h), now.Sub(s.at)
		switch {
		case !in && !s.left:
			s.left = true
			v.leaving = append(v.leaving, after)
			lines = append(lines, fmt.Sprintf("%s %s; left rotation after %s (%s)", h.ID, s.why, brief(after), howNoticed(h)))
		case in && s.again && (s.left || h.URL != s.url):
			delete(v.struck, h.ID)
			v.returning = append(v.returning, after)
			where := "at the same port"
			if h.URL != s.url {
				where = "at another port"
			}
			lines = append(lines, fmt.Sprintf("%s is back %s after %s, with its history (%s)", h.ID, where, brief(after), count(h.Requests, "request")))
		}
	}
	for id, c := range v.cut {
		if now.Sub(c.at) >= cutsWithin {
			lines = append(lines, fmt.Sprintf("%s %s cut in mid-sentence on %s: error event, no clean end", count(int64(c.n), "answer"), were(c.n), id))
			delete(v.cut, id)
		}
	}
	return lines
}

// rotates tells whether the router may pick the host; one that is being tested gets no caller's request.
func rotates(h *router.HostView) bool { return h.State == "ready" && h.Breaker == "closed" }

// howNoticed says in plain words what took a host out of rotation.
func howNoticed(h *router.HostView) string {
	switch {
	case h.State == "preempted" || h.State == "draining":
		return "Vast.ai said so"
	case h.State == "starting":
		return "it no longer answered"
	}
	return "its answers failed"
}

// settled counts one request of the gateway.
func (v *view) settled(r *ledger.Record) {
	v.mu.Lock()
	v.requests++
	v.tokens += max(0, r.Output)
	v.usd += r.USD
	v.spent[r.Endpoint] += r.USD
	wentOn := r.Class == outcome.Success && r.Resumes > 0
	moved := r.Class == outcome.Success && !wentOn && r.Tries > 1 && r.Attempts[0].Endpoint != r.Endpoint && !r.Attempts[0].Hedge
	failed := false
	switch r.Class {
	case outcome.Success:
		v.answered++
		switch {
		case wentOn:
			v.wentOn++
			v.pauses = append(v.pauses, r.SeamGap)
		case moved:
			v.moved++
		}
	case outcome.Truncated, outcome.Stalled, outcome.Moved:
		v.broken++
		c := v.cut[r.Endpoint]
		v.cut[r.Endpoint] = cuts{c.n + 1, time.Now()}
	case outcome.ClientGone:
		v.gone++
	case outcome.CallerFault: // no fault of the hosts
		v.refused++
	default:
		v.failed++
		failed = true
	}
	v.mu.Unlock()
	var last ledger.Attempt
	if n := len(r.Attempts); n > 0 {
		last = r.Attempts[n-1]
	}
	switch {
	case wentOn:
		hosts, tokens := route(r)
		v.tell("an answer moved from %s in mid-sentence, after %s and with a pause of %s; its caller saw one stream", hosts, count(tokens, "token"), brief(r.SeamGap))
	case moved:
		v.tell("a request moved from %s to %s before its first token (%s); its caller saw nothing", r.Attempts[0].Endpoint, r.Endpoint, plainly(r.Attempts[0].Class))
	case r.Class == outcome.Success && last.Told().Delayed >= 500*time.Millisecond:
		v.tell("a request waited %s for a worker of %s to start; its first token came after %s", brief(last.Told().Delayed), r.Endpoint, brief(r.TTFT))
	case r.Class == outcome.CallerFault:
		v.tell("a request was refused: %s", r.Code)
	case failed && r.Endpoint == "":
		v.tell("a request found no host: %s", r.Code)
	case failed:
		v.tell("a request failed on %s: %s", r.Endpoint, plainly(r.Class))
	}
}

// route is where an answer went, from host to host, and after how many tokens it left the last but one.
func route(r *ledger.Record) (hosts string, tokens int64) {
	var stops []string
	for i := range r.Attempts[:max(0, min(r.Tries-1, len(r.Attempts)))] {
		a := &r.Attempts[i]
		if a.Output == 0 { // it lost the answer before it told anything of it
			continue
		}
		stops = append(stops, string(a.Endpoint))
		tokens += a.Output
	}
	return strings.Join(append(stops, string(r.Endpoint)), " to "), tokens
}

// plainly is a class of outcomes for people.
func plainly(c outcome.Class) string {
	switch c {
	case outcome.DialFailed:
		return "nobody listened there"
	case outcome.UpstreamFault:
		return "it failed"
	case outcome.Severed:
		return "it broke the connection"
	case outcome.Stalled:
		return "it fell silent in mid-stream"
	case outcome.Moved:
		return "it was taken away in mid-stream"
	case outcome.Opaque:
		return "it failed without saying why"
	case outcome.FirstByteTimeout:
		return "it stayed silent"
	case outcome.Throttled:
		return "it was full"
	case outcome.NotReady:
		return "nobody was up there yet"
	case outcome.UpstreamDenied:
		return "it refused the key"
	case outcome.Outrun:
		return "another one was faster"
	case outcome.Success, outcome.CallerFault, outcome.Truncated, outcome.ClientGone, outcome.Unserved:
	}
	return c.String()
}

// brief is a duration in three digits or so.
func brief(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.3g s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	default:
		return fmt.Sprintf("%.1f h", d.Hours())
	}
}

func count(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func were(n int) string {
	if n == 1 {
		return "was"
	}
	return "were"
}

func median(ds []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(ds))
	return s[len(s)/2]
}
