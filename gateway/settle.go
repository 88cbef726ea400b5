package gateway

import (
	"errors"
	"net"
	"time"

	"headrace/gateway/admission/queue"
	"headrace/gateway/ledger"
	"headrace/router/outcome"
)

// CloseWithError settles the exchange; fasthttp calls it when the body has been sent, with the error
// that ended it, if any.
func (x *exchange) CloseWithError(err error) error {
	defer x.release()
	defer func() { // a record that cannot be taken is no reason to cut an answer that is out
		if r := recover(); r != nil {
			x.s.panicked(x.rec.ID, r)
		}
	}()
	if x.broken == nil {
		x.broken = err
	}
	x.settle()
	return nil
}

// release makes a settled exchange another request's. Nothing may touch it afterwards.
func (x *exchange) release() {
	x.rec.Said.Release()
	if x.sending != nil { // the next request has use for it at once
		*x.sending = sending{}
	}
	head, attempts, made := x.head, x.rec.Attempts[:0], x.sending
	*x = exchange{} // in place: a literal that mentions x is built on the stack and copied, 3 KiB each
	x.head, x.rec.Attempts, x.sending = head, attempts, made
	exchanges.Put(x)
}

// settle gives back everything the exchange holds and records it, once.
func (x *exchange) settle() {
	if x.settled {
		return
	}
	x.settled = true
	defer x.s.inFlight.Add(-1) // last: a drain waits for it
	defer x.goOut()
	defer x.leave() // were anything below to panic, the key's places and money would be gone for good
	if x.conn != nil {
		x.conn.Disarm()
	}
	x.dropSecond()
	now := time.Now()
	if !x.committed { // the handler's last stretch; a stream's ended with its first token
		last := now.Sub(x.began)
		x.own += last
		if x.rec.Tries == 0 && !x.leased { // it was refused
			x.rec.Reading += last
		}
	}
	if x.leased || (x.pinned != "" && x.attempt != nil && x.phase == ready) {
		x.endAttempt(x.verdict(), now)
	}
	if x.attempt != nil {
		x.attempt.Finish()
		attempts.Put(x.attempt)
		x.attempt = nil
	}
	if x.form != nil {
		x.form.close()
	}
	x.giveBack()
	x.fillRecord(now)
	x.leave()
	x.endTale()
	x.shows()
	x.s.settled(&x.rec)
}

// verdict says how the attempt that was answered with ended.
func (x *exchange) verdict() outcome.Error {
	oe := outcome.Error{Class: outcome.Success, Endpoint: x.endpointID(), Err: x.broken}
	if x.attempt != nil {
		oe.Status = x.attempt.Status
	}
	switch {
	case x.gone():
		oe.Class = outcome.ClientGone
	case x.verbatim:
		oe.Class = outcome.CallerFault
	case x.m.failed:
		oe.Class = outcome.UpstreamFault
	case x.broken == nil:
	case x.m.done && x.bodyEnd:
	case x.clientBroke():
		oe.Class = outcome.ClientGone
	case x.attempt != nil:
		oe.Class = x.lostAs(x.broken).Class
	default:
		oe.Class = outcome.Truncated
	}
	return oe
}

// gone tells whether the caller left before it had everything. Many SDKs close at the end mark.
func (x *exchange) gone() bool {
	return x.watch.Aborted() && !x.watch.drained.Load() && (!x.m.done || x.clientBroke())
}

// clientBroke tells whether the stream ended because the caller could not be written to.
func (x *exchange) clientBroke() bool {
	var op *net.OpError
	return errors.As(x.broken, &op) && op.Op == "write"
}

func (x *exchange) fillRecord(now time.Time) {
	r := &x.rec
	r.Duration = now.Sub(r.At)
	r.Overhead = x.own
	r.Batch = x.priority == queue.Batch
	if x.gone() {
		r.Class = outcome.ClientGone
		r.Left = x.left()
		if !x.committed {
			r.Status = 499
		}
	}
	m := x.all()
	if x.tale != nil {
		r.SeamGap = x.tale.gap
	}
	r.Prompt, r.Cached, r.Output, r.Reasoning = -1, -1, -1, -1
	if m.hasUsage {
		r.Prompt, r.Cached, r.Reasoning = m.usage.Prompt, m.usage.Cached, m.usage.Reasoning
	}
	if m.outputs > 0 || m.hasUsage {
		r.Output, r.Estimated = m.output()
	}
	if !x.isStream {
		r.Estimated = r.Estimated && m.hasUsage
		if !m.hasUsage {
			r.Output, r.Estimated = -1, false // an answer in one piece shows no tokens to count
		}
	}
	if x.isStream && !m.firstAt.IsZero() {
		if !x.m.firstAt.IsZero() {
			r.UpstreamTTFT = x.m.firstAt.Sub(x.beginAt)
		}
		if !m.handedAt.IsZero() {
			r.TTFT = m.handedAt.Sub(r.At)
		}
		r.TPS = m.tps()
		if x.lease.Endpoint == nil || !x.lease.Endpoint.Lumpy {
			r.ITLp50, r.ITLp99 = m.gaps.quantile(0.5), m.gaps.quantile(0.99)
			m.gaps.export(&r.Gaps)
		}
	}
	r.Finish = finishReason(m.finish[:m.finishN])
	if r.Status == 0 {
		r.Status = 499
	}
}

// left is how far the request had come when its caller left.
func (x *exchange) left() ledger.Phase {
	n := len(x.rec.Attempts)
	switch all := x.all(); {
	case !all.handedAt.IsZero():
		return ledger.Streaming
	case n > 0 && x.rec.Attempts[n-1].Status != 0:
		return ledger.BeforeFirstToken
	}
	return ledger.BeforeAnswer
}
