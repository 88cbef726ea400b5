package jobs

import (
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestRelayIsByteExact sends random answers through real sockets: every dialect of workers, in polls of random sizes, of
// which some say nothing, some are early and some come with the end.
func TestRelayIsByteExact(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 6))
	s := newScript(t)
	f := newFront(t, s.srv.URL+"/v2", Options{})
	for round := range 12 {
		events := chunksOf(randomPieces(rng), "\n")
		want := strings.Join(events, "")
		dialects := map[string][]json.RawMessage{}
		for name, cut := range generations {
			if name == "bytes" && len(want) > 2000 {
				continue
			}
			dialects[name] = cut(rng, events)
		}
		var objects []json.RawMessage
		for _, e := range events[:len(events)-1] {
			objects = append(objects, data([]byte(e)))
		}
		dialects["objects"] = objects
		for name, yields := range dialects {
			var steps []step
			for len(yields) > 0 {
				if rng.IntN(12) == 0 {
					steps = append(steps, []step{{state: "IN_PROGRESS"}, {state: "IN_QUEUE"}, {code: http.StatusTooManyRequests}}[rng.IntN(3)])
				}
				n := min(1+rng.IntN(20), len(yields))
				one := step{state: "IN_PROGRESS"}
				for _, y := range yields[:n] {
					one.yield = append(one.yield, string(y))
				}
				if yields = yields[n:]; len(yields) == 0 && rng.IntN(2) == 0 {
					one.state = "COMPLETED"
				}
				steps = append(steps, one)
			}
			s.set(&s.stream, append(steps, ended)...)
			if a := f.ask(streamBody); a.status != 200 || a.body != want || a.broken {
				t.Fatalf("seed %d round %d, %s: status %d, broken %v: %s", seed, round, name, a.status, a.broken, differ(a.body, want))
			}
		}
	}
}

// TestEventsAreFlushedWhole: what the caller has after each poll is every event that is whole, and no part of another.
func TestEventsAreFlushedWhole(t *testing.T) {
	s := newScript(t)
	next := make([]chan struct{}, 3)
	for i := range next {
		next[i] = make(chan struct{})
	}
	one := helloEvents[0]
	two := helloEvents[1]
	s.stream = []step{
		{state: "IN_PROGRESS", yield: []string{string(quoted(": hello\n\n"))}},
		{state: "IN_PROGRESS", yield: []string{string(quoted(one + two[:20]))}},
		{state: "IN_PROGRESS", yield: []string{string(quoted(two[20:]))}, hold: next[0]},
		{state: "COMPLETED", yield: []string{string(quoted(strings.Join(helloEvents[2:], "")))}, hold: next[1]},
		ended,
	}
	f := newFront(t, s.srv.URL+"/v2", Options{})
	res, err := f.post(t.Context(), streamBody)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	read := func(want string) {
		t.Helper()
		got := make([]byte, 0, 4096)
		for len(got) < len(want) {
			n, err := res.Body.Read(got[len(got):cap(got)])
			if got = got[:len(got)+n]; err != nil && len(got) < len(want) { // the end may come with the last of it
				t.Fatalf("%q, then %v", got, err)
			}
		}
		if string(got) != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	read(": hello\n\n" + one)
	close(next[0])
	read(two)
	close(next[1])
	read(strings.Join(helloEvents[2:], ""))
}

// TestLostRunIsCounted is the one loss that cannot be mended: a job whose id nobody knows. Its time to live bounds it.
func TestLostRunIsCounted(t *testing.T) {
	s := newScript(t)
	s.run = []step{{cut: true}}
	f := newFront(t, s.srv.URL+"/v2", Options{TTL: time.Minute})
	if a := f.ask(chatBody); a.status != 502 {
		t.Errorf("%+v", a)
	}
	if f.Stats().RunsLost != 1 || !strings.Contains(f.log.String(), "id is unknown") || !strings.Contains(s.sent()[0], `"ttl":60000`) || len(s.sent()) != 1 {
		t.Errorf("%+v, sent %q, log %s", f.Stats(), s.sent(), f.log)
	}
}

// TestPollIsNotRepeatedUnseen: net/http sends a GET again by itself when an old connection breaks, by which it would lose
// what the first one was answered.
func TestPollIsNotRepeatedUnseen(t *testing.T) {
	s := newScript(t)
	s.stream = []step{
		{state: "IN_PROGRESS", yield: []string{string(quoted(helloEvents[0]))}},
		{cut: true}, // on a connection that has served
		{state: "IN_PROGRESS", yield: []string{string(quoted(helloEvents[2]))}},
		ended,
	}
	s.status = []step{{body: `{"status":"IN_PROGRESS"}`}}
	f := newFront(t, s.srv.URL+"/v2", Options{})
	if a := f.ask(streamBody); !a.broken || a.body != helloEvents[0] {
		t.Errorf("%+v", a)
	}
	if n := s.calls("stream"); n != 2 {
		t.Errorf("%d polls, want 2", n)
	}
}
