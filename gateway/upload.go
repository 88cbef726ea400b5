package gateway

import (
	"errors"
	"io"
	"mime"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"headrace/gateway/listen"
	"headrace/gateway/openai"
)

// Uploads are streamed through. fasthttp streams request bodies for a whole server or not at all,
// and pays for it with a buffer that every open connection holds; so the ordinary server stops
// behind the head of an upload and hands the connection to a second one that streams.

// headerReceived sees a request's head before its body is read.
func (s *Server) headerReceived(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	if h.IsPost() && s.isUpload(h) {
		h.SetContentLength(0) // the body stays on the connection; RawHeaders keeps what the caller wrote
		h.Del(fasthttp.HeaderExpect)
	}
	set, c := s.set.Load(), fasthttp.RequestConfig{}
	if set.Read != s.first.Read { // setting a deadline twice costs 300 ns a request
		c.ReadTimeout = set.Read
	}
	c.WriteTimeout, c.MaxRequestBodySize = set.ClientWrite, set.MaxBody
	if n := h.ContentLength(); (n > strangerBody || n < 0) && s.stranger(h) {
		c.MaxRequestBodySize = strangerBody // see badRequest
	}
	return c
}

func (s *Server) isUpload(h *fasthttp.RequestHeader) bool {
	ct := h.ContentType()
	if len(ct) < len("multipart/") || !strings.EqualFold(string(ct[:len("multipart/")]), "multipart/") {
		return false
	}
	path := string(rawPath(h.RequestURI()))
	if rt := routes[path]; rt != nil {
		return rt.body == formBody
	}
	return s.set.Load().Passthrough != "" && strings.HasPrefix(path, "/v1/")
}

// moveUpload hands the connection, head and all, to the server that streams bodies.
func (s *Server) moveUpload(ctx *fasthttp.RequestCtx) {
	h := &ctx.Request.Header
	head := append([]byte(nil), h.Method()...)
	head = append(head, ' ')
	head = append(head, h.RequestURI()...)
	head = append(head, ' ')
	head = append(head, h.Protocol()...)
	head = append(head, '\r', '\n')
	head = append(head, h.RawHeaders()...)
	if n := len(head); n < 4 || string(head[n-4:]) != "\r\n\r\n" {
		head = append(head, '\r', '\n')
	}
	ctx.HijackSetNoResponse(true)
	ctx.Hijack(func(c net.Conn) {
		rc := &replayConn{Conn: c, head: head}
		_ = s.uploads.ServeConn(rc) // its errors were answered on the connection
		rc.users.Wait()             // c is fasthttp's again when this returns
	})
}

// replayConn gives a head that was read already to its next reader.
type replayConn struct {
	net.Conn
	head  []byte
	users sync.WaitGroup // writers that outlive the server that reads from it
}

func (c *replayConn) Read(p []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// UnsafeConn lets listen.Of find the watched connection.
func (c *replayConn) UnsafeConn() net.Conn { return c.Conn }

// handleUpload is every request on the server that streams bodies.
func (s *Server) handleUpload(ctx *fasthttp.RequestCtx) {
	rt := routes[string(rawPath(ctx.Request.Header.RequestURI()))]
	if rt == nil {
		rt = passthroughRoute
	}
	lingers(ctx, ctx.Request.Header.ContentLength() != 0) // until all of it is read
	now := time.Now()
	grant, e := s.enter(ctx, now)
	if e != nil { // it was let in before the connection was moved, and is not any more
		s.refuse(ctx, e, rt.proto)
		return
	}
	s.serve(s.begin(ctx, rt, grant, now), (*exchange).admitUpload)
}

func (x *exchange) admitUpload() *openai.Error {
	s, h := x.s, &x.ctx.Request.Header
	if e := x.enter(); e != nil {
		return e
	}
	size := h.ContentLength()
	if int64(size) > x.set.MaxUpload {
		return errTooLarge(x.set.MaxUpload, "limits.max_upload")
	}
	body := &uploadReader{x: x, ctx: x.ctx, src: x.ctx.RequestBodyStream(), size: int64(size), left: x.set.MaxUpload, wait: x.set.Read}
	if x.route == passthroughRoute {
		if hasDotSegment(string(rawPath(h.RequestURI()))) {
			return &openai.Error{Status: 400, Type: "invalid_request_error", Code: "invalid_url", Message: "The path contains a dot segment. Send the path it stands for."}
		}
		if e := x.pin(); e != nil {
			return e
		}
		x.prepare(x.passes())
		x.req.Upload, x.req.UploadSize = body, size
		return nil
	}
	_, params, err := mime.ParseMediaType(string(h.ContentType()))
	if err != nil || params["boundary"] == "" || len(params["boundary"]) > 70 {
		return &openai.Error{Status: 400, Type: "invalid_request_error", Code: "invalid_multipart", Message: "The Content-Type names no valid multipart boundary."}
	}
	x.ask.PromptTokens = 1        // sound and images are no text
	if e := x.spend(); e != nil { // before anything is read, which may be kept on disk; the model is not known yet
		return e
	}
	f, err := readForm(body, size, params["boundary"], s.opt.TempDir, x.grant.Limited())
	if f != nil {
		x.form = f
	}
	if fe, ok := errors.AsType[*formError](err); ok {
		return x.errForm(fe)
	}
	switch {
	case errors.Is(err, errUploadTooLarge):
		return errTooLarge(x.set.MaxUpload, "limits.max_upload")
	case errors.Is(err, errNoModel):
		return errModelMissing()
	case errors.Is(err, errForm):
		return &openai.Error{Status: 400, Type: "invalid_request_error", Code: "invalid_multipart", Message: "The multipart body is malformed or ends before its last boundary."}
	case errors.Is(err, errSpool):
		s.log.Error("upload cannot be kept", "request_id", x.rec.ID, "error", err)
		return errInternal(x.rec.ID)
	case err != nil:
		return &openai.Error{Status: 400, Type: "invalid_request_error", Code: "incomplete_body", Message: "The request body ended before it was complete, or did not arrive in time (timeouts.read)."}
	}
	if e := x.setModel(f.model); e != nil {
		return e
	}
	if e := x.demands(); e != nil {
		return e
	}
	if e := x.assign(); e != nil {
		return e
	}
	x.ask.Affinity.Salt(x.grant.Salt())
	x.ask.BodyBytes, x.ask.Media = int64(max(0, size)), true
	if e := x.confined(); e != nil {
		return e
	}
	x.prepare(forwarded)
	return nil
}

// errForm is what a caller is told of his form.
func (x *exchange) errForm(fe *formError) *openai.Error {
	if fe.denied {
		return x.s.opt.Keys.NotAllowed(fe.param, "unsupported_parameter", fe.message)
	}
	return &openai.Error{Status: 400, Type: openai.TypeInvalidRequest, Param: fe.param, Code: "invalid_multipart", Message: fe.message}
}

var errUploadTooLarge = errors.New("upload too large")

// uploadReader reads the caller's body, each read with the whole time, up to a limit.
type uploadReader struct {
	x    *exchange
	ctx  *fasthttp.RequestCtx
	src  io.Reader
	size int64 // announced; negative when it was not
	left int64
	wait time.Duration
}

func (r *uploadReader) Read(p []byte) (int, error) {
	if r.src == nil {
		return 0, io.EOF
	}
	_ = r.ctx.SetReadDeadline(earlier(time.Now().Add(r.wait), r.x.totalBy)) // fails on a closed connection only, as the read will
	n, err := r.src.Read(p)
	if r.left -= int64(n); r.left < 0 {
		return 0, errUploadTooLarge
	}
	r.x.rec.BytesIn += int64(n)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF) && r.x.rec.BytesIn >= r.size:
		if r.x.conn != nil {
			r.x.conn.Linger(false)
			r.x.conn.Arm(&r.x.watch.self) // from here on nobody reads who would notice that the client left
		}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		r.x.watch.ClientGone(listen.Left)
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// form is a multipart body whose model is known. Either its beginning is here and the rest still
// with the caller, or all of it is in a file that has no name any more.
type form struct {
	model    []byte
	from, to int64 // where the model's value stands
	size     int   // whole body, -1 when chunked
	prefix   []byte
	rest     *countingReader
	file     *os.File
}

// countingReader passes the rest of a form on as far as hosts read nothing in it but what we do.
type countingReader struct {
	io.Reader
	scanner *formScanner
	n       int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	if c.scanner.feed(p[:n]); c.scanner.wrong != nil {
		return 0, c.scanner.wrong
	}
	return n, err
}

const formPrefix = 64 << 10 // how far the model is looked for before the body goes to disk

var (
	errNoModel = errors.New("no model in the form")
	errForm    = errors.New("malformed multipart body")
	errSpool   = errors.New("keep the upload on disk")
)

// readForm reads r until the model field is known. Clients that send the file first cost a
// temporary file; none costs memory.
func readForm(r io.Reader, size int, boundary, tempDir string, confined bool) (*form, error) {
	f := &form{size: size}
	sc := newFormScanner(boundary)
	sc.confined = confined
	buf := make([]byte, formPrefix)
	for len(f.prefix) < formPrefix && !sc.found && !sc.ended {
		n, err := r.Read(buf[:formPrefix-len(f.prefix)])
		f.prefix = append(f.prefix, buf[:n]...)
		if sc.feed(buf[:n]); sc.wrong != nil {
			return f, sc.wrong
		}
		if errors.Is(err, io.EOF) {
			sc.eof = true
			break
		}
		if err != nil {
			return f, err
		}
	}
	if sc.found {
		f.model, f.from, f.to = sc.value, sc.from, sc.to
		f.rest = &countingReader{Reader: r, scanner: sc}
		return f, nil
	}
	if !sc.eof && !sc.ended {
		if err := f.spool(r, sc, buf, tempDir); err != nil {
			return f, err
		}
	}
	switch {
	case sc.found:
		f.model, f.from, f.to = sc.value, sc.from, sc.to
		return f, nil
	case !sc.ended:
		return f, errForm
	default:
		return f, errNoModel
	}
}

func (f *form) spool(r io.Reader, sc *formScanner, buf []byte, dir string) error {
	file, err := os.CreateTemp(dir, "headrace-upload-*")
	if err != nil {
		return errors.Join(errSpool, err)
	}
	f.file = file
	_ = os.Remove(file.Name()) // the descriptor keeps it; it is gone with the process at the latest
	total, err := file.Write(f.prefix)
	for err == nil {
		var n int
		n, err = r.Read(buf)
		if sc.feed(buf[:n]); sc.wrong != nil {
			return sc.wrong
		}
		if _, werr := file.Write(buf[:n]); werr != nil {
			return errors.Join(errSpool, werr)
		}
		total += n
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	f.prefix, f.size = nil, total
	return nil
}

// reader returns the body with the model replaced by served, and its length, -1 when unknown.
func (f *form) reader(served string) (io.Reader, int) {
	size := f.size
	if size >= 0 {
		size += len(served) - int(f.to-f.from)
	}
	name := strings.NewReader(served)
	if f.file != nil {
		const whole = 1<<63 - 1
		return io.MultiReader(io.NewSectionReader(f.file, 0, f.from), name, io.NewSectionReader(f.file, f.to, whole-f.to)), size
	}
	return io.MultiReader(strings.NewReader(string(f.prefix[:f.from])), name, strings.NewReader(string(f.prefix[f.to:])), f.rest), size
}

// replayable tells whether reader can be called again: nothing but the prefix was read, or all is on disk.
func (f *form) replayable() bool { return f.file != nil || f.rest != nil && f.rest.n == 0 }

func (f *form) close() {
	if f.file != nil {
		_ = f.file.Close()
	}
}
