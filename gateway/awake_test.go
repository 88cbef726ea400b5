package gateway

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// awake runs body, which needs this process to do something within a window of time, and runs it again where it fails and the process
// got no processor for as long as nap meanwhile: the window may have been slept through. What failed at last, or without that, fails t.
func awake(t *testing.T, nap time.Duration, body func(t *try)) {
	t.Helper()
	const tries = 5
	for i := 1; ; i++ {
		k := &try{TB: t}
		slept := k.run(body)
		failed, said := k.result()
		if failed && slept >= nap && i < tries {
			t.Logf("once more, since nothing ran for %v: %s", slept, said)
			continue
		}
		for _, s := range said {
			t.Error(s)
		}
		if failed {
			t.FailNow()
		}
		return
	}
}

// try is a test of which nobody need hear that it has failed.
type try struct {
	testing.TB
	mu     sync.Mutex // guards all below
	failed bool
	said   []string
	ends   []func()
}

// run returns the longest time for which a goroutine that wanted to run did not.
func (k *try) run(body func(t *try)) (slept time.Duration) {
	done := make(chan struct{})
	go func() { // which FailNow ends
		defer close(done)
		defer k.cleanup()
		body(k)
	}()
	const every = 10 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	for last := time.Now(); ; {
		select {
		case <-tick.C:
			now := time.Now()
			slept, last = max(slept, now.Sub(last)-every), now
		case <-done:
			return max(slept, time.Since(last)-every)
		}
	}
}

// cleanup runs what is left of the cleanups, each of which may end the goroutine.
func (k *try) cleanup() {
	k.mu.Lock()
	n := len(k.ends)
	if n == 0 {
		k.mu.Unlock()
		return
	}
	f := k.ends[n-1]
	k.ends = k.ends[:n-1]
	k.mu.Unlock()
	defer k.cleanup()
	f()
}

func (k *try) Cleanup(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ends = append(k.ends, f)
}

func (k *try) Fail() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failed = true
}

func (k *try) Failed() bool { failed, _ := k.result(); return failed }

func (k *try) result() (failed bool, said []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failed, slices.Clone(k.said)
}

func (k *try) fail(s string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failed = true
	k.said = append(k.said, s)
}

func (k *try) Error(args ...any)                 { k.fail(fmt.Sprint(args...)) }
func (k *try) Errorf(format string, args ...any) { k.fail(fmt.Sprintf(format, args...)) }
func (k *try) FailNow()                          { k.Fail(); runtime.Goexit() }
func (k *try) Fatal(args ...any)                 { k.Error(args...); runtime.Goexit() }
func (k *try) Fatalf(format string, args ...any) { k.Errorf(format, args...); runtime.Goexit() }
