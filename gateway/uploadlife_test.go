package gateway

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"mime/multipart"
	"net/textproto"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// TestUploadRetry sends a form again where that is possible, and does not where it is not.
func TestUploadRetry(t *testing.T) {
	small := upload(part("model", "", model) + part("file", "a.wav", "tiny") + formEnd)
	spooled := upload(part("file", "a.wav", strings.Repeat("x", 200_000)) + part("model", "", model) + formEnd)
	streamed := upload(part("model", "", model) + part("file", "a.wav", strings.Repeat("x", 2<<20)) + formEnd)
	failing := func(c *upConn, _ *upRequest) bool { c.send(jsonAnswer(500, "{}")); return true }
	for name, tc := range map[string]struct {
		request string
		dead    bool // nobody listens at the first host
		status  int
		tries   int
	}{
		"small":                   {small, false, 200, 2},
		"on disk":                 {spooled, false, 200, 2},
		"streamed":                {streamed, false, 502, 1},
		"streamed to a dead host": {streamed, true, 200, 2},
		"on disk to a dead host":  {spooled, true, 200, 2},
	} {
		t.Run(name, func(t *testing.T) {
			bad := refusing
			if !tc.dead {
				bad = newUpstream(t, failing).url()
			}
			good, got := formHost(t)
			g := newRig(t, []string{bad, good.url()})
			r, body, err := g.do(tc.request)
			if err != nil || r.StatusCode != tc.status {
				t.Fatalf("%d %q %v, want %d", r.StatusCode, body, err, tc.status)
			}
			if rec := g.recordN(0); rec.Tries != tc.tries {
				t.Errorf("%d tries, want %d", rec.Tries, tc.tries)
			}
			if tc.status == 200 {
				if rec := wait(t, got, "the form"); rec.err != nil || rec.fields["model"] != model {
					t.Errorf("the second host got %q, %v", rec.fields["model"], rec.err)
				}
			}
		})
	}
}

// TestUploadClientLeaves goes away in the middle, and behind the end while the host works.
func TestUploadClientLeaves(t *testing.T) {
	for _, portable := range []bool{false, true} {
		for _, model1st := range []bool{true, false} {
			for _, whole := range []bool{false, true} {
				if !model1st && !whole {
					continue // nothing has gone to a host then
				}
				t.Run(fmt.Sprintf("portable=%t/first=%t/whole=%t", portable, model1st, whole), func(t *testing.T) {
					began, closed := make(chan struct{}, 1), make(chan time.Time, 1)
					up := newRawUpstream(t, func(c *upConn, r *upRequest) bool {
						began <- struct{}{}
						_, _ = io.Copy(io.Discard, r.Body)
						_, _ = c.br.ReadByte()
						closed <- time.Now()
						return false
					})
					g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.portable = portable; o.set.MaxRetries = 0 })
					file := part("file", "a.wav", strings.Repeat("x", 200_000))
					body := part("model", "", model) + file + formEnd
					if !model1st {
						body = file + part("model", "", model) + formEnd
					}
					sent := len(body)
					if !whole {
						sent /= 2
					}
					var worst time.Duration
					n := 0
					for _, dial := range []func() *client{g.dial, g.dialTLS} {
						inTime(t, &worst, func() time.Duration {
							c := dial().send(uploadHead(len(body)) + body[:sent])
							wait(t, began, "the form at the host")
							from := time.Now()
							_ = c.Close()
							took := wait(t, closed, "the host to be freed").Sub(from)
							if rec := g.recordN(n); rec.Class != outcome.ClientGone {
								t.Errorf("recorded as %v", rec.Class)
							}
							n++
							return took
						})
					}
					t.Logf("slowest %v", worst)
				})
			}
		}
	}
	t.Run("before the model", func(t *testing.T) {
		g := newRig(t, []string{refusing})
		body := part("file", "a.wav", strings.Repeat("x", 200_000))
		c := g.dial().send(uploadHead(len(body)+100) + body)
		_ = c.Close()
		if rec := g.recordN(0); rec.Tries != 0 || rec.Status != 499 {
			t.Errorf("record: %d tries, status %d", rec.Tries, rec.Status)
		}
	})
}

// TestUploadSlow cuts a client that stops sending.
func TestUploadSlow(t *testing.T) {
	up := newRawUpstream(t, func(c *upConn, r *upRequest) bool {
		_, _ = io.Copy(io.Discard, r.Body)
		return false
	})
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.Read = 100 * time.Millisecond })
	file := part("file", "a.wav", strings.Repeat("x", 200_000))
	for name, tc := range map[string]struct {
		request string
		status  int
	}{
		"nearly at once":            {uploadHead(1000) + part("file", "a.wav", "x"), 408},
		"in the middle, model 1st":  {uploadHead(1<<20) + part("model", "", model) + file, 400},
		"in the middle, model last": {uploadHead(1<<20) + file, 400},
	} {
		r, body, err := g.do(tc.request)
		if e := parseError(t, body); err != nil || r.StatusCode != tc.status {
			t.Errorf("%s: %d %q (%s) %v", name, r.StatusCode, body, e.Code, err)
		}
	}
	if h := g.host(0); h.Failures != 0 {
		t.Errorf("slow clients count against the host: %d failures", h.Failures)
	}
}

// pattern is an endless reader that costs no memory.
type pattern struct{ left int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.left <= 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.left))
	for i := range b[:n] {
		b[i] = byte(i)
	}
	p.left -= int64(n)
	return n, nil
}

// TestUploadMemory sends 200 MB, the model first and last: memory stays flat.
func TestUploadMemory(t *testing.T) {
	size := int64(200 << 20)
	if testing.Short() || raceEnabled {
		size = 50 << 20
	}
	var got atomic.Int64
	up := newRawUpstream(t, func(c *upConn, r *upRequest) bool {
		n, _ := io.Copy(io.Discard, r.Body)
		got.Store(n)
		c.send(jsonAnswer(200, asrAnswer))
		return true
	})
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.MaxUpload = 1 << 30; o.tempDir = t.TempDir() })
	for _, first := range []bool{true, false} {
		before, after := part("model", "", model)+strings.TrimSuffix(part("file", "a.wav", ""), "\r\n"), "\r\n"+formEnd
		if !first {
			before, after = strings.TrimSuffix(part("file", "a.wav", ""), "\r\n"), "\r\n"+part("model", "", model)+formEnd
		}
		total := int64(len(before)) + size + int64(len(after))
		runtime.GC()
		var start runtime.MemStats
		runtime.ReadMemStats(&start)
		c := g.dial()
		_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
		done := make(chan error, 1)
		go func() {
			_, err := io.Copy(c.Conn, io.MultiReader(strings.NewReader(uploadHead(int(total))+before), &pattern{size}, strings.NewReader(after)))
			done <- err
		}()
		var peak uint64
		var ms runtime.MemStats
		tick := time.NewTicker(20 * time.Millisecond)
	sending:
		for {
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
				break sending
			case <-tick.C:
				runtime.ReadMemStats(&ms)
				peak = max(peak, ms.HeapAlloc)
			}
		}
		tick.Stop()
		r, body, err := c.whole()
		if err != nil || r.StatusCode != 200 || got.Load() != total {
			t.Fatalf("model first %t: %d %q %v, %d of %d bytes arrived", first, r.StatusCode, body, err, got.Load(), total)
		}
		runtime.ReadMemStats(&ms)
		grown := int64(max(peak, ms.HeapAlloc)) - int64(start.HeapAlloc)
		t.Logf("model first %t: the heap grew by %d KiB, %d KiB were allocated, for %d MiB", first, grown>>10, (ms.TotalAlloc-start.TotalAlloc)>>10, size>>20)
		if grown > 8<<20 {
			t.Errorf("the heap grew by %d bytes", grown)
		}
	}
}

// TestPassthroughUpload hands a form on to the one host for unknown paths, whatever is in it.
func TestPassthroughUpload(t *testing.T) {
	got := make(chan string, 1)
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		got <- r.URL.String() + " " + r.Header.Get("Content-Type") + " " + hex.EncodeToString(r.body)
		c.send(jsonAnswer(201, `{"id":"file-1"}`))
		return true
	})
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.Passthrough = endpoint.ID("static:h0") })
	body := part("purpose", "", "batch") + part("file", "a.jsonl", "{}\n") + formEnd
	r, answer, err := g.do(strings.Replace(upload(body), uploadPath, "/v1/files?x=1", 1))
	if err != nil || r.StatusCode != 201 || answer != `{"id":"file-1"}` {
		t.Errorf("%d %q %v", r.StatusCode, answer, err)
	}
	if want := "/v1/files?x=1 multipart/form-data; boundary=" + boundary + " " + hex.EncodeToString([]byte(body)); wait(t, got, "the form") != want {
		t.Error("the form did not arrive as it was sent")
	}
}

// formBytes writes a form as Go's own library does.
func formBytes(t testing.TB, fields ...[2]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	if err := w.SetBoundary(boundary); err != nil {
		t.Fatal(err)
	}
	for _, f := range fields {
		h := textproto.MIMEHeader{"Content-Disposition": {`form-data; name="` + f[0] + `"`}}
		p, err := w.CreatePart(h)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(p, f[1])
	}
	_ = w.Close()
	return b.Bytes()
}
