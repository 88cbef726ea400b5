package fakecloud

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// testEngine makes 10 tokens a second alone, reads 1000 prompt tokens a second and has its first token after 200 ms.
func testEngine(scale float64, seqs int) *engine {
	c := Class{BatchCost: 0.25, PrefillTPS: 1000, KVPerSeq: 100}
	return newEngine(newSpeed(10, 200*time.Millisecond, c), scale, c, seqs)
}

func TestEngineSpeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		e := testEngine(1, 4)
		began := time.Now()
		s, err := e.enter(ctx, 1, 500, 0, func() {})
		if err != nil {
			t.Fatal(err)
		}
		check(t, "TTFT", time.Since(began), 700*time.Millisecond)
		began = time.Now()
		for range 10 {
			if err := s.step(ctx); err != nil {
				t.Fatal(err)
			}
		}
		check(t, "ten tokens alone", time.Since(began), time.Second)

		others, err := e.enter(ctx, 3, 0, 0, func() {})
		if err != nil {
			t.Fatal(err)
		}
		s.next = time.Now()
		began = time.Now()
		if err := s.step(ctx); err != nil {
			t.Fatal(err)
		}
		// a = 80 ms and b = 20 ms: 160 ms with four sequences.
		check(t, "a token among four", time.Since(began), 160*time.Millisecond)
		s.close()
		s.close()
		others.close()
		if e.batch.used() != 0 || e.kvUsage() != 0 {
			t.Errorf("after all have left: %d places, KV usage %v", e.batch.used(), e.kvUsage())
		}
	})
}

func check(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if d := got - want; d < -time.Microsecond || d > time.Microsecond {
		t.Errorf("%s took %v, want %v", what, got, want)
	}
}

func TestPrefillGoesOneByOneAndStallsDecoding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		e := testEngine(1, 8)
		began := time.Now()
		first := make(chan time.Duration, 2)
		for range 2 {
			go func() {
				s, err := e.enter(ctx, 1, 1000, 400, func() {})
				if err != nil {
					t.Error(err)
					return
				}
				first <- time.Since(began)
				s.close()
			}()
		}
		check(t, "the first", <-first, 800*time.Millisecond)
		check(t, "the second", <-first, 1400*time.Millisecond)

		s, err := e.enter(ctx, 1, 0, 0, func() {})
		if err != nil {
			t.Fatal(err)
		}
		gone, cancel := context.WithCancel(ctx)
		ended := make(chan error)
		go func() {
			_, err := e.enter(gone, 1, 60000, 0, func() {})
			ended <- err
		}()
		synctest.Wait()
		began = time.Now()
		if err := s.step(ctx); err != nil {
			t.Fatal(err)
		}
		check(t, "a token beside a prompt being read", time.Since(began), 240*time.Millisecond) // ITL(2) = 120 ms, half speed
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the prompt of one who left ended with %v", err)
		}
		s.close()
		if e.prefill.used() != 0 || e.batch.used() != 0 {
			t.Error("one who left keeps a place")
		}
	})
}

func TestBatchIsFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		e := testEngine(0, 2)
		s, err := e.enter(ctx, 2, 0, 0, func() {})
		if err != nil {
			t.Fatal(err)
		}
		order := make(chan int, 3)
		leaver, leave := context.WithCancel(ctx)
		for i := range 3 {
			go func() {
				own := ctx
				if i == 1 {
					own = leaver
				}
				if s, err := e.enter(own, 2, 0, 0, func() { order <- i }); err == nil {
					s.close()
				}
			}()
			synctest.Wait() // in the queue before the next
		}
		if e.batch.waiting() != 6 {
			t.Errorf("%d sequences wait, want 6", e.batch.waiting())
		}
		leave()
		synctest.Wait()
		s.close()
		if a, b := <-order, <-order; a != 0 || b != 2 {
			t.Errorf("served %d and %d, want 0 and 2", a, b)
		}
		synctest.Wait()
		if e.batch.used() != 0 || e.batch.waiting() != 0 {
			t.Error("the batch is not empty in the end")
		}
	})
}

// TestPromptsFollowEachOther shows that a goroutine which runs late makes nobody behind it later.
func TestPromptsFollowEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := testEngine(1, 4)
		began := time.Now()
		if err := e.prefill.acquire(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		took := make(chan time.Duration)
		go func() {
			s, err := e.enter(t.Context(), 1, 500, 0, func() {})
			if err != nil {
				t.Error(err)
			}
			took <- time.Since(began)
			s.close()
		}()
		<-time.After(600 * time.Millisecond) // virtual: the prompt before was read after 500 ms
		e.readUntil(began.Add(500 * time.Millisecond))
		e.prefill.release(1)
		check(t, "the one behind", <-took, 1200*time.Millisecond)
	})
}

func TestPrefixCache(t *testing.T) {
	var c prefixCache
	long := make([]byte, 40*blockBytes)
	for i := range long {
		long[i] = byte(i * 7 / 3)
	}
	if n := c.see(string(long)); n != 0 {
		t.Errorf("%d tokens cached of a new prompt", n)
	}
	if n := c.see(string(long)); n != 40*blockTokens {
		t.Errorf("%d tokens cached of a known prompt, want %d", n, 40*blockTokens)
	}
	long[10*blockBytes+5]++
	if n := c.see(string(long)); n != 10*blockTokens {
		t.Errorf("%d tokens cached of a prompt that differs in block 10, want %d", n, 10*blockTokens)
	}
	if n := c.see("short"); n != 0 {
		t.Errorf("%d tokens cached of less than a block", n)
	}
}

func TestOutputOfAWish(t *testing.T) {
	natural := newOracle("m", "p").natural()
	for name, tc := range map[string]struct {
		wish   wish
		text   string
		tokens int
		finish string
		stop   string
	}{
		"exactly what is asked for":  {wish{limit: 300}, Answer("m", "p", 300), 300, "length", ""},
		"as long as it likes":        {wish{}, Answer("m", "p", natural), natural, "stop", ""},
		"continued behind a token":   {wish{limit: 5, sent: Answer("m", "p", 7)}, Answer("m", "p", 12)[len(Answer("m", "p", 7)):], 5, "length", ""},
		"continued inside a token":   {wish{sent: Answer("m", "p", 7)[:len(Answer("m", "p", 7))-1]}, Answer("m", "p", natural)[len(Answer("m", "p", 7))-1:], natural - 6, "stop", ""},
		"nothing left to continue":   {wish{sent: Answer("m", "p", natural)}, "", 0, "stop", ""},
		"JSON":                       {wish{json: []byte(`{"a":"bcdef"}`), limit: 50}, `{"a":"bcdef"}`, 4, "stop", ""},
		"JSON cut":                   {wish{json: []byte(`{"a":"bcdef"}`), limit: 2}, `{"a":"bc`, 2, "length", ""},
		"stopped inside":             {wish{json: []byte("abcdefghijkl"), stops: []string{"zz", "defg"}}, "abc", 2, "stop", "defg"},
		"stopped, the stop kept":     {wish{json: []byte("abcdefghijkl"), stops: []string{"efg"}, keepStop: true}, "abcdefg", 2, "stop", "efg"},
		"stopped across three":       {wish{json: []byte("abcdefghijkl"), stops: []string{"cdefghi"}}, "ab", 3, "stop", "cdefghi"},
		"stopped before the 1st one": {wish{json: []byte("abcdefghijkl"), stops: []string{"ab"}}, "", 1, "stop", "ab"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.wish.model, tc.wish.prompt = "m", "p"
			o := tc.wish.output()
			if got := o.text(content); got != tc.text {
				t.Errorf("text %q, want %q", got, tc.text)
			}
			if n := o.tokens(len(o.pieces)); n != tc.tokens || o.finish != tc.finish || o.stop != tc.stop {
				t.Errorf("%d tokens, %q, stop %q; want %d, %q, %q", n, o.finish, o.stop, tc.tokens, tc.finish, tc.stop)
			}
		})
	}
}
