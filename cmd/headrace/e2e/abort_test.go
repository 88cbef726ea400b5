package e2e_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"headrace/providers/fakecloud"
)

// abortLatency measures how long after a caller left the host's batch knows it: before and after the first token, streaming
// and not. The median of a few goes counts, so that one hiccup of the machine does not.
func abortLatency(t *testing.T, f *fleet, sdk goSDK) {
	late, slow := sdk.plan.Slow, sdk.plan.Slow
	late.Model = lateModel
	for name, tc := range map[string]struct {
		host *fakecloud.Host
		run  func(ctx context.Context, reached chan<- struct{}) error
	}{
		"plain": {f.slow, func(ctx context.Context, reached chan<- struct{}) error {
			close(reached)
			_, err := sdk.client.Chat.Completions.New(ctx, ask(slow))
			return err
		}},
		"plain before the first token": {f.late, func(ctx context.Context, reached chan<- struct{}) error {
			close(reached)
			_, err := sdk.client.Chat.Completions.New(ctx, ask(late))
			return err
		}},
		"stream": {f.slow, func(ctx context.Context, reached chan<- struct{}) error {
			chunks := sdk.client.Chat.Completions.NewStreaming(ctx, ask(slow))
			for n := 0; chunks.Next(); n++ {
				if n == 5 {
					close(reached)
				}
			}
			return chunks.Err()
		}},
		"stream before the first token": {f.late, func(ctx context.Context, reached chan<- struct{}) error {
			close(reached)
			chunks := sdk.client.Chat.Completions.NewStreaming(ctx, ask(late))
			for chunks.Next() {
			}
			return chunks.Err()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var median time.Duration
			for range 4 { // other programs may hold all of them up
				var took []time.Duration
				for range 5 {
					took = append(took, leave(t, tc.host, tc.run))
				}
				slices.Sort(took)
				t.Logf("from leaving to a free place in the batch: %v", took)
				if median = took[len(took)/2]; median <= maxLatency {
					return
				}
			}
			t.Errorf("median %v, want at most %v", median, maxLatency)
		})
	}
}

// leave runs a request, leaves once it was reached and the host works on it, and returns how long the host went on.
func leave(t *testing.T, h *fakecloud.Host, run func(context.Context, chan<- struct{}) error) time.Duration {
	t.Helper()
	limited, stop := context.WithTimeout(t.Context(), settleLimit)
	defer stop()
	ctx, cancel := context.WithCancel(limited)
	defer cancel()
	before := h.Stats().Aborted
	reached, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- run(ctx, reached) }()
	select {
	case <-reached:
	case err := <-ended:
		t.Fatalf("the request ended early: %v", err)
	}
	if err := h.Wait(limited, func(s fakecloud.Stats) bool { return s.Running == 1 }); err != nil {
		t.Fatal(err)
	}
	left := time.Now()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller's error is %v, want a cancellation", err)
	}
	if err := h.Wait(limited, func(s fakecloud.Stats) bool { return s.Aborted > before }); err != nil {
		t.Fatal(err)
	}
	s := h.Stats()
	return s.Aborts[len(s.Aborts)-1].Freed.Sub(left)
}
