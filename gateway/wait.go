package gateway

import (
	"bytes"
	"errors"
	"hash/maphash"
	"math"
	"math/bits"
	"net"
	"net/netip"
	"strconv"
	"time"

	"headrace/gateway/admission/queue"
	"headrace/gateway/openai"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// Queue says who waits where hosts, or the gateway, have no room.
type Queue struct {
	Size            int           // requests that wait at once; 0 lets none wait
	MaxBytes        int64         // of bodies that those who wait hold; 0 is no such limit
	MaxWait         time.Duration // from acceptance on, whoever it is
	InteractiveWait float64       // share of what is left of the promised time to the first token, where somebody watches; in [0,1]
	BatchShare      float64       // of what is served to those who wait while both kinds do, for batch work; in (0,1)
	BatchSpare      float64       // share of what keeps the SLO at a host that batch work leaves free; in [0,1)
}

// looks is how often the first who waits is called though nothing is known to have changed.
const looks = 100 * time.Millisecond

// standing is what an exchange has to do with the waiting room.
type standing struct {
	priority queue.Priority
	atDoor   bool  // it came when the gateway had no room
	inside   bool  // it has a place of limits.max_in_flight
	paused   bool  // it has been outside the room since the last turn, for a comment to its caller
	seat     *seat // nil while it does not wait
}

// seat is a request's place in the room.
type seat struct {
	*queue.Waiter
	full *router.UnavailableError // what it waits for the end of; nil where it came behind others
}

// enter takes a place in the gateway, or notes that the request has to wait for one.
func (x *exchange) enter() *openai.Error {
	s := x.s
	if x.grant.Batch() {
		x.priority = queue.Batch
	}
	switch {
	case s.draining.Load():
		x.ctx.SetConnectionClose() // the server may not know yet that it ends
		return errDraining()
	case !s.room.Behind(queue.Door, 0, x.priority) && s.takePlace():
		x.inside = true
	case x.set.Queue.Size <= 0:
		return errBusy()
	default:
		x.atDoor = true
	}
	return nil
}

// takePlace takes one of limits.max_in_flight.
func (s *Server) takePlace() bool {
	most := s.set.Load().MaxInFlight
	for {
		n := s.inside.Load()
		if n >= most {
			return false
		}
		if s.inside.CompareAndSwap(n, n+1) { // never above, or somebody might be refused for one that is refused as well
			return true
		}
	}
}

// goOut gives back what the exchange has of the room and the gateway.
func (x *exchange) goOut() {
	if x.seat != nil {
		x.inside = x.s.room.Leave(x.seat.Waiter, queue.Gone) || x.inside
		x.seat = nil
	}
	if x.inside {
		x.inside = false
		x.s.inside.Add(-1)
		x.s.room.Freed(queue.Door)
	}
}

// freed stirs those who wait for what the endpoint serves, and those who are held.
func (s *Server) freed(id endpoint.ID) {
	if s.room.Waiting() == 0 && s.held.n.Load() == 0 {
		return
	}
	if id == "" {
		s.room.Freed()
		s.held.freed()
		return
	}
	if names := s.router.Snapshot().Offers(id); len(names) > 0 {
		s.room.Freed(names...)
		s.held.freed(names...)
	}
}

// Waiting tells how many requests wait for room.
func (s *Server) Waiting() []queue.Length { return s.room.Lengths() }

// queues tells whether the request has to wait for its turn before it may ask for a host.
func (x *exchange) queues() bool {
	switch {
	case x.seat != nil, x.atDoor:
		return true
	case x.s.room.Waiting() == 0, x.set.Queue.Size <= 0, x.pinned != "", x.last != nil, x.ahead != nil, x.resumed():
		return false
	}
	return x.s.room.Behind(x.model, x.kind(), x.priority)
}

// turn waits until it is the request's turn to ask for a host. false when that has not come by until, and when it never will.
func (x *exchange) turn(until time.Time) bool {
	defer func() { x.began = time.Now() }()
	if !x.paused {
		read := time.Since(x.began)
		x.own += read
		x.rec.Reading += read
	}
	x.paused = false
	for {
		if x.seat == nil {
			pool := queue.Door
			if !x.atDoor {
				pool = x.model
			}
			if !x.stand(pool, nil) {
				return false
			}
		}
		switch x.s.room.Wait(x.seat.Waiter, until) {
		case queue.Turn:
			if e := x.lockedOut(); e != nil {
				x.leaveFor(e)
				return false
			}
			if !x.atDoor {
				return true
			}
			x.atDoor, x.inside = false, true
			if x.sit(); !x.queues() {
				return true
			}
		case queue.Pause:
			x.paused = true
			return false
		case queue.Refused:
			why, retry := x.seat.Refusal()
			full := x.seat.full
			x.sit()
			x.turnAway(why, retry, full)
			return false
		}
	}
}

// lockedOut tells whether the request's key would not let it in any more: one that was revoked, has expired or was switched off while it
// waited ends its waiting too.
func (x *exchange) lockedOut() *openai.Error {
	if x.grant == nil {
		return nil
	}
	_, e := x.s.enter(x.ctx, time.Now())
	return e
}

// leaveFor gives up the request's turn, and answers e.
func (x *exchange) leaveFor(e *openai.Error) {
	if x.s.room.Leave(x.seat.Waiter, queue.Gone) {
		x.inside = true
	}
	x.atDoor = false
	x.sit()
	x.fail(e)
}

// stand takes a place in the room, for the end of what is full; false when there is none for the request, who has failed then.
func (x *exchange) stand(pool string, full *router.UnavailableError) bool {
	slo, tokens := x.s.router.Outlook(&x.ask, x.choices())
	a := queue.Ask{Pool: pool, Priority: x.priority, Key: x.rec.Key, Weight: x.grant.Weight(), Tokens: tokens, Bytes: x.ask.BodyBytes, By: x.waitsUntil(time.Now(), slo.TTFT)}
	if a.Key == "" {
		a.From = netOf(x.ctx.RemoteIP())
	}
	if full != nil {
		a.Soon = full.Soon
	}
	if pool != queue.Door {
		a.Kind = x.kind()
	}
	w, why, retry := x.s.room.Enter(&a)
	if w == nil {
		x.turnAway(why, retry, full)
		return false
	}
	x.seat = &seat{w, full}
	x.watch.waiter.Store(w)
	if x.watch.Aborted() { // the caller left before he could be seen to wait
		w.Cancel()
	}
	return true
}

// netOf is whose an address is: of IPv6 a whole net is one caller's.
func netOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	if a = a.Unmap(); a.Is6() {
		p, _ := a.Prefix(64) // of an IPv6 address there is one
		return p.Addr()
	}
	return a
}

// waitsUntil is how long the request may wait for its turn.
func (x *exchange) waitsUntil(now time.Time, ttft time.Duration) time.Time {
	q, came := &x.set.Queue, x.rec.At
	by := earlier(came.Add(q.MaxWait), x.totalBy)
	switch {
	case x.saysHowLong():
		by = earlier(by, came.Add(x.maxWait()))
	case x.priority == queue.Interactive:
		by = earlier(by, now.Add(time.Duration(q.InteractiveWait*float64(came.Add(ttft).Sub(now)))))
	}
	return by
}

// saysHowLong tells whether the caller has said how long he is content to wait.
func (x *exchange) saysHowLong() bool {
	return len(x.ctx.Request.Header.Peek(headerPrefix+wantsMaxWait)) > 0
}

// maxWait is what he has said, from acceptance on. It was checked before.
func (x *exchange) maxWait() time.Duration {
	d, _ := parseWait(x.ctx.Request.Header.Peek(headerPrefix + wantsMaxWait))
	return d
}

// parseWait reads a duration, or a number of seconds.
func parseWait(v []byte) (d time.Duration, ok bool) {
	text := string(bytes.TrimSpace(v))
	if s, err := strconv.ParseFloat(text, 64); err == nil {
		return time.Duration(s * float64(time.Second)), s >= 0 && s <= mostWait.Seconds()
	}
	d, err := time.ParseDuration(text)
	return d, err == nil && d >= 0 && d <= mostWait
}

const mostWait = 24 * time.Hour

// sit ends the exchange's waiting, which is the room's no more.
func (x *exchange) sit() {
	x.rec.Queued += time.Since(x.seat.Came())
	x.watch.waiter.Store(nil)
	x.seat = nil
}

// found says that a host was found for the request, if it had waited for one.
func (x *exchange) found() {
	if x.seat != nil {
		_, tokens := x.s.router.Outlook(&x.ask, x.choices())
		x.s.room.Served(x.seat.Waiter, tokens)
		x.sit()
	}
}

// standsBy has the request wait on, or begin to, for which there was no host as err says. false when it does not wait; its place in the
// room, if it had one, is gone then.
func (x *exchange) standsBy(err error) bool {
	ue, _ := errors.AsType[*router.UnavailableError](err)
	waits := x.set.Queue.Size > 0 && ue != nil && (ue.Cause == router.Throttled || ue.Cause == router.Failing || ue.Cause == router.NoCapacity)
	if waits && x.last != nil { // of an attempt that failed for want of room the rest can wait as well
		waits = x.last.Class == outcome.Throttled || x.last.Class == outcome.NotReady
	}
	switch {
	case waits && x.seat != nil:
		x.seat.full = ue
		x.s.room.Stay(x.seat.Waiter, ue.Soon)
		return true
	case x.seat != nil:
		x.s.room.Leave(x.seat.Waiter, queue.Gone)
		x.sit()
		return false
	case !waits, ue.Soon == 0 && x.priority == queue.Interactive && !x.saysHowLong(): // nobody is expected
		return false
	}
	x.stand(x.model, ue)
	return true
}

// turnAway tells the caller that the request does not wait, or has waited in vain, for the end of what is full, and when to come again.
func (x *exchange) turnAway(why queue.Why, retry time.Duration, full *router.UnavailableError) {
	x.rec.Refused = why
	switch {
	case why == queue.Gone:
		x.fail(errAttempt(&outcome.Error{Class: outcome.ClientGone}))
	case why == queue.Drained:
		x.ctx.SetConnectionClose() // as in enter
		x.fail(errDraining())
	case x.last != nil: // how the last attempt failed tells more
		x.s.router.Budget.Refund()
		x.retries--
		x.last.RetryAfter = max(x.last.RetryAfter, min(retry, mostRetry))
		x.failAttempt(x.last)
	case x.atDoor:
		e := errBusy()
		e.RetryAfter = max(e.RetryAfter, min(retry, mostRetry))
		x.fail(errCrowded(e, why, x.rec.Queued))
	default:
		ue := router.UnavailableError{Model: x.model, Cause: router.Throttled, Reason: "others wait for the hosts that serve it", RetryAfter: time.Second}
		if full != nil { // else it came behind others
			ue = *full
		}
		if retry > 0 {
			ue.RetryAfter = min(retry, mostRetry)
		}
		x.fail(errCrowded(errUnavailable(&ue), why, x.rec.Queued))
	}
}

// kind sorts requests of a model by what keeps hosts from taking them. How long a prompt is, and what is promised, are told apart by
// powers of two.
func (x *exchange) kind() uint64 {
	var h maphash.Hash
	h.SetSeed(x.s.kinds)
	q := &x.ask
	_, _ = h.WriteString(q.Model) // or a part of its hosts
	_ = h.WriteByte(0)
	_, _ = h.WriteString(q.Route)
	_ = h.WriteByte(0)
	demands(&h, &q.Demand)
	if q.Also != nil {
		_ = h.WriteByte(1)
		demands(&h, q.Also)
	}
	b := [...]byte{
		byte(q.Policy), 0, 0,
		byte(bits.Len64(uint64(max(0, q.BodyBytes)) / manyBytes)), //nolint:gosec // below 64
		byte(bits.Len(uint(max(0, q.PromptTokens)) / manyTokens)), //nolint:gosec // likewise
		0, 0, 0,
	}
	if q.Media {
		b[1] = 1
	}
	if q.Beyond != "" {
		b[2] = 1
	}
	if q.SLO.TTFT > 0 {
		b[5] = byte(1 + bits.Len64(uint64(q.SLO.TTFT.Milliseconds()))) //nolint:gosec // likewise
	}
	if q.SLO.TPS > 0 {
		b[6] = byte(1 + bits.Len64(uint64(min(q.SLO.TPS, math.MaxInt32)))) //nolint:gosec // likewise
	}
	if q.SLO.Confidence > 0 {
		b[7] = byte(1 + 10*min(q.SLO.Confidence, 1))
	}
	_, _ = h.Write(b[:])
	return h.Sum64()
}

const (
	manyTokens = 8192    // of a prompt, above which not every host may have the context for it
	manyBytes  = 1 << 20 // of a body, above which not every host may take it
)

func demands(h *maphash.Hash, d *router.Demand) {
	_ = h.WriteByte(byte(d.Trust))
	if d.Encrypted {
		_ = h.WriteByte('e')
	}
	for _, r := range d.Regions {
		_, _ = h.WriteString(r)
		_ = h.WriteByte(0)
	}
}

// leavesFree sets what the request leaves free for others, which is less the longer it waits.
func (x *exchange) leavesFree(now time.Time) {
	x.ask.Batch = x.priority == queue.Batch || x.seat != nil && x.saysHowLong() // who is content to wait has his time begin with his turn
	x.ask.Waited = x.seat != nil && x.priority != queue.Batch
	x.ask.Spare = 0
	due := x.seat != nil && x.seat.Due()
	if q := &x.set.Queue; x.priority == queue.Batch && q.Size > 0 && q.MaxWait > 0 && !due && !x.resumed() {
		x.ask.Spare = max(0, q.BatchSpare*(1-2*now.Sub(x.rec.At).Seconds()/q.MaxWait.Seconds()))
	}
}
