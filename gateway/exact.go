package gateway

import (
	"bytes"

	"headrace/gateway/openai"
	"headrace/gateway/resume"
	"headrace/gateway/sse"
	"headrace/router"
)

// With Settings.TokenIDs hosts that have shown that they can are asked for the numbers of their tokens, which the caller does not get to
// see. Of an answer that broke off another host is then told exactly what the first one had read and written: see resume.AskExact. Where
// that cannot be, its text is put in front of it as ever.

const completionsPath = "/completions" // below the base URL, as forward.Request has it

// mostNumbered is how long a prompt may be, in bytes of JSON, whose tokens are asked for: a host tells them in one event, which is to be
// held whole, and a byte of the prompt can come to seven there.
const mostNumbered = 128 << 10

// wantsNumbers tells whether the host of l is asked for the numbers of tokens with x.
func (x *exchange) wantsNumbers(l *router.Lease) bool {
	if !x.set.TokenIDs || x.tale == nil || x.scan.Stop || x.scan.PromptBytes > min(mostNumbered, x.set.MaxContinuation/2) || !l.Prefill().Tokens {
		return false
	}
	body := x.ctx.Request.Body()
	return !bytes.Contains(body, []byte(openai.TokenIDs)) && !holdsMedia(body) // pictures are no tokens that Completions takes
}

// number has the tale take the numbers of an event's tokens, and takes them out of the event.
func (x *exchange) number(ev *sse.Event) {
	c := x.chunk
	if x.tale != nil {
		x.tale.story.Number(c, ev.Data)
	}
	first, last := c.TokenIDsAt, c.PromptIDsAt
	if first.From > last.From {
		first, last = last, first
	}
	if !last.Present() {
		return
	}
	from := bytes.Index(x.attempt.Unread()[x.held:x.held+ev.Size], ev.Data)
	if from < 0 { // over several lines, as no engine that tells them writes it
		return
	}
	data, behind := ev.Data, false
	for _, at := range [...]openai.Span{last, first} { // from the back, so that the other one stays where it is
		if !at.Present() {
			continue
		}
		at = openai.Member(data, at)
		x.attempt.Cut(x.held+from+at.From, at.To-at.From)
		ev.Size -= at.To - at.From
		data = x.attempt.Unread()[x.held+from:][:len(data)-(at.To-at.From)]
		behind = behind || c.TextAt.From > at.From || bytes.Contains(data[at.From:], []byte(`"id"`))
	}
	if ev.Data = data; behind || c.Finish { // what was found in it has moved
		c.Parse(ev.Name, data)
	}
}

// composeExact builds the request that goes on with the answer by the numbers of its tokens. false means that it is to be asked for by its
// text, if at all.
func (x *exchange) composeExact() bool {
	t := x.tale
	if !t.want.Exact || !x.lease.Prefill().Tokens {
		return false
	}
	body, why := t.story.AskExact(t.blank(), x.ctx.Request.Body(), x.lease.ServedJSON, x.lease.MaxContext())
	if *t.body, x.why = body, why; why != resume.None {
		return false
	}
	x.req.Path = completionsPath
	x.exact, x.numbered = true, true
	x.goesOn(body)
	return true
}

// mayBeExact tells whether the answer can be gone on with by the numbers of its tokens, as far as the answer and its request say.
func (x *exchange) mayBeExact() (yes bool, why resume.Reason) {
	t := x.tale
	if !x.set.TokenIDs || t.textual {
		return false, resume.TokenIDs
	}
	const roomy = 1 << 30 // the host is not known yet
	body, why := t.story.AskExact(t.blank(), x.ctx.Request.Body(), nil, roomy)
	*t.body = body
	t.dropBody()
	return why == resume.None, why
}

// asText goes back to asking for the rest of the answer by its text, where a host would not take the numbers of its tokens.
func (x *exchange) asText() bool {
	t := x.tale
	if !x.exact || t.textual || t.want.ExactOnly || !x.mayRetry() {
		return false
	}
	t.textual, t.want.Exact = true, false
	x.again()
	return true
}
