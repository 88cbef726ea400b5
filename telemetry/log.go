// Package telemetry is how operators see Headrace: logs here; traces and metrics have their place
// beside them.
package telemetry

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

// LogOptions choose what is logged and how.
type LogOptions struct {
	Level  slog.Leveler
	Format string // "json" or "text"
}

// NewLogger returns a logger that writes one line an event to w.
func NewLogger(w io.Writer, o LogOptions) *slog.Logger {
	ho := &slog.HandlerOptions{Level: o.Level}
	if o.Format == "text" {
		return slog.New(slog.NewTextHandler(w, ho))
	}
	return slog.New(slog.NewJSONHandler(w, ho))
}

// Writer gathers log lines and writes many at once, so that an access log costs no system call a
// request. A process that is killed loses the lines of the last interval.
type Writer struct {
	out   io.Writer
	every time.Duration
	full  chan struct{} // capacity 1: wakes Run before its time

	mu  sync.Mutex // guards all below, and writing to out
	buf []byte
}

const (
	writeFrom = 64 << 10 // bytes that are written without waiting for the interval
	holdMost  = 4 << 20  // bytes beyond which Write writes by itself, and waits for out
)

// NewWriter returns a Writer to out. Run must run for anything to come out in time.
func NewWriter(out io.Writer, every time.Duration) *Writer {
	return &Writer{out: out, every: every, full: make(chan struct{}, 1)}
}

// Write takes a copy of one or more whole lines.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(w.buf, p...)
	return len(p), w.added()
}

// Append has encode append whole lines where they are gathered, without a copy between.
func (w *Writer) Append(encode func(dst []byte) []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = encode(w.buf)
	return w.added()
}

func (w *Writer) added() error {
	switch {
	case len(w.buf) > holdMost:
		return w.flush()
	case len(w.buf) > writeFrom:
		select {
		case w.full <- struct{}{}:
		default: // woken already
		}
	}
	return nil
}

// Flush writes what has been gathered.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.flush()
}

func (w *Writer) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	_, err := w.out.Write(w.buf)
	w.buf = w.buf[:0]
	return err
}

// Run writes at least every interval until ctx is done, and what is left then.
func (w *Writer) Run(ctx context.Context) error {
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	for {
		select {
		case <-w.full:
		case <-tick.C:
		case <-ctx.Done():
			return w.Flush()
		}
		_ = w.Flush() // a log that cannot be written has nowhere to say so
	}
}
