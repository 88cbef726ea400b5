package fakecloud

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// maxBody is the largest body that is read into memory.
const maxBody = 256 << 20

// exchange is one request and its answer.
type exchange struct {
	h     *Host
	life  *life
	w     http.ResponseWriter
	r     *http.Request
	ctx   context.Context // done when the client has left or the host is dead
	plan  *plan
	out   sender
	raw   *rawSender // out, when a fault needs the connection
	shape *shaper
	body  []byte // nil for uploads that are read as they come
	began time.Time
	gone  atomic.Pointer[time.Time] // when ctx was done
}

// errStruck ends an exchange at a fault, which does the rest.
var errStruck = errors.New("struck by a fault")

func (h *Host) serve(l *life, w http.ResponseWriter, r *http.Request) {
	if !l.enter() {
		panic(http.ErrAbortHandler)
	}
	defer l.leave()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	x := &exchange{h: h, life: l, w: w, r: r, ctx: ctx, plan: h.script.plan(r), began: time.Now()}
	defer context.AfterFunc(ctx, func() { x.gone.CompareAndSwap(nil, new(time.Now())) })()
	h.books.update(func(s *Stats) { s.Requests++ })
	if h.cfg.AllowHeaderFaults {
		if err := x.headerFaults(); err != nil {
			x.fail(http.StatusBadRequest, "BadRequestError", err.Error(), "")
			return
		}
	}
	struck := x.plan.end.Kind != noFault || len(x.plan.shapes) > 0
	h.cfg.Chunking.apply(x.plan)
	if struck {
		h.books.update(func(s *Stats) { s.Faults++ })
	}
	streamed := isUpload(r.URL.Path) && !struck
	if !streamed && !x.readBody() {
		return
	}
	if x.plan.wire() {
		raw, err := newRawSender(w, x.plan, cancel)
		if err != nil {
			panic(http.ErrAbortHandler) // the client left meanwhile
		}
		defer raw.close()
		x.out, x.raw = raw, raw
	} else {
		x.out = &httpSender{w, http.NewResponseController(w)}
	}
	x.shape = &shaper{ctx: ctx, plan: x.plan, out: x.out}
	if x.early() {
		x.route()
	}
}

func (x *exchange) headerFaults() error {
	for _, v := range x.r.Header.Values("X-Fake-Fault") {
		for one := range strings.SplitSeq(v, ";") {
			f, err := ParseFault(strings.TrimSpace(one))
			if err != nil {
				return err
			}
			x.plan.add(f)
		}
	}
	return nil
}

func (x *exchange) readBody() bool {
	body, err := io.ReadAll(http.MaxBytesReader(x.w, x.r.Body, maxBody))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			x.out = &httpSender{x.w, http.NewResponseController(x.w)}
			x.shape = &shaper{ctx: x.ctx, plan: x.plan, out: x.out}
			x.fail(http.StatusRequestEntityTooLarge, "BadRequestError", "Request body too large", "")
			return false
		}
		panic(http.ErrAbortHandler) // the client left before it had said all
	}
	x.body = body
	sum := sha256.Sum256(body)
	x.record(body[:min(len(body), maxKeptBody)], int64(len(body)), sum[:])
	return true
}

func (x *exchange) record(body []byte, size int64, sum []byte) {
	header := x.r.Header.Clone()
	header.Set("Host", x.r.Host)
	x.h.ring.add(Received{
		At: x.began, Method: x.r.Method, Path: x.r.URL.Path, Query: x.r.URL.RawQuery, Header: header,
		Body: bytes.Clone(body), BodyBytes: size, BodyHash: hex.EncodeToString(sum),
	})
}

// reader is the body, read before or as it comes.
func (x *exchange) reader() io.Reader {
	if x.body != nil {
		return bytes.NewReader(x.body)
	}
	return x.r.Body
}

func isUpload(path string) bool {
	return strings.HasPrefix(path, "/v1/audio/trans") || strings.HasPrefix(path, "/v1/echo/") || path == "/v1/files" || strings.HasPrefix(path, "/v1/files/")
}

// early strikes with the faults that leave the engine alone; it says whether the request goes on.
func (x *exchange) early() bool {
	f := x.plan.end
	switch f.Kind {
	case Hang:
		x.hang()
		panic(http.ErrAbortHandler)
	case Reset:
		x.raw.reset()
	case ResetHead:
		_ = x.out.head(http.StatusOK, -1, x.fields("text/event-stream; charset=utf-8"))
		x.raw.reset()
	case Garbage:
		_, _ = x.raw.c.Write([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03no http is spoken here\r\n\r\n"))
	case Throttle:
		x.fail(http.StatusTooManyRequests, "RateLimitError", "Too many requests", "",
			field{"retry-after", strconv.Itoa(max(1, int(f.Delay/time.Second)))})
	case Error500:
		x.fail(http.StatusInternalServerError, "InternalServerError", "EngineCore encountered an issue. See stack trace (above) for the root cause.", "")
	case Unavailable:
		x.fail(http.StatusServiceUnavailable, "ServiceUnavailableError", "The engine is not ready", "")
	case HTML502:
		x.answer(http.StatusBadGateway, "text/html", []byte("<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n"))
	case HTML200:
		x.answer(http.StatusOK, "text/html", []byte("<!DOCTYPE html><html><head><title>Instance Portal</title></head><body>Your instance is starting.</body></html>"))
	case FlatError:
		x.answer(http.StatusOK, "application/json", encode(flatError{"error", "Internal server error", "InternalServerError", nil, 500}))
	case HalfOpen:
		if f.After > 0 {
			return true
		}
		x.halfOpen()
	case SlowHead:
		return Pause(x.ctx, f.Delay) == nil
	default:
		return true
	}
	return false
}

// hang waits until the client leaves or the host ends.
func (x *exchange) hang() {
	select {
	case <-x.ctx.Done():
	case <-x.life.quit:
	}
}

func (x *exchange) halfOpen() {
	x.raw.stopReading()
	select {
	case <-x.life.ctx.Done():
	case <-x.life.quit:
	}
}

// strike does what is left to do when a generation was struck.
func (x *exchange) strike() {
	f := x.plan.end
	_ = x.shape.flush()
	switch f.Kind {
	case HalfOpen:
		x.halfOpen()
	case ResetStream:
		x.raw.reset()
	case CutClean:
		_ = x.out.end()
	case CutEvent:
		_ = x.out.write([]byte(`data: {"id":"chatcmpl-cut","object":"chat.completion.chunk","created":17000`))
	case GarbageEvent:
		_ = x.out.write([]byte("data: {\x00\xff\xfe not json\n\n\x80\x81 nor an event\n\n"))
	case ErrorEvent:
		_ = x.shape.event("", encode(x.errorBody(http.StatusInternalServerError, "InternalServerError", "Internal server error", "")))
		_ = x.shape.event("", []byte("[DONE]"))
		_ = x.shape.flush()
		_ = x.out.end()
	case Stall, RoleOnly:
		if x.raw == nil {
			panic(http.ErrAbortHandler) // the host ends; a clean end would be a lie
		}
	default: // the connection is closed by the caller
	}
}

// fields are the header lines that uvicorn and vLLM send.
func (x *exchange) fields(contentType string, more ...field) []field {
	fs := []field{{"date", time.Now().UTC().Format(http.TimeFormat)}, {"server", "uvicorn"}}
	fs = append(fs, more...)
	if x.plan.has(HugeHeader) {
		for i := range 16 {
			fs = append(fs, field{"x-padding-" + strconv.Itoa(i), strings.Repeat("p", 4096)})
		}
	}
	return append(fs, field{"content-type", contentType})
}

// answer sends a whole body.
func (x *exchange) answer(status int, contentType string, body []byte, more ...field) {
	if x.out.head(status, int64(len(body)), x.fields(contentType, more...)) != nil || x.r.Method == http.MethodHead {
		return
	}
	if x.shape.push(body) == nil && x.shape.flush() == nil {
		_ = x.out.end()
	}
}

func (x *exchange) json(v any) { x.answer(http.StatusOK, "application/json", encode(v)) }

// encode is JSON as vLLM writes it: no blanks, UTF-8 as it is.
func encode(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic("BUG: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// problem is a request that is refused.
type problem struct {
	status    int
	kind      string // vLLM's error type
	message   string
	parameter string
}

func (p *problem) Error() string { return p.message }

func invalid(parameter, format string, args ...any) *problem {
	return &problem{http.StatusBadRequest, "BadRequestError", fmt.Sprintf(format, args...), parameter}
}

type errorBody struct {
	Error errorInfo `json:"error"`
}

type errorInfo struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    int     `json:"code"`
}

// flatError is what vLLM answered before it took up OpenAI's nested form.
type flatError struct {
	Object  string  `json:"object"`
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    int     `json:"code"`
}

func (x *exchange) errorBody(status int, kind, message, parameter string) any {
	var p *string
	if parameter != "" {
		p = &parameter
	}
	if x.h.cfg.Legacy {
		return flatError{"error", message, kind, p, status}
	}
	return errorBody{errorInfo{message, kind, p, status}}
}

func (x *exchange) fail(status int, kind, message, parameter string, more ...field) {
	if x.shape == nil { // before the plan was carried out
		x.out = &httpSender{x.w, http.NewResponseController(x.w)}
		x.shape = &shaper{ctx: x.ctx, plan: &plan{}, out: x.out}
	}
	x.answer(status, "application/json", encode(x.errorBody(status, kind, message, parameter)), more...)
}

func (x *exchange) refuse(p *problem) {
	x.h.books.update(func(s *Stats) { s.Refusals++ })
	x.fail(p.status, p.kind, p.message, p.parameter)
}

// detail refuses as FastAPI does, below vLLM's own handlers.
func (x *exchange) detail(status int, text string) {
	x.h.books.update(func(s *Stats) { s.Refusals++ })
	x.answer(status, "application/json", encode(map[string]string{"detail": text}))
}

func (x *exchange) authorized() bool {
	key := x.h.cfg.APIKey
	if key == "" || !strings.HasPrefix(x.r.URL.Path, "/v1") {
		return true
	}
	scheme, got, _ := strings.Cut(x.r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "bearer") {
		got = ""
	}
	return subtle.ConstantTimeCompare([]byte(got), []byte(key)) == 1
}

// decode reads a JSON body, or refuses it as vLLM's validation does.
func (x *exchange) decode(into any) bool {
	err := json.Unmarshal(x.body, into)
	if err == nil {
		return true
	}
	message := fmt.Sprintf("1 validation error: {'type': 'json_invalid', 'loc': ('body', 0), 'msg': 'JSON decode error', 'ctx': {'error': %q}}", err)
	if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		message = fmt.Sprintf("1 validation error: {'type': 'invalid_type', 'loc': ('body', '%s'), 'msg': 'Input should not be a JSON %s'}", t.Field, t.Value)
	}
	if p, ok := errors.AsType[*problem](err); ok {
		message = p.message
	}
	x.refuse(&problem{http.StatusBadRequest, "Bad Request", message, ""})
	return false
}

// model checks the model of a request; an empty name means the first, as with vLLM.
func (x *exchange) model(name *string) *problem {
	if *name == "" {
		*name = x.h.cfg.Models[0]
	}
	if !slices.Contains(x.h.cfg.Models, *name) {
		return &problem{http.StatusNotFound, "NotFoundError", fmt.Sprintf("The model `%s` does not exist.", *name), "model"}
	}
	return nil
}
