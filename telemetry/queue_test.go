package telemetry

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// TestQueueEnds has a process end while an export is under way and more waits.
func TestQueueEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		takes time.Duration // the export under way, from the end of the process on; those after it take nothing
		taken int
		ended time.Duration
	}{
		"under way":    {time.Second, 2, time.Second},
		"just in time": {lastWithin - 1, 2, lastWithin - 1},
		"too slow":     {time.Minute, 0, lastWithin},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var counts signal
				taken, first := 0, true
				ctx, end := context.WithCancel(t.Context())
				q := newQueue("items", 10, &counts, slog.New(slog.DiscardHandler), func(within context.Context, batch []int) error {
					if first {
						first = false
						<-ctx.Done()
						select {
						case <-time.After(tc.takes):
						case <-within.Done():
							return within.Err()
						}
					}
					taken += len(batch)
					return nil
				})
				done := make(chan struct{})
				go func() { defer close(done); q.run(ctx) }()
				q.add(func() int { return 1 })
				<-time.After(batchWithin) // by the bubble's clock
				synctest.Wait()
				q.add(func() int { return 2 })
				began := time.Now()
				end()
				<-done
				if lost := int(counts.failed.Load()); taken != tc.taken || lost != 2-tc.taken {
					t.Errorf("%d of 2 items were taken, %d are counted as lost; want %d taken", taken, lost, tc.taken)
				}
				if d := time.Since(began); d != tc.ended {
					t.Errorf("the end took %s, want %s", d, tc.ended)
				}
			})
		})
	}
}
