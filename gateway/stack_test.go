package gateway

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"

	"headrace/router/experiment"
)

// heldHeap bounds what a held stream takes of the heap, with 6 KiB that the test's ends of its connections take.
const heldHeap = 17 << 10

// TestStackOfHeldStream holds streams open and looks at what their goroutines' stacks take: 4 KiB each. A stack doubles when anything
// that a request calls needs more room than there is, and stays so while the stream is held. What calls too deep shows where
// runtime.newstack, in a build with -overlay, prints a traceback. See "Memory of a silent stream" in ARCHITECTURE.md.
func TestStackOfHeldStream(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's frames are larger")
	}
	with := os.Getenv(memoryAlone)
	if with == "" { // other tests' goroutines come and go meanwhile
		for _, with := range []string{"nothing", "keys and an experiment"} {
			c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=1m") //nolint:gosec // this very test
			// Stacks begin with 2 KiB then.
			c.Env = append(os.Environ(), memoryAlone+"="+with, "GODEBUG=adaptivestackstart=0")
			out, err := c.CombinedOutput()
			t.Logf("with %s: %s", with, out)
			if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
				t.Errorf("in a process of its own, with %s: %v", with, err)
			}
		}
		return
	}
	const once, streams = 10, 200
	end := make(chan struct{})
	ln := listenLoopback(t)
	go func() { // one for all streams: it is the gateway's stacks that are to be seen
		var held []net.Conn // else they would be closed as garbage
		var ups []*upConn
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
			ups = append(ups, up)
			if len(ups) == once+streams { // and then they end, with all that a stream may end with
				for _, up := range ups[once:] {
					<-end
					up.sendChunk(stopEvent + useEvent + doneEvent)
					up.send(lastChunk)
				}
			}
		}
	}()
	urls := []string{"http://" + ln.Addr().String() + "/v1"}
	quiet := func(o *rigOptions) { o.noTLS, o.set.Gap, o.set.Total = true, time.Minute, time.Minute }
	var g *rig
	if with == "nothing" {
		g = newRig(t, urls, quiet)
	} else {
		g = newTrialRigOf(t, append(urls, urls...), func(_ *experiment.Spec, o *rigOptions) {
			quiet(o)
			o.keys = gateOf(nil)
		}, experiment.Unit{Kind: experiment.ByHeader, Header: "x-user"}, experiment.Unit{Kind: experiment.ByKey}).rig
	}
	t.Cleanup(func() { _ = ln.Close() }) // before the gateway drains
	var clients []*client
	hold := func(n int) {
		for range n {
			c := g.dial().send(ask(chatPath, `,"stream":true`, bearer(teamKey)))
			t.Cleanup(func() { _ = c.Close() })
			c.await(len("word"))
			clients = append(clients, c)
		}
	}
	hold(once) // what is there once
	before, heapBefore := stackBytes(), heapBytes()
	hold(streams)
	if each := (heapBytes() - heapBefore) / streams; each > heldHeap {
		t.Errorf("%d bytes of heap for each stream that is held, more than %d", each, heldHeap)
	} else {
		t.Logf("%d bytes of heap for each stream that is held", each)
	}
	small := func(when string) {
		each := (stackBytes() - before) / streams
		t.Logf("%d bytes of stack for each stream %s", each, when)
		if each > 6<<10 {
			t.Errorf("%d bytes of stack for each stream %s, more than one of 4 KiB and what lies between them", each, when)
		}
	}
	small("that is held")
	for _, c := range clients[once:] { // whose connections stay; one by one, for who waits for a lock needs more of a stack
		end <- struct{}{}
		for line := ""; line != "0\r\n"; { // the last chunk, behind which all is settled
			var err error
			if line, err = c.br.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
	}
	small("that has ended")
}

// heapBytes is what is in use of the heap, by the test's own ends of the connections as well.
func heapBytes() int64 {
	runtime.GC()
	runtime.GC() // pools keep what is in them for one
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64()) //nolint:gosec // less than there is memory
}

// stackBytes is the memory that stacks have.
func stackBytes() int64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64()) //nolint:gosec // less than there is memory
}
