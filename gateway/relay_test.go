package gateway

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/valyala/fasthttp"

	"headrace/gateway/forward"
	"headrace/gateway/openai"
	"headrace/gateway/sse"
	"headrace/router/endpoint"
)

// sink is a client that takes everything.
type sink struct {
	net.Conn
	n int
}

func (s *sink) Write(p []byte) (int, error)      { s.n += len(p); return len(p), nil }
func (s *sink) SetWriteDeadline(time.Time) error { return nil }
func (s *sink) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *sink) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

// relayRig is an exchange in the middle of its stream, with the host's end of the connection at hand.
type relayRig struct {
	x    *exchange
	d    down
	host net.Conn
}

func newRelayRig(t testing.TB, out net.Conn) *relayRig {
	t.Helper()
	ln := listenLoopback(t)
	fwd := forward.New(forward.Options{})
	if err := fwd.Update([]endpoint.Endpoint{{ID: "static:h0", BaseURL: "http://" + ln.Addr().String()}}); err != nil {
		t.Fatal(err)
	}
	set := defaults().set
	x := &exchange{sending: new(sending), set: &set, route: routes[chatPath], watch: &watch{}, attempt: new(forward.Attempt), ctx: &fasthttp.RequestCtx{}}
	x.ctx.Init2(out, nil, true)
	x.req = forward.Request{Method: "POST", Path: chatPath, Body: [][]byte{[]byte("{}")}, Size: 2}
	x.totalBy = time.Now().Add(time.Hour)
	if err := x.attempt.Start(fwd.Host("static:h0"), &x.watch.Guard, &x.req, time.Now()); err != nil {
		t.Fatal(err)
	}
	host, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if _, err := io.WriteString(host, sseHead); err != nil {
		t.Fatal(err)
	}
	if err := x.attempt.AwaitHead(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	x.isStream, x.phase, x.wrote, x.dropUsage = true, ready, true, true
	t.Cleanup(func() { _ = host.Close(); x.attempt.Finish() })
	return &relayRig{x: x, d: down{w: out, conn: out}, host: host}
}

// follow has the answer followed, so that another host could go on with it.
func (r *relayRig) follow(t testing.TB) {
	t.Helper()
	set := *r.x.set
	set.MaxResumes, set.MaxContinuation, set.Stall = 1, 1<<30, 5*time.Second
	r.x.set, r.x.tale = &set, tales.Get().(*tale)
	r.x.beginTale()
	t.Cleanup(r.x.endTale)
}

// relay passes one piece of the wire on, as relay's loop does.
func (r *relayRig) relay(t testing.TB, wire []byte, by time.Time) { //nolint:thelper // a benchmark's inner loop
	if _, err := r.host.Write(wire); err != nil {
		t.Fatal(err)
	}
	if err := r.x.attempt.More(by, time.Hour); err != nil {
		t.Fatal(err)
	}
	r.x.scanEvents(time.Now())
	if err := r.x.deliver(&r.d); err != nil {
		t.Fatal(err)
	}
}

// oneChunk frames events as one chunk.
func oneChunk(events ...string) []byte {
	s := strings.Join(events, "")
	return []byte(strings.TrimSuffix(chunkedBody(s, len(s)), lastChunk))
}

// TestRelayAllocatesNothing guards the way of a token.
func TestRelayAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	crlf := strings.ReplaceAll(tokenEvent("x"), "\n", "\r\n")
	for name, wire := range map[string][]byte{
		"one event":           oneChunk(tokenEvent("hello")),
		"several at once":     oneChunk(tokenEvent("a"), tokenEvent("b"), tokenEvent("c")),
		"CRLF":                oneChunk(crlf),
		"comment":             oneChunk(": keep-alive\n\n", tokenEvent("a")),
		"usage, which is cut": oneChunk(tokenEvent("a"), useEvent),
		"8 KiB":               oneChunk(tokenEvent(strings.Repeat("x", 8<<10))),
		"numbered":            oneChunk(strings.Replace(tokenEvent("a"), `"finish_reason":null`, `"finish_reason":null,"token_ids":[128000]`, 1)),
	} {
		t.Run(name, func(t *testing.T) {
			for _, followed := range []bool{false, true} {
				out := &sink{}
				r := newRelayRig(t, out)
				if r.x.numbered = name == "numbered"; followed {
					r.follow(t)
				}
				by := time.Now().Add(time.Hour)
				r.relay(t, wire, by) // the first one sets the deadline
				if n := testing.AllocsPerRun(200, func() { r.relay(t, wire, by) }); n != 0 {
					t.Errorf("%v allocations for each, followed %t", n, followed)
				}
				if out.n == 0 || r.x.m.outputs < 200 {
					t.Errorf("%d bytes passed, %d tokens seen", out.n, r.x.m.outputs)
				}
				if followed && r.x.tale.story.Size() < 200 {
					t.Errorf("%d bytes of text were kept", r.x.tale.story.Size())
				}
			}
		})
	}
}

// TestScanAllocatesNothing guards scanner, parser and meter, events of every protocol included.
func TestScanAllocatesNothing(t *testing.T) {
	stream := []byte(tokenEvent("a") + stopEvent + useEvent + doneEvent +
		"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"x\"}}\n\n" +
		"event: response.output_text.delta\r\ndata: {\"type\":\"response.output_text.delta\",\r\ndata: \"delta\":\"x\"}\r\n\r\n")
	var sc sse.Scanner
	var c openai.Chunk
	var m meter
	now := time.Now()
	scan := func() {
		sc.Reset()
		for b := stream; ; {
			ev, ok := sc.Next(b)
			if !ok {
				return
			}
			c.Parse(ev.Name, ev.Data)
			m.see(&c, now)
			b = b[ev.Size:]
		}
	}
	scan()
	if n := testing.AllocsPerRun(200, scan); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if m.outputs < 3*200 || !m.done || !m.hasUsage {
		t.Errorf("%d tokens seen, done %t, usage %t", m.outputs, m.done, m.hasUsage)
	}
}

// BenchmarkRelayEvent is a token's way through the gateway, the system calls on both sides included.
func BenchmarkRelayEvent(b *testing.B) {
	for _, c := range []struct {
		name     string
		n        int
		followed bool
		numbered bool
	}{
		{"one a write", 1, false, false},
		{"one a write, followed", 1, true, false},
		{"one a write, numbered", 1, true, true},
		{"ten a write", 10, false, false},
		{"ten a write, followed", 10, true, false},
		{"ten a write, numbered", 10, true, true},
	} {
		n := c.n
		b.Run(c.name, func(b *testing.B) {
			ln := listenLoopback(b)
			caller, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			ours, err := ln.Accept()
			if err != nil {
				b.Fatal(err)
			}
			drained := make(chan struct{})
			go func() { defer close(drained); _, _ = io.Copy(io.Discard, caller) }()
			r := newRelayRig(b, ours)
			if c.followed {
				r.follow(b)
			}
			event := tokenEvent("hello")
			if c.numbered {
				r.x.numbered = true
				event = strings.Replace(event, `"finish_reason":null`, `"finish_reason":null,"token_ids":[128000]`, 1)
			}
			wire := oneChunk(strings.Repeat(event, n))
			by := time.Now().Add(time.Hour)
			b.ReportAllocs()
			for i := 0; b.Loop(); i += n {
				if c.followed && i >= 1000 { // tokens of a long answer
					i = 0
					r.x.beginTale()
				}
				r.relay(b, wire, by)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/event")
			_ = ours.Close()
			<-drained
			_, _ = caller.Close(), ln.Close()
		})
	}
}

// BenchmarkScanEvent is the same without system calls: scanner, parser and meter.
func BenchmarkScanEvent(b *testing.B) {
	ev := []byte(tokenEvent("hello"))
	var sc sse.Scanner
	var c openai.Chunk
	var m meter
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		e, _ := sc.Next(ev)
		c.Parse(e.Name, e.Data)
		now = now.Add(time.Millisecond)
		m.see(&c, now)
	}
}

// TestExchangeSize guards what every stream that is held open takes: a word more than this is half a kilobyte more, by the sizes in which
// memory is given out.
func TestExchangeSize(t *testing.T) {
	const class = 3072
	if n := unsafe.Sizeof(exchange{}); n > class {
		t.Errorf("an exchange takes %d bytes, which is more than %d", n, class)
	}
}
