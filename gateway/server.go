// Package gateway is the HTTP surface: it takes OpenAI requests, finds a host for each, relays the
// answer as it comes and settles what it took.
//
// A request's way: Server.handle (server.go) -> routes (routes.go) -> exchange.advance (exchange.go;
// pick.go: an attempt's beginning; judge.go: what came of it; events.go: first event; retry.go: its end,
// and whether another follows) -> exchange.answer and WriteTo (reply.go: relay) -> exchange.settle (settle.go).
package gateway

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"headrace/gateway/admission"
	"headrace/gateway/admission/queue"
	"headrace/gateway/forward"
	"headrace/gateway/ledger"
	"headrace/gateway/listen"
	"headrace/gateway/openai"
	"headrace/gateway/trace"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/experiment"
	"headrace/router/outcome"
)

// Options set up a Server for good.
type Options struct {
	Router  *router.Router
	Forward *forward.Client
	Log     *slog.Logger
	Settled func(*ledger.Record) // called once a request, from its goroutine; must not block or keep the record, nor its attempts
	MaxHead int                  // bytes of a request head
	Idle    time.Duration        // keep-alive connection without a request
	TempDir string               // for uploads that name their model behind the file; "" for the system's

	// Classify knows what a provider's hosts mean by an answer that is no 2xx, or that is an HTML page; known is false where the
	// status says it all. body may be empty. Nil knows nothing.
	Classify func(ep *endpoint.Endpoint, status int, contentType string, body []byte) (class outcome.Class, known bool)
	// Refusal finds the engine's own words in an answer of class CallerFault whose status is another's: RunPod wraps vLLM's 400 in
	// a 500. ok is false where there are none. Nil finds nothing.
	Refusal func(ep *endpoint.Endpoint, body []byte) (r outcome.Refusal, ok bool)
	// Failed is told of attempts that speak against a host, so that its provider can be asked; Learned of the id under which a
	// host has answered that was known without one. Neither may block. Nil is told nothing.
	Failed  func(id endpoint.ID, class outcome.Class)
	Learned func(id endpoint.ID, model string)
	// Worked is told what a provider has said of a request's work. It must not block. Nil is told nothing.
	Worked func(id endpoint.ID, w endpoint.WorkerReport)
	// Refused is told of what was refused before it became a request with a record: unreadable heads, unknown paths. code is of a
	// closed set. It must not block. Nil is told nothing.
	Refused func(status int, code string)
	// Keys says who may ask for what. Nil lets everybody in.
	Keys *admission.Gate
	// Arms are the experiments in force; nil is none.
	Arms func() *experiment.Table
	// Webhook takes what a provider posts to /webhooks/NAME and returns the status to answer with; 404 for a name it does not know.
	// body is valid during the call only. Nil knows none.
	Webhook func(name string, header func(string) string, body []byte) int
}

// Settings may change while the server runs; a request keeps those it began with. Durations and
// sizes must be positive but where 0 is explained.
type Settings struct {
	MaxBody     int   // bytes of a JSON request
	MaxUpload   int64 // bytes of a multipart request
	MaxInFlight int64 // requests at once

	Read        time.Duration // reading a request
	FirstEvent  time.Duration // request sent to first content token, each attempt
	ColdStart   time.Duration // the same where a worker has to start first
	Gap         time.Duration // silence inside an answer
	Total       time.Duration // accepted to last byte, all attempts
	ClientWrite time.Duration // a write to the caller that makes no progress
	Heartbeat   time.Duration // a comment goes out each time a waiting stream was silent that long; 0 for none
	Drain       time.Duration // running requests may take that long when the server stops
	MaxRetries  int           // per request
	Hedge       bool          // idle hosts that are paid anyway are asked as well, where a first token is late: see Router.Hedge

	OnPreemption    map[string]Preemption // by model; Continue where nothing is said
	MaxResumes      int                   // times that one answer is gone on with
	MaxContinuation int                   // bytes of an answer's text that are kept for that
	MaxGathered     int                   // bytes of a plain answer's text that is put together of a stream; a longer one is asked for again in one piece
	TokenIDs        bool                  // hosts that can are asked for the numbers of their tokens, and go on with answers by these
	Resume          time.Duration         // waiting for a host that can go on with an answer, where none can now
	Stall           time.Duration         // silence inside an answer that another host can go on with; 20 usual gaps where that is more
	Stuck           time.Duration         // as FirstEvent, where the host is up and another can be asked; 4 expected times where that is more

	Tracing   trace.Policy                  // which requests are traced
	Content   int                           // bytes of a sampled request's body, and of its answer, that are recorded with it; 0 for none
	Propagate func(*endpoint.Endpoint) bool // tells which hosts are sent a traceparent; nil is none of them

	Queue Queue // where there is no room

	Passthrough endpoint.ID // endpoint that gets unknown paths under /v1; "" for none
}

// Server is the gateway's public face.
type Server struct {
	opt     Options
	set     atomic.Pointer[Settings]
	first   Settings // what the fasthttp servers were set up with
	router  *router.Router
	forward *forward.Client
	log     *slog.Logger
	settled func(*ledger.Record)

	http    *fasthttp.Server
	uploads *fasthttp.Server
	room    *queue.Room
	held    holders
	kinds   maphash.Seed // of exchange.kind
	hedges  atomic.Int64 // goroutines of hedges

	disbelieved atomic.Int64
	disbelief   sync.Map // endpoint.ID -> struct{}: said once

	shadows  *shadows
	said     *ledger.Bound // of what requests under way keep for traces
	draining atomic.Bool
	created  int64 // Unix seconds

	ids sync.Pool // of *randomBits

	noUsage sync.Map // endpoint.ID -> bool: refused stream_options
	models  atomic.Pointer[modelList]

	_        [128]byte // what each request writes stands apart from what each request reads, or the latter had to be fetched from another processor each time
	inFlight atomic.Int64
	inside   atomic.Int64 // of these, those that have a place of Settings.MaxInFlight
	_        [128]byte
}

// randomBits are drawn many at a time; each processor has some of its own.
type randomBits struct {
	bits [64 * idBytes]byte
	used int
}

var (
	attempts  = sync.Pool{New: func() any { return new(forward.Attempt) }}
	exchanges = sync.Pool{New: func() any { return new(exchange) }}
	sendings  = sync.Pool{New: func() any { return new(sending) }}
	chunks    = sync.Pool{New: func() any { return new(openai.Chunk) }}
)

// New returns a Server that serves nothing yet.
func New(o Options, set Settings) *Server {
	s := &Server{opt: o, router: o.Router, forward: o.Forward, log: o.Log, settled: o.Settled, created: time.Now().Unix(), shadows: newShadows(), said: ledger.NewBound(saidUnderWay)}
	if s.settled == nil {
		s.settled = func(*ledger.Record) {}
	}
	s.ids.New = func() any { return &randomBits{used: len(randomBits{}.bits)} }
	s.set.Store(&set)
	s.first = set
	s.kinds = maphash.MakeSeed()
	s.room = queue.New(queue.Options{Now: time.Now, Look: looks})
	s.room.Gate(queue.Door, s.takePlace)
	s.chairs(&set)
	s.router.OnFreed(s.freed)
	s.http = s.server(s.handle, &set)
	s.uploads = s.server(s.handleUpload, &set)
	s.uploads.HeaderReceived = nil
	s.uploads.StreamRequestBody = true
	s.uploads.DisableKeepalive = true // an upload's connection serves it alone
	return s
}

// Configure replaces the settings, for requests that begin from now on.
func (s *Server) Configure(set Settings) {
	s.set.Store(&set)
	s.chairs(&set)
	s.room.Freed() // there may be more of it
}

func (s *Server) chairs(set *Settings) {
	s.room.Configure(queue.Limits{Size: set.Queue.Size, Bytes: set.Queue.MaxBytes, BatchShare: set.Queue.BatchShare})
}

func (s *Server) server(h fasthttp.RequestHandler, set *Settings) *fasthttp.Server {
	return &fasthttp.Server{
		Handler:                      s.guarded(h),
		ErrorHandler:                 s.badRequest,
		HeaderReceived:               s.headerReceived,
		ExpectHandler:                s.expect,
		NoDefaultServerHeader:        true,
		NoDefaultContentType:         true,
		DisablePreParseMultipartForm: true,
		ReduceMemoryUsage:            true, // a waiting connection holds no buffers
		ReadBufferSize:               s.opt.MaxHead,
		WriteBufferSize:              640,         // a head; pieces are put together again: see listen.Conn.Write
		MaxRequestBodySize:           set.MaxBody, // headerReceived has the current figures
		ReadTimeout:                  set.Read,
		WriteTimeout:                 set.ClientWrite,
		IdleTimeout:                  s.opt.Idle,
		Concurrency:                  1 << 20, // connections; requests are limited by MaxInFlight
		CloseOnShutdown:              true,
		LazyRequestTime:              true, // nobody asks fasthttp for it
		Logger:                       quiet{s.log},
		SecureErrorLogMessage:        true, // else errors quote the head, credentials and all
	}
}

// quiet takes fasthttp's own log lines, which concern single connections.
type quiet struct{ log *slog.Logger }

// Printf takes one line. Errors quote what the caller sent, which may be a credential: they are cut there.
func (q quiet) Printf(format string, args ...any) {
	for i, arg := range args {
		if err, ok := arg.(error); ok {
			args[i], _, _ = strings.Cut(err.Error(), `"`)
		}
	}
	q.log.Debug("http server", "event", fmt.Sprintf(format, args...))
}

// InFlight returns how many requests are being served.
func (s *Server) InFlight() int64 { return s.inFlight.Load() }

// Draining tells whether the server has stopped taking requests.
func (s *Server) Draining() bool { return s.draining.Load() }

// guarded keeps a panic from ending the process.
func (s *Server) guarded(h fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(ctx *fasthttp.RequestCtx) {
		defer func() {
			if r := recover(); r != nil {
				id := s.newID()
				s.panicked(id, r)
				ctx.Response.Reset()
				ctx.Response.Header.Set("X-Request-Id", id)
				ctx.SetConnectionClose()
				writeError(ctx, errInternal(id), protoChat)
			}
		}()
		h(ctx)
	}
}

// errPanicked says that code of ours broke the answer off.
var errPanicked = errors.New("panic")

func (s *Server) panicked(id string, r any) {
	s.log.Error("panic in a request", "request_id", id, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
}

// badRequest answers what fasthttp could not read as a request.
func (s *Server) badRequest(ctx *fasthttp.RequestCtx, err error) {
	e := errMalformed()
	var small *fasthttp.ErrSmallBuffer
	var ne net.Error
	switch {
	case errors.As(err, &small):
		e.Status, e.Code = 431, "request_head_too_large"
		e.Message = fmt.Sprintf("The request line and headers are larger than %d bytes together (limits.max_head).", s.opt.MaxHead)
	case errors.Is(err, fasthttp.ErrBodyTooLarge) && len(ctx.Request.Header.Host()) > 0 && s.stranger(&ctx.Request.Header):
		if _, e = s.enter(ctx, time.Now()); e == nil { // it has become one of ours meanwhile
			e = errBusy()
		}
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		e = errTooLarge(int64(s.set.Load().MaxBody), "limits.max_body")
		if !s.opt.Keys.Open() && len(ctx.Request.Header.Host()) == 0 { // in chunks: fasthttp has forgotten whose
			e.Message += fmt.Sprintf(" Without a valid API key, %d bytes are the limit.", strangerBody)
		}
	case errors.As(err, &ne) && ne.Timeout():
		e.Status, e.Code, e.Message = 408, "request_timeout", "The request did not arrive in time (timeouts.read)."
	}
	if e.Status != fasthttp.StatusRequestTimeout {
		lingers(ctx, true)
	}
	ctx.SetConnectionClose()
	s.refuse(ctx, e, s.protoOf(&ctx.Request.Header))
}

// lingers says whether the caller may still be sending when the connection is closed behind his answer.
func lingers(ctx *fasthttp.RequestCtx, on bool) {
	if c := listen.Of(ctx.Conn()); c != nil {
		c.Linger(on)
	}
}

// expect decides, by the head alone, on a request whose caller has asked (Expect: 100-continue) whether to send the body: it returns 100,
// or the status of the refusal that it has made the answer.
func (s *Server) expect(ctx *fasthttp.RequestCtx) int {
	h := &ctx.Request.Header
	path := rawPath(h.RequestURI())
	rt := routes[string(path)]
	if rt == nil && (s.set.Load().Passthrough == "" || !bytes.HasPrefix(path, []byte("/v1/"))) {
		return fasthttp.StatusContinue // see other
	}
	set := s.set.Load()
	limit, what := int64(set.MaxBody), "limits.max_body"
	if s.isUpload(h) {
		limit, what = set.MaxUpload, "limits.max_upload"
	}
	_, e := s.enter(ctx, time.Now())
	if e == nil && int64(h.ContentLength()) > limit {
		e = errTooLarge(limit, what)
	}
	if e == nil {
		return fasthttp.StatusContinue
	}
	lingers(ctx, true)
	s.refuse(ctx, e, s.protoOf(h))
	return e.Status
}

// protoOf tells whose errors the sender of a head understands.
func (s *Server) protoOf(h *fasthttp.RequestHeader) protocol {
	if rt := routes[string(rawPath(h.RequestURI()))]; rt != nil {
		return rt.proto
	}
	return protoChat
}

// refused tells of a request that got no record.
func (s *Server) refused(id string, e *openai.Error) {
	s.log.Info("request refused", "request_id", id, "status", e.Status, "code", e.Code)
	if s.opt.Refused != nil {
		s.opt.Refused(e.Status, e.Code)
	}
}

const idBytes = 16

// newID returns a request id: "req_" and 26 characters that carry 128 random bits.
func (s *Server) newID() string {
	r := s.ids.Get().(*randomBits)
	if r.used == len(r.bits) {
		_, _ = rand.Read(r.bits[:]) // never fails: crypto/rand ends the process first
		r.used = 0
	}
	raw := [idBytes]byte(r.bits[r.used:])
	r.used += idBytes
	s.ids.Put(r)
	var b [4 + 26]byte
	copy(b[:], "req_")
	one, two := binary.LittleEndian.Uint64(raw[:8]), binary.LittleEndian.Uint64(raw[8:])
	for i := 4; i < 4+26/2; i++ { // each half in thirteen digits, in a tenth of the time that encoding/base32 takes
		b[i], b[i+26/2] = idDigits[one%32], idDigits[two%32]
		one, two = one/32, two/32
	}
	return string(b[:])
}

const idDigits = "0123456789abcdefghjkmnpqrstvwxyz"

// handle is every request on an ordinary connection.
func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	if x := s.take(ctx); x != nil {
		s.serve(x, (*exchange).admit)
	}
}

// take begins the exchange of a request that is one; nil where all was said already.
func (s *Server) take(ctx *fasthttp.RequestCtx) *exchange {
	now := time.Now()
	if h := &ctx.Request.Header; !h.IsHTTP11() && string(h.Protocol()) != "HTTP/1.0" {
		ctx.SetConnectionClose()
		s.refuse(ctx, errMalformed(), protoChat)
		return nil
	}
	if ctx.IsPost() && s.isUpload(&ctx.Request.Header) {
		if _, e := s.enter(ctx, now); e != nil {
			ctx.SetConnectionClose() // its body is still there
			lingers(ctx, true)
			s.refuse(ctx, e, protoChat)
			return nil
		}
		s.moveUpload(ctx)
		return nil
	}
	path := rawPath(ctx.Request.Header.RequestURI())
	rt := routes[string(path)]
	if rt == nil || !ctx.IsPost() || rt.body != jsonBody {
		s.other(ctx, string(path), rt, now)
		return nil
	}
	grant, e := s.enter(ctx, now)
	if e != nil {
		s.refuse(ctx, e, rt.proto)
		return nil
	}
	return s.begin(ctx, rt, grant, now)
}

// serve takes x through admission to its response. A panic settles it on its way up.
func (s *Server) serve(x *exchange, admit func(*exchange) *openai.Error) {
	defer func() {
		if r := recover(); r != nil {
			x.broken = fmt.Errorf("%w: %v", errPanicked, r)
			x.rec.Status, x.rec.Class = fasthttp.StatusInternalServerError, outcome.UpstreamFault
			x.settle()
			panic(r)
		}
	}()
	if e := admit(x); e != nil {
		x.fail(e)
	}
	s.run(x)
}

// run drives x until its response can be given to fasthttp.
func (s *Server) run(x *exchange) {
	until := x.totalBy.Add(time.Hour) // each attempt ends by totalBy at the latest
	if x.set.Heartbeat > 0 && x.wantStream {
		until = x.rec.At.Add(x.set.Heartbeat)
	}
	if !x.advance(until) {
		x.beat()
		return
	}
	if x.answer() {
		x.settle()
		x.release()
	}
}

// beat commits to an event stream before anything came, so that comments can keep the caller's
// connection alive. A failure from here on is an error event.
func (x *exchange) beat() {
	x.beating, x.rec.Status = true, fasthttp.StatusOK
	h := &x.ctx.Response.Header
	h.SetContentTypeBytes(eventStream)
	h.Set("Cache-Control", "no-cache")
	x.setHeaders(x.rec.At)
	x.stream()
}

// classify asks the provider's adapter what an answer of ep means that says class by itself.
func (s *Server) classify(ep *endpoint.Endpoint, class outcome.Class, status int, contentType, body []byte) outcome.Class {
	if s.opt.Classify == nil {
		return class
	}
	if c, known := s.opt.Classify(ep, status, string(contentType), body); known {
		return c
	}
	return class
}

// attemptFailed logs a failed attempt, and has its host's provider asked; the error's text may be the host's and goes nowhere else.
func (s *Server) attemptFailed(request string, class outcome.Class, id endpoint.ID, status int, err error) {
	if v := class.Policy().Verdict; s.opt.Failed != nil && (v == outcome.Faulty || v == outcome.Doubtful || class == outcome.NotReady) {
		s.opt.Failed(id, class)
	}
	level := slog.LevelWarn
	if class == outcome.ClientGone || class == outcome.CallerFault || class == outcome.Outrun {
		level = slog.LevelDebug
	}
	if !s.log.Enabled(context.Background(), level) {
		return
	}
	s.log.LogAttrs(context.Background(), level, "attempt failed",
		slog.String("request_id", request), slog.String("endpoint", string(id)), slog.String("class", class.String()),
		slog.Int("status", status), slog.Any("error", err))
}

// finishReason returns b as a string, for the usual ones without allocating.
func finishReason(b []byte) string {
	switch string(b) {
	case "stop":
		return "stop"
	case "length":
		return "length"
	case "tool_calls":
		return "tool_calls"
	}
	return string(b)
}

// target returns path and query of a request target as they came. A server has to take the absolute
// form too (RFC 9112 section 3.2.2); a fragment has no place in a request.
func target(uri []byte) []byte {
	if len(uri) > 0 && uri[0] != '/' {
		if _, rest, ok := bytes.Cut(uri, []byte("://")); ok {
			uri = []byte("/")
			if i := bytes.IndexAny(rest, "/?#"); i >= 0 && rest[i] == '/' {
				uri = rest[i:]
			}
		}
	}
	if i := bytes.IndexByte(uri, '#'); i >= 0 {
		uri = uri[:i]
	}
	return uri
}

// rawPath is target without its query.
func rawPath(uri []byte) []byte {
	uri = target(uri)
	if i := bytes.IndexByte(uri, '?'); i >= 0 {
		uri = uri[:i]
	}
	return uri
}

// refusedUsage tells whether the endpoint has refused stream_options before.
func (s *Server) refusedUsage(id endpoint.ID) bool {
	_, refused := s.noUsage.Load(id)
	return refused
}
