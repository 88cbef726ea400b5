package gateway

import (
	"fmt"
	"io"
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
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, len("data: one\n\n"))
	if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != "data: one\n\n" {
		t.Errorf("read %q, %v", b, err)
	}
	_ = c.Close()
}
