package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestUploadOfAnOldClient sends an upload by HTTP/1.0, as proxies do, whose answer comes in pieces.
func TestUploadOfAnOldClient(t *testing.T) {
	up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
		c.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
		for range 50 {
			c.sendChunk(strings.Repeat("word ", 1000))
		}
		c.send(lastChunk)
		return true
	})
	g := newRig(t, []string{up.url()})
	form := "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n" + model + "\r\n--x--\r\n"
	for range 20 {
		c := g.dial()
		c.send(fmt.Sprintf("POST /v1/audio/transcriptions HTTP/1.0\r\nHost: gw\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n%s", len(form), form))
		b, err := io.ReadAll(c.br)
		_, body, _ := strings.Cut(string(b), "\r\n\r\n")
		if err != nil || body != strings.Repeat("word ", 50_000) {
			t.Fatalf("%d bytes of body, %v", len(body), err)
		}
	}
	if strings.Contains(g.logs.String(), "panic") {
		t.Error(g.logs.String())
	}
	eventually(t, "no request in flight", func() bool { return g.srv.InFlight() == 0 })
}

// TestPassthroughHandsOnWhatCameWithTheHead has a host send its first event with the head and then nothing for long.
func TestPassthroughHandsOnWhatCameWithTheHead(t *testing.T) {
	up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
		first := "data: one\n\n"
		c.send(sseHead + fmt.Sprintf("%x\r\n%s\r\n", len(first), first))
		c.gone()
		return false
	})
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.Passthrough = "static:h0" })
	c := g.dial().send("GET /v1/threads/events HTTP/1.1\r\nHost: gw\r\n\r\n")
	res := c.response()
	b := make([]byte, len("data: one\n\n"))
	if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != "data: one\n\n" {
		t.Errorf("read %q, %v", b, err)
	}
	_ = c.Close()
}

// TestHeadComesAtOnce hands on an answer's head before there is a byte of its body, where it is passed on as it comes.
func TestHeadComesAtOnce(t *testing.T) {
	seen := make(chan struct{})
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		kind := "audio/mpeg"
		if r.Method == http.MethodGet {
			kind = "text/event-stream"
		}
		c.send("HTTP/1.1 200 OK\r\nContent-Type: " + kind + "\r\nTransfer-Encoding: chunked\r\n\r\n")
		select {
		case <-seen:
		case <-time.After(patience):
			t.Error("the caller has no head")
		}
		c.sendChunk("data: sound\n\n")
		c.send(lastChunk)
		return true
	})
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.Passthrough, o.set.FirstEvent, o.set.Gap = "static:h0", patience, patience })
	audio, events := post("/v1/audio/speech", `{"model":"m1"}`), "GET /v1/other HTTP/1.1\r\nHost: gw\r\n\r\n"
	for name, send := range map[string]string{
		"audio":             audio,
		"audio to HTTP/1.0": strings.Replace(audio, "HTTP/1.1", "HTTP/1.0", 1),
		"other events":      events,
	} {
		for _, dial := range []func() *client{g.dial, g.dialTLS} {
			c := dial().send(send)
			r := c.response()
			seen <- struct{}{}
			if b, err := io.ReadAll(r.Body); r.StatusCode != 200 || string(b) != "data: sound\n\n" || err != nil {
				t.Errorf("%s: %d %q %v", name, r.StatusCode, b, err)
			}
			_ = c.Close()
		}
	}
}

// TestNoContentType makes up none for an answer without one.
func TestNoContentType(t *testing.T) {
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		if strings.HasSuffix(r.URL.Path, "/empty") {
			c.send("HTTP/1.1 204 No Content\r\n\r\n")
		} else {
			c.send("HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(plainBody)) + "\r\n\r\n" + plainBody)
		}
		return true
	})
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.set.Passthrough, o.noTLS = "static:h0", true })
	for _, path := range []string{chatPath, "/v1/embeddings", "/v1/other", "/v1/empty"} {
		r, body, err := g.do(post(path, `{"model":"m1"}`))
		if ct, ok := r.Header["Content-Type"]; ok || r.StatusCode >= 300 || err != nil || (r.StatusCode == 200) != (body == plainBody) {
			t.Errorf("%s: %d, type %q, %q, %v", path, r.StatusCode, ct, body, err)
		}
	}
}
