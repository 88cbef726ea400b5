package admission

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"headrace/gateway/state"
)

// TestStoreGoneIsTold: that the store is away, and that it is back, is in the log once each, also of a gateway that starts meanwhile and has nothing
// to write.
func TestStoreGoneIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &away{Store: state.NewMemory(), off: true}
		var log bytes.Buffer
		g := New(Options{Store: s, Log: slog.New(slog.NewTextHandler(&log, nil))})
		g.Start(t.Context())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = g.Run(ctx) }()
		<-time.After(time.Minute)
		s.set(false)
		<-time.After(time.Minute)
		cancel()
		<-done
		for _, said := range []string{"go on as far as they are known", "answers again"} {
			if n := strings.Count(log.String(), said); n != 1 {
				t.Errorf("%q is said %d times in a minute each way", said, n)
			}
		}
	})
}
