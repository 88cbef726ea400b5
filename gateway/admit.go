package gateway

import (
	"bytes"
	"math"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"headrace/gateway/admission"
	"headrace/gateway/ledger"
	"headrace/gateway/listen"
	"headrace/gateway/openai"
	"headrace/gateway/trace"
	"headrace/router/endpoint"
)

func (s *Server) begin(ctx *fasthttp.RequestCtx, rt *route, grant *admission.Grant, now time.Time) *exchange {
	x := exchanges.Get().(*exchange)
	if x.sending == nil { // its last request was a stream
		x.sending = sendings.Get().(*sending)
	}
	x.s, x.set, x.ctx, x.route, x.grant, x.began = s, s.set.Load(), ctx, rt, grant, now
	x.totalBy = now.Add(x.set.Total)
	x.rec.At, x.rec.Route, x.rec.Method, x.rec.ID = now, rt.path, fasthttp.MethodPost, s.newID()
	x.rec.Key, x.rec.TLS = grant.Name(), ctx.IsTLS()
	if x.set.Tracing.On {
		h := &ctx.Request.Header
		x.rec.Trace = x.set.Tracing.Begin(h.PeekBytes(nameParent), h.PeekBytes(nameState))
	}
	x.watch = &watch{}
	x.watch.self = x.watch
	s.inFlight.Add(1)
	if x.conn = listen.Of(ctx.Conn()); x.conn != nil {
		_ = x.conn.Flush() // the answer before this one, where both requests came at once; if it fails, so does the next write
		if ctx.Request.IsBodyStream() {
			x.conn.ArmReading(&x.watch.self)
		} else {
			x.conn.Arm(&x.watch.self)
		}
	}
	return x
}

// admit checks the request and readies it for the first attempt.
func (x *exchange) admit() *openai.Error {
	ctx := x.ctx
	if e := x.enter(); e != nil {
		return e
	}
	body := ctx.Request.Body()
	x.ask.BodyBytes = int64(len(body))
	x.rec.BytesIn = x.ask.BodyBytes
	if enc := ctx.Request.Header.ContentEncoding(); len(enc) > 0 && string(enc) != "identity" {
		return errEncoding(string(enc))
	}
	if ct := ctx.Request.Header.ContentType(); len(ct) > 0 && !isJSON(ct) {
		return errMediaType(x.route.path, "application/json")
	}
	if err := x.scan.Scan(body); err != nil {
		return errScan(err)
	}
	x.sought.n, x.sought.most, x.sought.stop = x.scan.N, x.scan.MaxTokens, x.scan.Stop
	if x.set.Content > 0 && x.rec.Trace.Sampled {
		x.rec.Said = ledger.NewSaid(x.set.Content, x.s.said)
		x.rec.Said.Ask(body)
	}
	if len(x.scan.Model) == 0 {
		return errModelMissing()
	}
	if e := x.setModel(x.scan.Model); e != nil {
		return e
	}
	if e := x.confined(); e != nil {
		return e
	}
	x.wantStream = x.scan.Stream
	x.ask.Whole = !x.wantStream
	x.rec.Stream = x.wantStream
	snap := x.s.router.Snapshot()
	if snap.TextOnly(x.model) {
		x.ask.Media = holdsMedia(body)
	}
	if snap.Plain(x.model) {
		x.ask.Beyond = beyondPlain(body)
	}
	x.ask.PromptTokens = promptTokens(body, x.scan.PromptBytes)
	if !x.ask.Tokenless {
		x.recognise(body)
	}
	if x.scan.MaxTokens > 0 {
		x.ask.MaxTokens = int(min(x.scan.MaxTokens, math.MaxInt32))
	}
	if !x.ask.Tokenless {
		x.ask.Sequences = int(x.choices())
	}
	x.onLoss = x.set.OnPreemption[x.model]
	if e := x.demands(); e != nil {
		return e
	}
	if e := x.assign(); e != nil {
		return e
	}
	x.ask.Affinity.Salt(x.grant.Salt()) // experiments know a session by its name alone
	if e := x.spend(); e != nil {
		return e
	}
	x.prepare(forwarded)
	x.follow()
	return nil
}

// bytesPerToken is about what a token of a prompt takes in JSON, where nobody has counted.
const bytesPerToken = 4

// promptTokens estimates the tokens of a prompt. Images and files in base64 are far fewer tokens than bytes.
func promptTokens(body []byte, promptBytes int) int {
	n := promptBytes / bytesPerToken
	if n <= fileTokens {
		return n
	}
	files := 0
	urls, members := marks{mark: base64Mark}, marks{mark: dataMark}
	for at := 0; ; files++ {
		url, member := urls.next(body, at), members.next(body, at)
		for member < url {
			if v := dataOf(body[member:]); v > 0 {
				member += v
				break
			}
			member = members.next(body, member)
		}
		if at = min(url, member); at == len(body) {
			break
		}
		data := body[at:]
		end := bytes.IndexByte(data, '"')
		if end < 0 {
			end = len(data)
		}
		if space := bytes.IndexByte(data[:end], ' '); space >= 0 { // it is spoken of only
			end = space
		}
		promptBytes -= end
		at += end
	}
	return min(n, max(0, promptBytes)/bytesPerToken+files*fileTokens)
}

// marks finds where a mark is in a body, from the front to the back.
type marks struct {
	mark  []byte
	found int // where the last one that was found ends
}

// next is where the first mark ends that begins at or behind at, the body's length when there is none. A body is read once.
func (m *marks) next(body []byte, at int) int {
	if m.found <= at || m.found < len(m.mark)+at && m.found < len(body) {
		if i := bytes.Index(body[at:], m.mark); i >= 0 {
			m.found = at + i + len(m.mark)
		} else {
			m.found = len(body)
		}
	}
	return m.found
}

// dataOf is where the string begins that follows the name of a member "data", if it is long and of one word, as Anthropic's images and OpenAI's
// sounds are; 0 where there is none.
func dataOf(b []byte) int {
	const blanks = " \t\r\n"
	v := bytes.TrimLeft(b, blanks)
	if len(v) == 0 || v[0] != ':' {
		return 0
	}
	v = bytes.TrimLeft(v[1:], blanks)
	if len(v) <= fileBytes || v[0] != '"' || bytes.IndexByte(v[1:fileBytes], '"') >= 0 || bytes.IndexByte(v[1:fileBytes], ' ') >= 0 {
		return 0
	}
	return len(b) - len(v) + 1
}

// fileTokens is about what an image comes to, or a page.
const fileTokens = 1000

// fileBytes of one word are no text: the shortest string in a member "data" that is taken for a file.
const fileBytes = 2048

var (
	base64Mark = []byte(";base64,")
	dataMark   = []byte(`"data"`)
)

// setModel interns the model's name: what the caller sent dies with the request.
func (x *exchange) setModel(name []byte) *openai.Error {
	snap := x.s.router.Snapshot()
	known, ok := snap.Intern(name)
	if !ok || !x.grant.Model(known) { // what a key may not name does not exist, as far as its holder is told
		x.rec.Model = clip(string(name), 128)
		return errModelUnknown(string(name), visible(snap.Models(), x.grant))
	}
	x.model, x.rec.Model, x.rec.Known = known, known, true
	x.ask.ID, x.ask.Model, x.ask.Route, x.ask.Came = x.rec.ID, known, x.route.below(), x.rec.At
	x.ask.Tokenless, x.ask.Also = x.route.proto == protoOpaque, x.grant.Demand()
	return nil
}

// prepare fills in what every attempt sends.
func (x *exchange) prepare(take func([]byte) bool) {
	x.s.router.Budget.Earn()
	if x.hedges() {
		x.s.router.Hedges.Earn()
	}
	h := &x.ctx.Request.Header
	x.head = appendHeader(x.head[:0], h, take, x.rec.ID)
	x.req.Method = "POST"
	if uri := target(h.RequestURI()); string(uri) == x.route.path {
		x.req.Path = x.route.path[len("/v1"):] // the usual case allocates nothing
	} else {
		x.req.Path = strings.TrimPrefix(string(uri), "/v1")
	}
	x.req.Header, x.headLen = x.head, len(x.head)
}

// Names of W3C Trace Context's header fields.
var (
	nameParent = []byte("Traceparent")
	nameState  = []byte("Tracestate")
)

// follows draws the attempt's span and lets the host know of it, if it is to.
func (x *exchange) follows(ep *endpoint.Endpoint) {
	if !x.rec.Trace.On() {
		return
	}
	x.span = x.set.Tracing.NewSpan()
	x.head = x.parent(x.head[:x.headLen], ep, x.span)
	x.req.Header = x.head
}

// parent adds to a head of x what lets ep know of span, if it is to.
func (x *exchange) parent(head []byte, ep *endpoint.Endpoint, span trace.SpanID) []byte {
	if ep != nil && x.set.Propagate != nil && x.set.Propagate(ep) {
		return x.rec.Trace.AppendParent(head, span)
	}
	return head
}

func isJSON(ct []byte) bool {
	if string(ct) == "application/json" { // the usual one
		return true
	}
	t, _, _ := strings.Cut(string(ct), ";")
	t = strings.ToLower(strings.TrimSpace(t))
	return t == "application/json" || strings.HasSuffix(t, "+json") || t == "application/x-www-form-urlencoded" || t == "text/plain"
}
