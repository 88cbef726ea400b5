package gateway

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"headrace/gateway/admission"
	"headrace/gateway/admission/queue"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// counter is a host whose requests wait until somebody lets them go on.
type counter struct {
	*upstream
	came chan *customer
}

// customer is a request at a counter.
type customer struct{ serve chan struct{} }

func newCounter(t testing.TB) *counter {
	t.Helper()
	c := &counter{came: make(chan *customer, 100)}
	c.upstream = newUpstream(t, func(uc *upConn, r *upRequest) bool {
		cu := &customer{make(chan struct{})}
		c.came <- cu
		gone := make(chan struct{})
		go func() { defer close(gone); uc.gone() }()
		select {
		case <-cu.serve:
			answering(uc, r)
			<-gone
			return false
		case <-gone:
			return false
		}
	})
	return c
}

// waiting has n requests at most at each host at once, and a room for those beyond.
func waiting(n int, q Queue) func(*rigOptions) {
	return func(o *rigOptions) {
		o.set.Queue, o.set.Total = q, time.Hour
		o.edit = func(eps []endpoint.Endpoint) {
			for i := range eps {
				eps[i].Limits.Concurrent = n
			}
		}
		o.rules = []router.ModelRule{{Name: model, Serves: []string{model}, SLO: router.SLO{TTFT: time.Hour}}}
	}
}

func roomy() Queue {
	return Queue{Size: 100, MaxWait: time.Minute, InteractiveWait: 1, BatchShare: 0.1, BatchSpare: 0.2}
}

// answer is what came of a request.
type reply struct {
	*http.Response
	body string
	err  error
}

// goDo sends a request and returns where its answer comes.
func (g *rig) goDo(req string) <-chan reply {
	g.t.Helper()
	c := g.dial().send(req)
	out := make(chan reply, 1)
	go func() {
		r, err := http.ReadResponse(c.br, nil)
		if err != nil {
			out <- reply{err: err}
			return
		}
		b, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		_ = c.Close()
		out <- reply{r, string(b), err}
	}()
	return out
}

func (g *rig) standing(n int) {
	g.t.Helper()
	eventually(g.t, fmt.Sprintf("%d wait", n), func() bool { return g.srv.room.Waiting() == n })
}

// TestWaitsForRoom serves those who wait one after the other, each as soon as there is room.
func TestWaitsForRoom(t *testing.T) {
	up := newCounter(t)
	g := newRig(t, []string{up.url()}, waiting(1, roomy()))
	first := g.goDo(chat(true))
	at := wait(t, up.came, "the first request")
	second := g.goDo(chat(true))
	g.standing(1)
	third := g.goDo(chat(false))
	g.standing(2)
	for i, r := range []<-chan reply{first, second, third} {
		close(at.serve)
		a := wait(t, r, fmt.Sprintf("answer %d", i))
		if a.err != nil || a.StatusCode != 200 {
			t.Fatalf("answer %d: %v, %+v", i, a.err, a.Response)
		}
		if timing := a.Header.Get("Server-Timing"); strings.Contains(timing, "queue;dur=") != (i > 0) {
			t.Errorf("answer %d: Server-Timing %q", i, timing)
		}
		rec := g.recordN(i)
		if (rec.Queued > 0) != (i > 0) || rec.Refused != queue.Waits || rec.Tries != 1 || rec.Stream && rec.TTFT < rec.Queued || rec.Overhead > rec.Queued+time.Second {
			t.Errorf("record %d: queued %v, ttft %v, overhead %v, %d tries, %v", i, rec.Queued, rec.TTFT, rec.Overhead, rec.Tries, rec.Refused)
		}
		if i < 2 {
			at = wait(t, up.came, "the next one")
		}
	}
	if up.requests != 3 {
		t.Errorf("the host got %d requests", up.requests)
	}
}

// TestLeavesTheRoom frees the place of a caller that leaves at once.
func TestLeavesTheRoom(t *testing.T) {
	up := newCounter(t)
	g := newRig(t, []string{up.url()}, waiting(1, roomy()))
	first := g.goDo(chat(true))
	at := wait(t, up.came, "the first request")
	c := g.dial().send(chat(true))
	g.standing(1)
	c.reset()
	rec := g.recordN(0)
	if rec.Class != outcome.ClientGone || rec.Status != 499 || rec.Refused != queue.Gone || rec.Queued <= 0 || rec.Tries != 0 {
		t.Errorf("class %v, status %d, refused %v, queued %v, %d tries", rec.Class, rec.Status, rec.Refused, rec.Queued, rec.Tries)
	}
	g.standing(0)
	close(at.serve)
	if a := wait(t, first, "the first answer"); a.StatusCode != 200 {
		t.Errorf("status %d", a.StatusCode)
	}
}

// TestWaitsNoLonger turns away who cannot be served in time: at once where that is known, else when the time is over.
func TestWaitsNoLonger(t *testing.T) {
	up := newCounter(t)
	q := roomy()
	q.MaxWait = 30 * time.Second
	g := newRig(t, []string{up.url()}, waiting(1, q))
	first := g.goDo(chat(true))
	at := wait(t, up.came, "the first request")
	for name, tc := range map[string]struct {
		wait time.Duration
		why  queue.Why
	}{
		"not at all":             {0, queue.Late},
		"less than is predicted": {time.Millisecond, queue.Late},
	} {
		_, body, _ := g.do(chat(true, "X-Headrace-Max-Wait: "+tc.wait.String()))
		if !strings.Contains(body, "too late") {
			t.Errorf("%s: %s", name, body)
		}
	}
	begin := time.Now()
	short := fmt.Sprintf(`{"model":%q,"stream":true,"max_tokens":5,"messages":[]}`, model)
	r, body, _ := g.do(post(chatPath, short, "X-Headrace-Max-Wait: 600ms")) // five tokens are expected to take some tenths
	if took := time.Since(begin); r.StatusCode != 429 || took < 600*time.Millisecond || !regexp.MustCompile(`It has waited [0-9.]+ s`).MatchString(body) {
		t.Errorf("after %v: status %d, %s", took, r.StatusCode, body)
	}
	after, err := strconv.Atoi(r.Header.Get("Retry-After"))
	if err != nil || after < 1 || after > 60 {
		t.Errorf("Retry-After: %q", r.Header.Get("Retry-After"))
	}
	rec := g.recordN(2)
	if rec.Refused != queue.Expired || rec.Code != "rate_limit_exceeded" || rec.Class != outcome.CallerFault {
		t.Errorf("refused %v with %s, class %v", rec.Refused, rec.Code, rec.Class)
	}
	if r, body, _ := g.do(chat(true, "X-Headrace-Max-Wait: soon")); r.StatusCode != 400 || !strings.Contains(body, "x-headrace-max-wait") {
		t.Errorf("status %d: %s", r.StatusCode, body)
	}
	if r, body, _ := g.do(chat(true, "X-Headrace-Priority: urgent")); r.StatusCode != 400 || !strings.Contains(body, "x-headrace-priority") {
		t.Errorf("status %d: %s", r.StatusCode, body)
	}
	close(at.serve)
	wait(t, first, "the first answer")
}

// TestRoomIsFull turns away the newest when all places are taken, with a time to come again.
func TestRoomIsFull(t *testing.T) {
	up := newCounter(t)
	q := roomy()
	q.Size = 2
	g := newRig(t, []string{up.url()}, waiting(1, q))
	replies := []<-chan reply{g.goDo(chat(true))}
	at := wait(t, up.came, "the first request")
	for i := range 2 {
		replies = append(replies, g.goDo(chat(true)))
		g.standing(i + 1)
	}
	r, body, _ := g.do(chat(true))
	if r.StatusCode != 429 || r.Header.Get("Retry-After") == "" || !strings.Contains(body, "waiting room is full") {
		t.Errorf("status %d, retry after %q: %s", r.StatusCode, r.Header.Get("Retry-After"), body)
	}
	if rec := g.recordN(0); rec.Refused != queue.Full {
		t.Errorf("refused %v", rec.Refused)
	}
	for i, r := range replies {
		close(at.serve)
		if a := wait(t, r, "an answer"); a.StatusCode != 200 {
			t.Errorf("status %d", a.StatusCode)
		}
		if i < 2 {
			at = wait(t, up.came, "the next request")
		}
	}
}

// TestNobodyWaitsWithoutARoom keeps what was before: a refusal at once.
func TestNobodyWaitsWithoutARoom(t *testing.T) {
	up := newCounter(t)
	g := newRig(t, []string{up.url()}, waiting(1, Queue{}))
	first := g.goDo(chat(true))
	at := wait(t, up.came, "the first request")
	if r, body, _ := g.do(chat(true, "X-Headrace-Priority: batch")); r.StatusCode != 429 {
		t.Errorf("status %d: %s", r.StatusCode, body)
	}
	close(at.serve)
	wait(t, first, "the first answer")
}

// TestDoor has requests wait that come when the gateway has all it may.
func TestDoor(t *testing.T) {
	for name, kind := range map[string]string{"chat": chat(true), "passthrough": post("/v1/other", `{}`)} {
		t.Run(name, func(t *testing.T) {
			up := newCounter(t)
			g := newRig(t, []string{up.url()}, func(o *rigOptions) {
				o.set.MaxInFlight, o.set.Queue = 2, roomy()
				o.rules = []router.ModelRule{{Name: model, Serves: []string{model}, SLO: router.SLO{TTFT: time.Minute}}}
				o.set.Passthrough = "static:h0"
			})
			var replies []<-chan reply
			var at []*customer
			for range 2 {
				replies = append(replies, g.goDo(chat(true)))
				at = append(at, wait(t, up.came, "a request"))
			}
			for i := range 3 {
				replies = append(replies, g.goDo(strings.Replace(kind, "Host: gw", "Host: gw\r\nX-Headrace-Max-Wait: 50s", 1)))
				g.standing(i + 1)
			}
			for i, r := range replies {
				if n := g.srv.inside.Load(); n > 2 {
					t.Errorf("%d are inside", n)
				}
				close(at[i].serve)
				if a := wait(t, r, "an answer"); a.StatusCode != 200 {
					t.Errorf("status %d: %s", a.StatusCode, a.body)
				}
				if i < 3 {
					at = append(at, wait(t, up.came, "one that waited")) // before the next one is let in
				}
				if rec := g.recordN(i); (rec.Queued > 0) != (i >= 2) {
					t.Errorf("record %d: queued %v", i, rec.Queued)
				}
			}
			eventually(t, "nobody is inside", func() bool { return g.srv.inside.Load() == 0 })
		})
	}
}

// TestDoorRefuses says how long it takes.
func TestDoorRefuses(t *testing.T) {
	up := newCounter(t)
	q := roomy()
	q.Size = 1
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.set.MaxInFlight, o.set.Queue = 1, q
		o.rules = []router.ModelRule{{Name: model, Serves: []string{model}, SLO: router.SLO{TTFT: time.Minute}}}
	})
	first := g.goDo(chat(true))
	at := wait(t, up.came, "the first request")
	second := g.goDo(chat(true))
	g.standing(1)
	r, body, _ := g.do(chat(true))
	if r.StatusCode != 503 || r.Header.Get("Retry-After") == "" || !strings.Contains(body, "gateway_overloaded") || !strings.Contains(body, "waiting room is full") {
		t.Errorf("status %d: %s", r.StatusCode, body)
	}
	close(at.serve)
	close(wait(t, up.came, "the second request").serve)
	for _, r := range []<-chan reply{first, second} {
		if a := wait(t, r, "an answer"); a.StatusCode != 200 {
			t.Errorf("status %d", a.StatusCode)
		}
	}
}

// TestDrainEndsWaiting tells those who wait that the gateway shuts down, and lets those run who have a host.
func TestDrainEndsWaiting(t *testing.T) {
	up := newCounter(t)
	g := newRig(t, []string{up.url()}, waiting(1, roomy()))
	first := g.goDo(chat(true))
	at := wait(t, up.came, "the first request")
	var waiters []<-chan reply
	for i := range 3 {
		waiters = append(waiters, g.goDo(chat(i%2 == 0)))
		g.standing(i + 1)
	}
	g.stop()
	for _, r := range waiters {
		a := wait(t, r, "an end")
		if a.err != nil || a.StatusCode != 503 || !strings.Contains(a.body, "gateway_shutdown") || a.Header.Get("Retry-After") == "" {
			t.Errorf("status %d, %v: %s", a.StatusCode, a.err, a.body)
		}
	}
	close(at.serve)
	if a := wait(t, first, "the running answer"); a.StatusCode != 200 || a.err != nil || !strings.Contains(a.body, "[DONE]") {
		t.Errorf("status %d, %v: %s", a.StatusCode, a.err, a.body)
	}
}

// TestHeartbeatWhileItWaits keeps the connection of a streaming caller alive, and its place in the room.
func TestHeartbeatWhileItWaits(t *testing.T) {
	up := newCounter(t)
	g := newRig(t, []string{up.url()}, waiting(1, roomy()), func(o *rigOptions) { o.set.Heartbeat = 30 * time.Millisecond })
	c := g.dial().send(chat(false)) // a plain answer gets no comments
	at := wait(t, up.came, "the first request")
	second := g.dial().send(chat(true))
	r := second.response()
	buf := make([]byte, len(ping))
	for i := range 3 {
		if _, err := io.ReadFull(r.Body, buf); err != nil || string(buf) != string(ping) {
			t.Fatalf("comment %d: %q, %v", i, buf, err)
		}
	}
	close(at.serve)
	if r, _, _ := c.whole(); r.StatusCode != 200 {
		t.Errorf("status %d", r.StatusCode)
	}
	close(wait(t, up.came, "the second request").serve)
	b, err := io.ReadAll(r.Body)
	if err != nil || !strings.HasSuffix(string(b), doneEvent) {
		t.Errorf("%q, %v", b, err)
	}
	if rec := g.recordN(1); rec.Queued < 90*time.Millisecond {
		t.Errorf("queued %v", rec.Queued)
	}
}

// TestComesBack has a request wait for a host that is expected back, and wakes it when it is.
func TestComesBack(t *testing.T) {
	up := newUpstream(t, answering)
	var eps []endpoint.Endpoint
	g := newRig(t, []string{up.url()}, waiting(0, roomy()), func(o *rigOptions) {
		o.edit = func(e []endpoint.Endpoint) {
			e[0].State = endpoint.Starting
			eps = e
		}
	})
	if r, _, _ := g.do(chat(true, "X-Headrace-Slo-Ttft: 2s")); r.StatusCode != 503 { // it takes longer than that
		t.Errorf("status %d", r.StatusCode)
	}
	r := g.goDo(chat(true))
	g.standing(1)
	up1 := append([]endpoint.Endpoint(nil), eps...)
	up1[0].State = endpoint.Ready
	g.router.Update(up1, []router.ModelRule{{Name: model, Serves: []string{model}}})
	if a := wait(t, r, "an answer"); a.StatusCode != 200 {
		t.Errorf("status %d: %s", a.StatusCode, a.body)
	}
	// Nobody is expected: who watches is told at once, and a batch waits.
	up1 = append([]endpoint.Endpoint(nil), eps...)
	up1[0].State = endpoint.Preempted
	g.router.Update(up1, []router.ModelRule{{Name: model, Serves: []string{model}, SLO: router.SLO{TTFT: time.Minute}}})
	if r, body, _ := g.do(chat(true)); r.StatusCode != 503 || !strings.Contains(body, "failing") {
		t.Errorf("status %d: %s", r.StatusCode, body)
	}
	r = g.goDo(chat(true, "X-Headrace-Priority: batch"))
	g.standing(1)
	up1 = append([]endpoint.Endpoint(nil), eps...)
	up1[0].State = endpoint.Ready
	g.router.Update(up1, []router.ModelRule{{Name: model, Serves: []string{model}}})
	if a := wait(t, r, "the batch's answer"); a.StatusCode != 200 {
		t.Errorf("status %d: %s", a.StatusCode, a.body)
	}
	if rec := g.recordN(3); !rec.Batch || rec.Queued <= 0 {
		t.Errorf("batch %v, queued %v", rec.Batch, rec.Queued)
	}
}

// TestThrottledWaits has a request wait for the host that has no room for it, rather than be told so.
func TestThrottledWaits(t *testing.T) {
	var mu sync.Mutex
	n := 0
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		mu.Lock()
		defer mu.Unlock()
		if n++; n == 1 {
			c.send(jsonAnswer(429, `{"error":{"message":"busy","type":"rate_limit_error","code":"rate_limit_exceeded"}}`, "Retry-After: 1"))
			return true
		}
		return answering(c, r)
	})
	g := newRig(t, []string{up.url()}, waiting(0, roomy()))
	if r, body, _ := g.do(chat(true)); r.StatusCode != 200 {
		t.Errorf("status %d: %s", r.StatusCode, body)
	}
	if rec := g.recordN(0); rec.Tries != 2 || rec.Queued < 800*time.Millisecond {
		t.Errorf("%d tries, queued %v", rec.Tries, rec.Queued)
	}
}

// TestWaitingStorm has hundreds of callers come, wait, leave and be served at a few slots: all are settled, nobody is forgotten, and
// every slot is given back (which the rig checks).
func TestWaitingStorm(t *testing.T) {
	up := newUpstream(t, answering)
	g := newRig(t, []string{up.url(), up.url()}, waiting(2, roomy()))
	var wg sync.WaitGroup
	var mu sync.Mutex
	status := map[int]int{}
	for i := range 40 {
		wg.Go(func() {
			for j := range 10 {
				head := []string{"X-Headrace-Max-Wait: 20s"}
				if (i+j)%3 == 0 {
					head = append(head, "X-Headrace-Priority: batch")
				}
				c := g.dial().send(chat(j%2 == 0, head...))
				if (i*j)%7 == 3 {
					c.reset()
					continue
				}
				r, err := http.ReadResponse(c.br, nil)
				if err != nil {
					t.Errorf("read: %v", err)
					return
				}
				_, _ = io.Copy(io.Discard, r.Body)
				_ = r.Body.Close()
				_ = c.Close()
				mu.Lock()
				status[r.StatusCode]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("statuses %v", status)
	if status[200] < 300 {
		t.Errorf("statuses %v", status)
	}
	g.standing(0)
}

// slowly is a host that takes d for every answer.
func slowly(d time.Duration) func(c *upConn, r *upRequest) bool {
	return func(c *upConn, r *upRequest) bool {
		<-time.After(d)
		return answering(c, r)
	}
}

// TestFairBetweenKeys has one key's hundreds stand before another's ten: the ten are served as fast as half of the hosts serves them, and a
// key of three times the weight gets three times as much.
func TestFairBetweenKeys(t *testing.T) {
	for name, tc := range map[string]struct {
		weight float64
		most   int // of the flood that are served while the ten are
	}{"alike": {1, 20}, "thrice the weight": {3, 12}} {
		t.Run(name, func(t *testing.T) {
			const slots, many, few = 4, 300, 10
			all := make(chan struct{}) // closed when all stand there
			up := newUpstream(t, func(c *upConn, r *upRequest) bool {
				<-all
				return slowly(2*time.Millisecond)(c, r)
			})
			q := roomy()
			q.Size, q.MaxWait = 1000, time.Hour // answers are expected to take long, before any was seen
			g := newRig(t, []string{up.url()}, waiting(slots, q), func(o *rigOptions) {
				o.keys = gateOf(func(k *admission.Key) { k.Weight = tc.weight })
				o.noTLS = true
			})
			var flood []<-chan reply
			for range many {
				flood = append(flood, g.goDo(chat(false, "Authorization: Bearer "+otherKey)))
			}
			eventually(t, "the flood stands there", func() bool { return g.srv.room.Waiting() == many-slots })
			var ten []<-chan reply
			for range few {
				ten = append(ten, g.goDo(chat(false, "Authorization: Bearer "+teamKey)))
			}
			eventually(t, "the ten do", func() bool { return g.srv.room.Waiting() == many-slots+few })
			close(all)
			for _, r := range append(ten, flood...) {
				if a := wait(t, r, "an answer"); a.err != nil || a.StatusCode != 200 {
					t.Fatalf("%v, %+v: %s", a.err, a.Response, a.body)
				}
			}
			g.recordN(many + few - 1)
			g.mu.Lock()
			defer g.mu.Unlock()
			var first, last time.Time
			for i := range g.records {
				if r := &g.records[i]; r.Key == "team" {
					if at := r.At.Add(r.Queued); last.Before(at) {
						last = at
					}
					if first.IsZero() || r.At.Before(first) {
						first = r.At
					}
				}
			}
			others := 0
			for i := range g.records {
				if r := &g.records[i]; r.Key == "other" {
					if at := r.At.Add(r.Queued); at.After(first) && at.Before(last) {
						others++
					}
				}
			}
			t.Logf("ten had a host within %v; meanwhile %d of the other key's %d had", last.Sub(first).Round(time.Millisecond), others, many)
			if others > tc.most {
				t.Errorf("%d of the other key's were served before ten of this one's", others)
			}
		})
	}
}

// TestRetryAfterIsHonest compares what callers are told with what happens to those who stand last when they are told so.
func TestRetryAfterIsHonest(t *testing.T) {
	const places = 2
	var held sync.RWMutex // by whoever wants that the host answers nobody
	var came, passed atomic.Int64
	answer := slowly(50 * time.Millisecond)
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		came.Add(1)
		held.RLock()
		passed.Add(1)
		held.RUnlock()
		return answer(c, r)
	})
	q := roomy()
	q.Size, q.MaxWait = 150, time.Hour
	g := newRig(t, []string{up.url()}, waiting(places, q), func(o *rigOptions) { o.noTLS = true })
	var all []<-chan reply
	fill := func() {
		for g.srv.room.Waiting() < q.Size {
			all = append(all, g.goDo(chat(false)))
			eventually(t, "all that were sent are somewhere", func() bool { // one that moves on meanwhile is not seen, and none twice
				n := g.count() + int(g.host(0).InFlight)
				return n+g.srv.room.Waiting() == len(all)
			})
		}
	}
	fill()
	g.recordN(20) // it is known by now how fast they are served
	held.Lock()
	eventually(t, "none is served", func() bool {
		n := passed.Load()
		return int(n) == g.count() && came.Load() == n+places
	})
	fill()
	before := g.srv.room.Waiting()
	r, body, _ := g.do(chat(false))
	held.Unlock()
	from := time.Now()
	told, err := strconv.Atoi(r.Header.Get("Retry-After"))
	if r.StatusCode != 429 || err != nil || !strings.Contains(body, "waiting room is full") {
		t.Fatalf("status %d, Retry-After %q with %d waiting: %s", r.StatusCode, r.Header.Get("Retry-After"), before, body)
	}
	for _, r := range all {
		if a := wait(t, r, "an answer"); a.err != nil || a.StatusCode != 200 {
			t.Fatalf("%v, %+v: %s", a.err, a.Response, a.body)
		}
	}
	really := time.Since(from).Seconds()
	t.Logf("told %d s, and the last of those before it was served after %.2f s", told, really)
	honest := func(seconds float64) bool { // whole ones, rounded up
		return float64(told) <= 2*seconds+1 && float64(told) >= seconds/2
	}
	// What was to be expected by then is honest as well: a machine may have other things to do afterwards.
	if expected := g.servedBy(from, before); !honest(really) && !honest(expected) {
		t.Errorf("as served until then, they would have been after %.2f s", expected)
		t.Errorf("told %d s, and the last of those before it was served after %.2f s", told, really)
	}
}

// servedBy is how many seconds n requests take, as fast as others were answered until the given time.
func (g *rig) servedBy(at time.Time, n int) float64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	var first time.Time
	served := 0
	for i := range g.records {
		if r := &g.records[i]; r.Class == outcome.Success && r.At.Add(r.Duration).Before(at) {
			if served++; first.IsZero() || r.At.Before(first) {
				first = r.At
			}
		}
	}
	return at.Sub(first).Seconds() / float64(served) * float64(n)
}

// enterAndLeave is what a request that waits for nothing does because of the waiting room: it passes the door, asks whether others wait,
// and what it gives back wakes nobody. It is false where it did otherwise.
func enterAndLeave(x *exchange) bool {
	well := x.enter() == nil && x.inside && !x.queues()
	x.leavesFree(x.rec.At)
	x.found()
	x.s.freed("static:h0") // its first token
	x.s.freed("static:h0") // and its end
	x.goOut()
	return well
}

// TestNobodyWaitsCostsNothing guards what every request pays.
func TestNobodyWaitsCostsNothing(t *testing.T) {
	g := newRig(t, []string{refusing}, waiting(1, roomy()))
	x := &exchange{sending: new(sending), s: g.srv, set: g.srv.set.Load(), model: model}
	if n := testing.AllocsPerRun(100, func() {
		if !enterAndLeave(x) {
			t.Fatal("it did not pass")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if raceEnabled {
		return
	}
	least := int64(1 << 60)
	for i := 0; i < 20 && least > 100; i++ { // others may run meanwhile
		least = min(least, testing.Benchmark(func(b *testing.B) {
			b.Helper()
			for b.Loop() {
				enterAndLeave(x)
			}
		}).NsPerOp())
	}
	t.Logf("%d ns", least)
	if least > 100 {
		t.Errorf("%d ns a request, want 100 at most", least)
	}
}
