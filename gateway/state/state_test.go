package state

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"headrace/gateway/state/redistest"
)

// server is a real redis-server.
type server struct {
	*redistest.Server
	t *testing.T
}

func startRedis(t *testing.T) *server {
	t.Helper()
	return &server{redistest.Start(t), t}
}

func (s *server) open(now func() time.Time) *Redis {
	s.t.Helper()
	r, err := Open(Options{URL: s.URL(), Now: now, Timeout: patience / 3})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = r.Close() })
	return r
}

// ages makes the answer k of a kind, which is good for every, too old.
func ages(t *testing.T, r *Redis, kind string, every time.Duration) {
	t.Helper()
	p := poll{value: r.tagged(kind, "k"), every: every}
	if ok, err := r.client.PExpire(t.Context(), p.value, p.keep()-every).Result(); err != nil || !ok {
		t.Fatalf("no answer to make older: %t, %v", ok, err)
	}
}

// TestOnePoller has many replicas ask at once, again and again: one of them fetches each time.
func TestOnePoller(t *testing.T) {
	s := startRedis(t)
	replicas := make([]*Redis, 8)
	for i := range replicas { // whose clocks differ by hours
		replicas[i] = s.open(func() time.Time { return time.Now().Add(time.Duration(i-4) * time.Hour) })
	}
	var fetches atomic.Int64
	for round := range 5 {
		var wg sync.WaitGroup
		for _, r := range replicas {
			wg.Go(func() {
				b, err := r.Poll(t.Context(), "k", time.Minute, func(context.Context) ([]byte, error) {
					return fmt.Appendf(nil, "answer %d", fetches.Add(1)), nil
				})
				if want := fmt.Sprintf("answer %d", round+1); err != nil || string(b) != want {
					t.Errorf("round %d: %q, %v", round, b, err)
				}
			})
		}
		wg.Wait()
		ages(t, replicas[0], "poll", time.Minute)
	}
	if n := fetches.Load(); n != 5 {
		t.Errorf("%d fetches in 5 rounds", n)
	}
	st := replicas[0].Stats()
	if st.Alone != 0 || st.Down || st.Shared+st.Fetched != 5 {
		t.Errorf("counts %+v", st)
	}
}

// TestFailedFetch leaves the next try to whoever asks next, and is nobody else's answer. The far side is not asked again at once,
// whether by another replica, by one that has waited meanwhile, or by the same one.
func TestFailedFetch(t *testing.T) {
	s := startRedis(t)
	const every = 400 * time.Millisecond
	boom := errors.New("boom")
	for name, next := range map[string]func(a, b *Redis) *Redis{
		"another": func(_, b *Redis) *Redis { return b },
		"itself":  func(a, _ *Redis) *Redis { return a },
	} {
		a, b := s.open(nil), s.open(nil)
		var failed time.Time
		asked := make(chan error, 1)
		if _, err := a.Poll(t.Context(), name, every, func(context.Context) ([]byte, error) {
			go func() { // it waits for this fetch, in vain
				got, err := b.Poll(t.Context(), name, time.Minute, func(context.Context) ([]byte, error) { return []byte("x"), nil })
				if err == nil && string(got) != "x" {
					err = fmt.Errorf("got %q", got)
				}
				asked <- err
			}()
			failed = time.Now()
			return nil, boom
		}); !errors.Is(err, boom) {
			t.Errorf("%s: got %v", name, err)
		}
		var again time.Time
		got, err := next(a, b).Poll(t.Context(), name, every, func(context.Context) ([]byte, error) {
			again = time.Now()
			return []byte("x"), nil
		})
		if err != nil || string(got) != "x" {
			t.Errorf("%s: the next one got %q, %v", name, got, err)
		}
		if d := again.Sub(failed); !again.IsZero() && d < every {
			t.Errorf("%s: asked again after %s", name, d)
		}
		if err := <-asked; err != nil {
			t.Errorf("%s: the one that waited: %v", name, err)
		}
		// One on a machine that is not so busy that what was fetched is old again before the other has seen it.
		took := time.Since(failed)
		if n := a.Stats().Fetched + b.Stats().Fetched; n < 1 || n > int64(took/every) {
			t.Errorf("%s: %d fetches, within %s", name, n, took)
		}
	}
}

// TestHolderDies lets another replica fetch when the one that held the lease is gone.
func TestHolderDies(t *testing.T) {
	s := startRedis(t)
	dead, alive := s.open(nil), s.open(nil)
	p := &poll{value: dead.tagged("poll", "k"), lease: dead.tagged("lease", "k"), fence: dead.tagged("fence", "k"), every: time.Minute, hold: leaseFor}
	held, err := dead.acquire(t.Context(), p)
	if held == 0 || err != nil {
		t.Fatal(held, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := alive.Poll(ctx, "k", time.Minute, func(context.Context) ([]byte, error) { return []byte("x"), nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while the lease is held: %v", err)
	}
	if err := dead.client.PExpire(t.Context(), p.lease, time.Millisecond).Err(); err != nil {
		t.Fatal(err)
	}
	if b, err := alive.Poll(t.Context(), "k", time.Minute, func(context.Context) ([]byte, error) { return []byte("x"), nil }); err != nil || string(b) != "x" {
		t.Errorf("after it ran out: %q, %v", b, err)
	}
	// It was not dead but slow, and its older answer comes now: it must not take the place of the newer one.
	b, err := dead.fetch(t.Context(), p, held, func(context.Context) ([]byte, error) { return []byte("older"), nil })
	if err != nil || string(b) != "x" {
		t.Errorf("the one that was overtaken got %q, %v", b, err)
	}
	if b, err := alive.fresh(t.Context(), p); err != nil || string(b) != "x" {
		t.Errorf("after it was overtaken: %q, %v", b, err)
	}
}

// TestOnce has many replicas do one thing at about the same time: one of them does it. What was done before is not good for
// those that come later, and one who fails leaves it to the next at once.
func TestOnce(t *testing.T) {
	s := startRedis(t)
	var done atomic.Int64
	replicas := make([]*Redis, 4)
	for i := range replicas {
		replicas[i] = s.open(nil)
	}
	for round := range 3 {
		var wg sync.WaitGroup
		for _, r := range replicas {
			wg.Go(func() {
				b, err := r.Once(t.Context(), "k", time.Minute, func(context.Context) ([]byte, error) {
					return fmt.Appendf(nil, "%d", done.Add(1)), nil
				})
				if want := fmt.Sprint(round + 1); err != nil || string(b) != want {
					t.Errorf("round %d: %q, %v", round, b, err)
				}
			})
		}
		wg.Wait()
		ages(t, replicas[0], "once", time.Minute)
	}
	boom := errors.New("boom")
	if _, err := replicas[0].Once(t.Context(), "k", time.Second, func(context.Context) ([]byte, error) { return nil, boom }); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	if held, err := replicas[1].client.Exists(t.Context(), replicas[1].tagged("lease", "k")).Result(); err != nil || held != 0 {
		t.Errorf("after one that failed: %d leases, %v", held, err)
	}
	s.Stop()
	began := time.Now()
	b, err := replicas[1].Once(t.Context(), "k", time.Second, func(context.Context) ([]byte, error) { return []byte("alone"), nil })
	if d := time.Since(began); err != nil || string(b) != "alone" || d > patience {
		t.Errorf("without Redis: %q, %v, after %s", b, err, d)
	}
}

// TestRedisGone polls alone while Redis is away, and shares again when it is back.
func TestRedisGone(t *testing.T) {
	s := startRedis(t)
	r := s.open(nil)
	fetch := func(context.Context) ([]byte, error) { return []byte("x"), nil }
	s.Stop()
	for range 2 {
		began := time.Now()
		if b, err := r.Poll(t.Context(), "k", time.Minute, fetch); err != nil || string(b) != "x" {
			t.Errorf("without Redis: %q, %v", b, err)
		}
		if d := time.Since(began); d > patience {
			t.Errorf("took %s", d)
		}
	}
	if st := r.Stats(); st.Alone != 2 || !st.Down {
		t.Errorf("counts %+v", st)
	}
	s.Start()
	if _, err := r.Poll(t.Context(), "k", time.Minute, fetch); err != nil {
		t.Error(err)
	}
	if st := r.Stats(); st.Down || st.Fetched != 1 {
		t.Errorf("counts after it came back %+v", st)
	}
}

func TestOpen(t *testing.T) {
	for _, url := range []string{
		"", "127.0.0.1:6379", "http://:s3cret@x", "redis://:s3cret@x/y", "redis+sentinel://:s3cret@x", "redis+sentinel://:s3cret@x/",
		"redis+cluster://:s3cret@x/1", "redis+other://:s3cret@x", "redis+cluster://", "redis+sentinel://a,,b/m", "redis+cluster://:s3cret@a?b=c", "unix+cluster:///s",
	} {
		if _, err := Open(Options{URL: url}); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v", url, err)
		}
	}
}
