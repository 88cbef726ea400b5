package telemetry

import (
	"context"
	"log/slog"
	"time"
)

// queue gathers items of one kind and hands them to their exporter in batches. Whoever adds one never waits: what does not fit is
// counted and forgotten.
type queue[T any] struct {
	name   string
	items  chan T
	counts *signal
	log    *slog.Logger
	export func(ctx context.Context, batch []T) error
}

const (
	batchMost    = 256              // items of one export
	batchWithin  = 2 * time.Second  // the first of them waits that long at most
	exportWithin = 20 * time.Second // for an export, its repeats included
	lastWithin   = 3 * time.Second  // for all that is left when the process ends
)

func newQueue[T any](name string, size int, counts *signal, log *slog.Logger, export func(context.Context, []T) error) *queue[T] {
	return &queue[T]{name: name, items: make(chan T, size), counts: counts, log: log, export: export}
}

// add queues an item; false says that there was no room.
func (q *queue[T]) add(item T) bool {
	select {
	case q.items <- item:
		return true
	default:
		q.counts.full.Add(1)
		return false
	}
}

// run exports until ctx is done, and what is left then.
func (q *queue[T]) run(ctx context.Context) {
	tick := time.NewTicker(batchWithin)
	defer tick.Stop()
	batch, told := make([]T, 0, batchMost), false
	send := func(ctx context.Context, within time.Duration) {
		if len(batch) == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		err := q.export(ctx, batch)
		if err != nil {
			q.counts.exports.Add(1)
			q.counts.failed.Add(int64(len(batch)))
		}
		told = tell(q.log, q.name, told, err)
		clear(batch)
		batch = batch[:0]
	}
	for {
		select {
		case item := <-q.items:
			if batch = append(batch, item); len(batch) == batchMost {
				send(ctx, exportWithin)
			}
		case <-tick.C:
			send(ctx, exportWithin)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWithin)
			defer cancel()
			for last.Err() == nil {
				select {
				case item := <-q.items:
					if batch = append(batch, item); len(batch) == batchMost {
						send(last, lastWithin)
					}
					continue
				default:
				}
				break
			}
			send(last, lastWithin)
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
