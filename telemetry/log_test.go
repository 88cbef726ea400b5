package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"headrace/telemetry"
)

// sink counts writes.
type sink struct {
	mu     sync.Mutex // guards all below
	buf    bytes.Buffer
	writes int
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	return s.buf.Write(p)
}

func (s *sink) seen() (lines, writes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.buf.String(), "\n"), s.writes
}

func TestWriterGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out sink
		w := telemetry.NewWriter(&out, 100*time.Millisecond)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		log := telemetry.NewLogger(w, telemetry.LogOptions{Format: "json"})
		for range 200 {
			log.Info("request", "n", 1)
		}
		synctest.Wait()
		if lines, _ := out.seen(); lines != 0 {
			t.Errorf("%d lines at once, want them gathered", lines)
		}
		<-time.After(100 * time.Millisecond) // by the bubble's clock
		synctest.Wait()
		if lines, writes := out.seen(); lines != 200 || writes != 1 {
			t.Errorf("after the interval: %d lines in %d writes, want 200 in 1", lines, writes)
		}
		log.Info("last words")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if lines, _ := out.seen(); lines != 201 {
			t.Errorf("%d lines at the end, want 201", lines)
		}
	})
}

func TestWriterIsBounded(t *testing.T) {
	var out sink
	w := telemetry.NewWriter(&out, time.Hour) // nobody runs it
	line := bytes.Repeat([]byte("x"), 1023)
	line = append(line, '\n')
	for range 10_000 {
		if _, err := w.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	if lines, _ := out.seen(); lines < 5000 {
		t.Errorf("%d of 10,000 lines are out: the rest is held in memory", lines)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if lines, _ := out.seen(); lines != 10_000 {
		t.Errorf("%d lines, want 10000: none may be lost", lines)
	}
}

func TestFormats(t *testing.T) {
	var b bytes.Buffer
	telemetry.NewLogger(&b, telemetry.LogOptions{Format: "json"}).Info("hello", "a", 1)
	var m map[string]any
	if err := json.Unmarshal(b.Bytes(), &m); err != nil || m["msg"] != "hello" || m["a"] != 1.0 {
		t.Errorf("json line %q: %v", b.String(), err)
	}
	b.Reset()
	telemetry.NewLogger(&b, telemetry.LogOptions{Format: "text"}).Info("hello", "a", 1)
	if !strings.Contains(b.String(), "msg=hello a=1") {
		t.Errorf("text line %q", b.String())
	}
}
