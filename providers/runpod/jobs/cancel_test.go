package jobs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
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

// chatty is a RunPod whose workers yield all the time: no poll is held.
type chatty struct {
	mu    sync.Mutex
	jobs  int
	left  map[string]int // yields to come, by job
	polls []time.Time
}

func (c *chatty) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	body := `{}`
	switch op, job, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/ep/"), "/"); op {
	case "run":
		c.jobs++
		job = fmt.Sprintf("j%d", c.jobs)
		c.left[job] = 100
		body = `{"id":"` + job + `","status":"IN_QUEUE"}`
	case "stream":
		c.polls = append(c.polls, time.Now())
		if c.left[job]--; c.left[job] < 0 {
			body = `{"status":"COMPLETED","stream":[],"workerId":"w","executionTime":1}`
			break
		}
		body = `{"status":"IN_PROGRESS","workerId":"w","stream":[{"output":"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n"}]}`
	}
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}, nil
}

// TestPollsKeepTheLimits: however much streams at once, RunPod never has to turn a poll down.
func TestPollsKeepTheLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &chatty{left: map[string]int{}}
		tr := New(Options{Transport: c})
		var wg sync.WaitGroup
		for range 60 {
			wg.Go(func() {
				rec := httptest.NewRecorder()
				h := tr.Handler(endpoint.Endpoint{ID: "runpod:ep", BaseURL: "http://runpod.test/v2/ep/openai/v1"}) // made anew, as after each change
				h.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/chat/completions", strings.NewReader(`{"model":"m","stream":true}`)))
				if n := strings.Count(rec.Body.String(), `"content":"x"`); rec.Code != 200 || n != 100 {
					t.Errorf("status %d, %d of 100 yields", rec.Code, n)
				}
			})
		}
		wg.Wait()
		most, first := 0, 0 // of those within 10 s
		for i, at := range c.polls {
			for at.Sub(c.polls[first]) >= 10*time.Second {
				first++
			}
			most = max(most, i+1-first)
		}
		if most > 2000 || len(c.polls) != 60*101 {
			t.Errorf("%d polls, up to %d in 10 s", len(c.polls), most)
		}
		if err := tr.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
