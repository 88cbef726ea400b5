package gateway

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"headrace/router/endpoint"
)

// memoryAlone is set in the process in which TestMemoryBehindASeam is alone.
const memoryAlone = "HEADRACE_TEST_ALONE"

// TestMemoryBehindASeam holds streams open that were gone on with, beside as many that were not followed at all: what is kept of each is
// at most twice its text, as docs/continuation.md says.
func TestMemoryBehindASeam(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has memory of its own")
	}
	if os.Getenv(memoryAlone) == "" { // other tests take and give back memory meanwhile
		c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=1m") //nolint:gosec // this very test
		c.Env = append(os.Environ(), memoryAlone+"=1")
		out, err := c.CombinedOutput()
		t.Logf("%s", out)
		if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
			t.Fatalf("in a process of its own: %v", err)
		}
		return
	}
	const (
		streams = 40
		piece   = 5 * 614
		before  = 22 * piece // a little more than 64 KiB, for which 128 KiB are taken
		after   = 2 * piece
		slack   = 12 << 10 // the tale, its notes, and what the allocator rounds up
	)
	words := strings.Repeat("word ", piece/5)
	// Each host sends so much and then falls silent, or is lost, when it is told to.
	perStream := func(continued bool) int64 {
		quiet, lose, done := make(chan struct{}, 2*streams), make(chan struct{}), make(chan struct{})
		defer close(done)
		send := func(c *upConn, n int) {
			c.send(sseHead)
			c.sendChunk(roleEvent)
			for range n / piece {
				c.sendChunk(tokenEvent(words))
			}
		}
		first := func(c *upConn, r *upRequest) bool {
			r.body = nil
			if !continued {
				send(c, before+after)
				quiet <- struct{}{}
				<-done
				return false
			}
			send(c, before)
			quiet <- struct{}{}
			select {
			case <-lose:
				c.reset()
			case <-done: // the test has failed
			}
			return false
		}
		second := func(c *upConn, r *upRequest) bool {
			r.body = nil
			send(c, after)
			quiet <- struct{}{}
			<-done
			return false
		}
		a, b := newUpstream(t, first), newUpstream(t, second)
		g := newRig(t, []string{a.url(), b.url()}, func(o *rigOptions) {
			o.set.MaxResumes, o.set.MaxContinuation, o.set.Stall, o.set.Gap = 4, 1<<20, time.Minute, time.Minute
			o.noTLS = true
			o.edit = func(eps []endpoint.Endpoint) {
				for i := range eps {
					eps[i].Tenure = endpoint.Interruptible
				}
			}
		})
		for i := range 2 {
			g.router.SetPrefill(endpoint.ID(fmt.Sprintf("static:h%d", i)), model, goesOn)
		}
		g.router.Drain("static:h1", true) // until all have begun
		idle := heap()
		var callers []*client
		var header []string
		want := before + after
		if !continued {
			header = []string{"x-headrace-on-preemption: fail"}
		}
		for range streams {
			c := g.dial().send(ask(chatPath, `,"stream":true`, header...))
			callers = append(callers, c)
			if continued {
				c.await(before)
			}
		}
		for range streams {
			wait(t, quiet, "a host to have sent its part")
		}
		if continued {
			g.router.Drain("static:h1", false)
			close(lose)
			for range streams {
				wait(t, quiet, "the other host to have sent its part")
			}
		}
		for _, c := range callers {
			c.await(want)
		}
		used := heap()
		for _, c := range callers {
			_ = c.Close()
		}
		for i := range streams {
			if r := g.recordN(i); (r.Resumes == 1) != continued {
				t.Fatalf("%d resumes, class %s", r.Resumes, r.Class)
			}
		}
		return used - idle
	}
	perStream(true)             // what is taken once
	for tries := 1; ; tries++ { // what other tests have left may go meanwhile
		plain, continued := perStream(false), perStream(true)
		each := (continued - plain) / streams
		t.Logf("%d bytes of text, %d bytes kept of it", before+after, each)
		switch {
		case each >= before && each <= 2*(before+after)+slack:
			return
		case tries < 3:
		case each < before:
			t.Fatalf("%d bytes are kept of %d bytes of text: this measures something else", each, before+after)
		default:
			t.Fatalf("%d bytes are kept of %d bytes of text, more than twice that", each, before+after)
		}
	}
}

// heap is what is in use when nothing is garbage, once it is the same twice.
func heap() int64 {
	was := int64(0)
	for range 50 {
		for range 3 { // what pools hold goes with the second
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		is := int64(m.HeapAlloc) //nolint:gosec // less than there is memory
		if d := is - was; -4<<10 < d && d < 4<<10 {
			return is
		}
		was = is
	}
	return was
}

// await reads until so many bytes of text have come.
func (c *client) await(text int) {
	c.t.Helper()
	for c.text < text {
		line, err := c.br.ReadString('\n')
		if err != nil {
			c.t.Fatalf("after %d bytes of text: %v", c.text, err)
		}
		if _, rest, ok := strings.Cut(line, `"content":"`); ok {
			said, _, _ := strings.Cut(rest, `"`)
			c.text += len(said)
		}
	}
}
