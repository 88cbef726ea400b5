package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"os"
	"strings"
	"testing"

	"headrace/gateway/admission"
	"headrace/router"
	"headrace/router/outcome"
)

const (
	uploadPath = "/v1/audio/transcriptions"
	boundary   = "xYzBoundary7"
	asrAnswer  = `{"text":"hello"}`
)

// part is one field of a form.
func part(name, file, value string) string {
	s := "--" + boundary + "\r\nContent-Disposition: form-data; name=\"" + name + "\""
	if file != "" {
		s += "; filename=\"" + file + "\"\r\nContent-Type: audio/wav"
	}
	return s + "\r\n\r\n" + value + "\r\n"
}

const formEnd = "--" + boundary + "--\r\n"

// uploadHead is the head of a form's request; a negative size means chunked.
func uploadHead(size int, headers ...string) string {
	length := fmt.Sprintf("Content-Length: %d", size)
	if size < 0 {
		length = "Transfer-Encoding: chunked"
	}
	var h strings.Builder
	for _, l := range headers {
		h.WriteString(l + "\r\n")
	}
	return "POST " + uploadPath + " HTTP/1.1\r\nHost: gw\r\nContent-Type: multipart/form-data; boundary=" + boundary + "\r\n" + h.String() + length + "\r\n\r\n"
}

func upload(body string, headers ...string) string { return uploadHead(len(body), headers...) + body }

// chunkedBody frames a body in chunks of n bytes.
func chunkedBody(body string, n int) string {
	var b strings.Builder
	for len(body) > 0 {
		k := min(n, len(body))
		fmt.Fprintf(&b, "%x\r\n%s\r\n", k, body[:k])
		body = body[k:]
	}
	return b.String() + "0\r\n\r\n"
}

// received is what a host made of a form.
type received struct {
	fields map[string]string
	body   string
	length int64
	err    error
}

// formHost reads forms as servers do and answers.
func formHost(t testing.TB) (*upstream, chan received) {
	t.Helper()
	got := make(chan received, 16)
	return newUpstream(t, func(c *upConn, r *upRequest) bool {
		rec := received{fields: map[string]string{}, body: string(r.body), length: r.ContentLength}
		mr := multipart.NewReader(bytes.NewReader(r.body), boundary)
		for {
			p, err := mr.NextPart()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				rec.err = err
				break
			}
			b, err := io.ReadAll(p)
			if err != nil {
				rec.err = err
				break
			}
			rec.fields[p.FormName()] = string(b)
		}
		got <- rec
		c.send(jsonAnswer(200, asrAnswer))
		return true
	}), got
}

// aliased offers the hosts' model under another name.
func aliased(o *rigOptions) {
	o.rules = []router.ModelRule{{Name: "whisper", Serves: []string{model}}}
}

// A second model behind what has gone to the host already: the host never sees its value, nor an end of the form.
func TestUploadSecondModelLate(t *testing.T) {
	up := newWatched(t)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.noTLS = true })
	long := part("file", "a.wav", strings.Repeat("RIFF", 100_000))
	for name, body := range map[string]string{
		"announced": upload(part("model", "", model) + long + part("Model", "", "secret-70b") + formEnd),
		"two":       upload(part("model", "", model) + long + part("model", "", "secret-70b") + long + formEnd),
	} {
		r, b, err := g.do(body)
		if err != nil || r.StatusCode != 400 || parseError(t, b).Code != "invalid_multipart" {
			t.Errorf("%s: %v %s %v", name, r, b, err)
		}
	}
	if got := up.all(); strings.Contains(got, "secret-70b") || strings.Contains(got, formEnd) {
		t.Error("the host got the other model, or all of the form")
	}
}

// A key's limits are asked for before anything of an upload is read: what comes beyond them is not kept on disk.
func TestUploadBeyondLimits(t *testing.T) {
	up := newCounter(t)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.noTLS = true
		o.keys = gateOf(func(k *admission.Key) { k.Concurrency = 1 })
	})
	g.goDo(post(chatPath, fmt.Sprintf(`{"model":%q,"stream":true,"messages":[]}`, model), bearer(teamKey)))
	at := wait(t, up.came, "the one")
	head := part("file", "a.wav", strings.Repeat("x", 1<<20))
	answer := g.goDo(uploadHead(4<<20, bearer(teamKey)) + head) // the rest never comes
	if a := wait(t, answer, "a refusal"); a.StatusCode != 429 {
		t.Errorf("%d", a.StatusCode)
	}
	close(at.serve)
}

// TestUpload sends forms in every order and framing; hosts get them whole, with their own name of the model.
func TestUpload(t *testing.T) {
	file := strings.Repeat("RIFF\r\n--xYz\x00\xff", 30_000)
	first := part("model", "", "whisper") + part("language", "", "en") + part("file", "a.wav", file) + formEnd
	last := part("file", "a.wav", file) + part("model", "", "whisper") + formEnd
	small := part("file", "a.wav", "tiny") + part("model", "", "whisper") + formEnd
	for name, tc := range map[string]struct {
		request string
		chunked bool // the host gets it chunked
		file    string
	}{
		"model first":           {upload(first), false, file},
		"model last":            {upload(last), false, file},
		"small, model last":     {upload(small), false, "tiny"},
		"chunked, model first":  {uploadHead(-1) + chunkedBody(first, 7001), true, file},
		"chunked, model last":   {uploadHead(-1) + chunkedBody(last, 999), false, file},
		"chunked, small":        {uploadHead(-1) + chunkedBody(small, 3), true, "tiny"},
		"preamble and epilogue": {upload("ignored\r\n" + first + "ignored"), false, file},
		"quoted boundary":       {strings.Replace(upload(first), "boundary="+boundary, `boundary="`+boundary+`"`, 1), false, file},
	} {
		t.Run(name, func(t *testing.T) {
			up, got := formHost(t)
			g := newRig(t, []string{up.url()}, aliased, func(o *rigOptions) { o.tempDir = t.TempDir() })
			for i, dial := range []func() *client{g.dial, g.dialTLS} {
				r, body, err := dial().send(tc.request).whole()
				if err != nil || r.StatusCode != 200 || body != asrAnswer {
					t.Fatalf("%d %q %v", r.StatusCode, body, err)
				}
				rec := wait(t, got, "the form at the host")
				if rec.err != nil || rec.fields["model"] != model || rec.fields["file"] != tc.file {
					t.Fatalf("the host read model %q and a file of %d bytes (%v), want %q and %d", rec.fields["model"], len(rec.fields["file"]), rec.err, model, len(tc.file))
				}
				if tc.chunked != (rec.length < 0) || rec.length >= 0 && rec.length != int64(len(rec.body)) {
					t.Errorf("Content-Length %d for %d bytes", rec.length, len(rec.body))
				}
				if rec := g.recordN(i); rec.Class != outcome.Success || rec.Model != "whisper" || rec.Served != model || rec.BytesIn == 0 {
					t.Errorf("record: %v, model %q, served %q, %d bytes in", rec.Class, rec.Model, rec.Served, rec.BytesIn)
				}
			}
			if left, _ := os.ReadDir(g.srv.opt.TempDir); len(left) != 0 {
				t.Errorf("temporary files were left: %v", left)
			}
		})
	}
}

// TestUploadStreams has the host see the beginning while the client still holds the end back.
func TestUploadStreams(t *testing.T) {
	begun, ended := make(chan string, 1), make(chan int, 1)
	up := newRawUpstream(t, func(c *upConn, r *upRequest) bool {
		b := make([]byte, 1000)
		n, _ := io.ReadFull(r.Body, b)
		begun <- string(b[:n])
		rest, _ := io.ReadAll(r.Body)
		ended <- n + len(rest)
		c.send(jsonAnswer(200, asrAnswer))
		return true
	})
	for _, portable := range []bool{false, true} {
		g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.portable = portable })
		for _, dial := range []func() *client{g.dial, g.dialTLS} {
			body := part("model", "", model) + part("file", "a.wav", strings.Repeat("x", 200_000)) + formEnd
			c := dial().send(uploadHead(len(body)) + body[:100_000])
			if b := wait(t, begun, "the first bytes at the host"); b != body[:1000] {
				t.Errorf("the host got %q first", b)
			}
			for i := 100_000; i < len(body); i += 7919 {
				c.send(body[i:min(i+7919, len(body))])
			}
			if n := wait(t, ended, "the whole body at the host"); n != len(body) {
				t.Errorf("the host got %d bytes, want %d", n, len(body))
			}
			if r, got, err := c.whole(); err != nil || r.StatusCode != 200 || got != asrAnswer {
				t.Errorf("%d %q %v", r.StatusCode, got, err)
			}
		}
	}
}

// TestUploadRefused answers what cannot be served, while the client may still be sending.
func TestUploadRefused(t *testing.T) {
	file := part("file", "a.wav", strings.Repeat("x", 100_000))
	up, _ := formHost(t)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.MaxUpload = 300_000 })
	tooBig := part("file", "a.wav", strings.Repeat("x", 400_000))
	for name, tc := range map[string]struct {
		request, code string
		status        int
	}{
		"wrong boundary":                {strings.Replace(upload(part("model", "", model)+file+formEnd), "boundary="+boundary, "boundary=other", 1), "invalid_multipart", 400},
		"no boundary":                   {strings.Replace(upload(part("model", "", model)+formEnd), "; boundary="+boundary, "", 1), "invalid_multipart", 400},
		"boundary too long":             {strings.Replace(upload(part("model", "", model)+formEnd), "boundary="+boundary, "boundary="+strings.Repeat("b", 71), 1), "invalid_multipart", 400},
		"no model":                      {upload(file + formEnd), "missing_required_parameter", 400},
		"no model, small":               {upload(part("language", "", "en") + formEnd), "missing_required_parameter", 400},
		"the model is a file":           {upload(part("model", "m1.bin", model) + formEnd), "invalid_multipart", 400},
		"two models":                    {upload(part("model", "", model) + file + part("model", "", "other") + formEnd), "invalid_multipart", 400},
		"two models, the file first":    {upload(file + part("Model", "", "other") + part("model", "", model) + formEnd), "invalid_multipart", 400},
		"unknown model":                 {upload(part("model", "", "nope") + file + formEnd), "model_not_found", 404},
		"no end":                        {upload(part("file", "a.wav", "x")), "invalid_multipart", 400},
		"announced too large":           {upload(part("model", "", model) + tooBig + formEnd), "request_too_large", 413},
		"chunked too large, model 1st":  {uploadHead(-1) + chunkedBody(part("model", "", model)+tooBig+formEnd, 10_000), "request_too_large", 413},
		"chunked too large, model last": {uploadHead(-1) + chunkedBody(tooBig+part("model", "", model)+formEnd, 10_000), "request_too_large", 413},
		"not multipart":                 {post(uploadPath, "{}"), "unsupported_media_type", 415},
		"malformed chunks":              {uploadHead(-1) + "zz\r\n", "incomplete_body", 400},
	} {
		t.Run(name, func(t *testing.T) {
			c := g.dial()
			_, _ = io.WriteString(c.Conn, tc.request) // may fail when the answer came first
			r, body, err := c.whole()
			if e := parseError(t, body); err != nil || r.StatusCode != tc.status || e.Code != tc.code {
				t.Errorf("%d %q %v, want %d %q", r.StatusCode, body, err, tc.status, tc.code)
			}
		})
	}
}

// TestTooLarge refuses a JSON body by its announced and by its real size; the client gets to read why.
func TestTooLarge(t *testing.T) {
	up := newUpstream(t, answering)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.MaxBody = 10_000 })
	body := `{"model":"m1","messages":[{"content":"` + strings.Repeat("x", 1<<20) + `"}]}`
	for name, request := range map[string]string{
		"announced": post(chatPath, body),
		"chunked":   "POST " + chatPath + " HTTP/1.1\r\nHost: gw\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + chunkedBody(body, 1000),
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				c := g.dial()
				_, _ = io.WriteString(c.Conn, request)
				r, got, err := c.whole()
				if e := parseError(t, got); err != nil || r.StatusCode != 413 || e.Code != "request_too_large" {
					t.Fatalf("%d %q %v", r.StatusCode, got, err)
				}
			}
		})
	}
}

// TestUploadContinue waits for leave to send, as curl does.
func TestUploadContinue(t *testing.T) {
	up, got := formHost(t)
	g := newRig(t, []string{up.url()}, aliased)
	body := part("model", "", "whisper") + part("file", "a.wav", strings.Repeat("x", 100_000)) + formEnd
	c := g.dial().send(uploadHead(len(body), "Expect: 100-continue"))
	if r := c.response(); r.StatusCode != 100 {
		t.Fatalf("status %d before the body was sent", r.StatusCode)
	}
	c.send(body)
	r := c.response()
	for r.StatusCode == 100 { // more than one is allowed (RFC 9110 section 15.2)
		r = c.response()
	}
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != 200 || string(b) != asrAnswer {
		t.Errorf("%d %q %v", r.StatusCode, b, err)
	}
	if rec := wait(t, got, "the form"); rec.fields["model"] != model || len(rec.fields["file"]) != 100_000 {
		t.Errorf("the host got model %q and %d bytes", rec.fields["model"], len(rec.fields["file"]))
	}
}
