package telemetry

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// queue gathers items of one kind and hands them to their exporter in batches. Whoever adds one never waits, and wakes nobody but
// once a batch: what does not fit is counted and forgotten.
type queue[T any] struct {
	name   string
	size   int // items at most
	counts *signal
	log    *slog.Logger
	export func(ctx context.Context, batch []T) error
	full   chan struct{} // capacity 1: wakes run before its time

	mu    sync.Mutex // guards items
	items []T
}

const (
	batchMost    = 256              // items of one export
	batchWithin  = 2 * time.Second  // an item waits that long at most while exports work
	exportWithin = 20 * time.Second // for an export, its repeats included
	lastWithin   = 3 * time.Second  // for all that is left when the process ends
)

func newQueue[T any](name string, size int, counts *signal, log *slog.Logger, export func(context.Context, []T) error) *queue[T] {
	return &queue[T]{name: name, size: size, counts: counts, log: log, export: export, full: make(chan struct{}, 1)}
}

// add queues what item returns, which is called only if there is room.
func (q *queue[T]) add(item func() T) {
	q.mu.Lock()
	n := len(q.items)
	if n < q.size {
		q.items = append(q.items, item())
	}
	q.mu.Unlock()
	switch {
	case n >= q.size:
		q.counts.full.Add(1)
	case (n+1)%batchMost == 0:
		select {
		case q.full <- struct{}{}:
		default: // woken already
		}
	}
}

// take moves the oldest items into batch, as many as one export has.
func (q *queue[T]) take(batch []T) []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.items), batchMost)
	batch = append(batch[:0], q.items[:n]...)
	rest := copy(q.items, q.items[n:])
	clear(q.items[rest:])
	q.items = q.items[:rest]
	return batch
}

// linger returns a context that is done some time after ctx, or when it is cancelled.
func linger(ctx context.Context, longer time.Duration) (context.Context, context.CancelFunc) {
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		select {
		case <-time.After(longer):
			cancel()
		case <-lasting.Done():
		}
	})
	return lasting, cancel
}

// run exports until ctx is done, and then what is left and under way, for lastWithin.
func (q *queue[T]) run(ctx context.Context) {
	tick := time.NewTicker(batchWithin)
	defer tick.Stop()
	last, cancel := linger(ctx, lastWithin)
	defer cancel()
	var batch []T
	told := false
	flush := func() {
		for last.Err() == nil {
			if batch = q.take(batch); len(batch) == 0 {
				return
			}
			within, cancel := context.WithTimeout(last, exportWithin)
			err := q.export(within, batch)
			cancel()
			if err != nil {
				q.counts.exports.Add(1)
				q.counts.failed.Add(int64(len(batch)))
			}
			told = tell(q.log, q.name, told, err)
			clear(batch)
		}
	}
	for {
		select {
		case <-q.full:
			flush()
		case <-tick.C:
			flush()
		case <-ctx.Done():
			flush()
			q.mu.Lock()
			defer q.mu.Unlock()
			q.counts.failed.Add(int64(len(q.items)))
			return
		}
	}
}

// tell logs that exports fail, and that they work again, once each.
func tell(log *slog.Logger, name string, told bool, err error) bool {
	switch {
	case err != nil && !told:
		log.Warn("telemetry is not exported: the collector does not take it; requests are not affected", "signal", name, "error", err)
	case err == nil && told:
		log.Info("telemetry is exported again", "signal", name)
	}
	return err != nil
}
