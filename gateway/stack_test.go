package gateway

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime/metrics"
	"testing"
	"time"
)

// TestStackOfHeldStream holds streams open and looks at what their goroutines' stacks take: 4 KiB each. A stack doubles when anything
// that a request calls needs more room than there is, and stays so while the stream is held. What calls too deep shows where
// runtime.newstack, in a build with -overlay, prints a traceback. See "Memory of a silent stream" in ARCHITECTURE.md.
func TestStackOfHeldStream(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's frames are larger")
	}
	if os.Getenv(memoryAlone) == "" { // other tests' goroutines come and go meanwhile
		c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=1m") //nolint:gosec // this very test
		// Stacks begin with 2 KiB then.
		c.Env = append(os.Environ(), memoryAlone+"=1", "GODEBUG=adaptivestackstart=0")
		out, err := c.CombinedOutput()
		t.Logf("%s", out)
		if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
			t.Fatalf("in a process of its own: %v", err)
		}
		return
	}
	const streams = 200
	ln := listenLoopback(t)
	go func() { // one for all streams: it is the gateway's stacks that are to be seen
		var held []net.Conn // else they would be closed as garbage
		for {
			c, err := ln.Accept()
			if err != nil {
				for _, c := range held {
					_ = c.Close()
				}
				return
			}
			held = append(held, c)
			r, err := http.ReadRequest(bufio.NewReader(c))
			if err == nil {
				_, err = io.Copy(io.Discard, r.Body)
			}
			if err != nil {
				continue // the caller waits in vain for its token, and says so
			}
			up := &upConn{Conn: c}
			up.send(sseHead)
			up.sendChunk(roleEvent)
			up.sendChunk(tokenEvent("word"))
		}
	}()
	g := newRig(t, []string{"http://" + ln.Addr().String() + "/v1"}, func(o *rigOptions) { o.noTLS, o.set.Gap, o.set.Total = true, time.Minute, time.Minute })
	t.Cleanup(func() { _ = ln.Close() }) // before the gateway drains
	hold := func(n int) {
		for range n {
			c := g.dial().send(ask(chatPath, `,"stream":true`))
			t.Cleanup(func() { _ = c.Close() })
			c.await(len("word"))
		}
	}
	hold(10) // what is there once
	before := stackBytes()
	hold(streams)
	each := (stackBytes() - before) / streams
	t.Logf("%d bytes of stack for each stream", each)
	if each > 6<<10 {
		t.Errorf("%d bytes of stack for each stream, more than one of 4 KiB and what lies between them", each)
	}
}

// stackBytes is the memory that stacks have.
func stackBytes() int64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64()) //nolint:gosec // less than there is memory
}
