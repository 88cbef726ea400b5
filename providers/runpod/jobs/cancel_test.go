package jobs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"headrace/router/endpoint"
)

// limited is a RunPod that takes 100 cancels in 10 s and 20 at once, and notes any beyond.
type limited struct {
	mu      sync.Mutex
	began   []time.Time
	running int
	most    int
	over    int
	jobs    map[string]int
}

func (l *limited) RoundTrip(r *http.Request) (*http.Response, error) {
	l.mu.Lock()
	now := time.Now()
	l.running++
	l.most = max(l.most, l.running)
	recent := 0
	for _, at := range l.began {
		if now.Sub(at) < 10*time.Second {
			recent++
		}
	}
	if recent >= 100 {
		l.over++
	}
	l.began = append(l.began, now)
	l.jobs[strings.TrimPrefix(r.URL.Path, "/v2/ep/cancel/")]++
	l.mu.Unlock()
	timer := time.NewTimer(300 * time.Millisecond)
	defer timer.Stop()
	<-timer.C
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running--
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader([]byte(`{}`)))}, nil
}

// sulking turns the first cancel of each job down and names a day as when to come again.
type sulking struct {
	mu   sync.Mutex
	seen map[string]bool
}

func (s *sulking) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	res := &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{}`))}
	if !s.seen[r.URL.Path] {
		s.seen[r.URL.Path] = true
		res.StatusCode = 429
		res.Header.Set("Retry-After", "86400")
	}
	return res, nil
}

// TestCancelIsNotPutOffForDays: RunPod's limits are for 10 s, so that no longer wait is believed while a worker bills.
func TestCancelIsNotPutOffForDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(Options{Transport: &sulking{seen: map[string]bool{}}})
		tr.forget(&queue{base: "http://runpod.test/v2/ep", id: "runpod:ep"}, orphan{job: "j", seen: true})
		began := time.Now()
		if err := tr.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d > 2*rateWindow || tr.Stats().CancelsSent != 1 {
			t.Errorf("cancelled after %s: %+v", d, tr.Stats())
		}
	})
}

// TestCancelsKeepTheLimits has many callers leave at once: every job is cancelled, and RunPod never has to say no.
func TestCancelsKeepTheLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &limited{jobs: map[string]int{}}
		tr := New(Options{Transport: l})
		q := &queue{base: "http://runpod.test/v2/ep", id: "runpod:ep"}
		began := time.Now()
		for i := range 250 {
			tr.forget(q, orphan{job: fmt.Sprintf("j%d", i)})
		}
		if err := tr.Close(context.Background()); err != nil { //nolint:usetesting // within the bubble
			t.Fatal(err)
		}
		if l.over > 0 || l.most > 20 || len(l.jobs) != 250 {
			t.Errorf("%d beyond 100 in 10 s, %d at once, %d jobs", l.over, l.most, len(l.jobs))
		}
		if took := time.Since(began); took > 25*time.Second {
			t.Errorf("it took %v", took)
		}
		if s := tr.Stats(); s.CancelsSent != 250 || s.CancelsWaiting != 0 || s.CancelsFailed != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestEndpointsDoNotWaitForEachOther: limits are per endpoint.
func TestEndpointsDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &limited{jobs: map[string]int{}}
		tr := New(Options{Transport: l})
		began := time.Now()
		for i := range 5 {
			q := &queue{base: fmt.Sprintf("http://runpod.test/v2/ep%d", i), id: endpoint.ID(fmt.Sprintf("runpod:ep%d", i))}
			for k := range 20 {
				tr.forget(q, orphan{job: fmt.Sprintf("j%d", k)})
			}
		}
		if err := tr.Close(context.Background()); err != nil { //nolint:usetesting // within the bubble
			t.Fatal(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
	})
}
