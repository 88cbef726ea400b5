package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"headrace/providers/fakecloud"
)

// TestRequestsWait has a gateway with one place for requests, as its file says: those that come meanwhile wait, are counted, and are
// refused once the file says that none waits.
func TestRequestsWait(t *testing.T) {
	came, answers := make(chan struct{}, 4), make(chan struct{}) // at the host; each answer takes one of these
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}, Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if r.Body = io.NopCloser(bytes.NewReader(body)); bytes.Contains(body, []byte("hello")) { // and no test of the gateway's own
				came <- struct{}{}
				select {
				case <-answers:
				case <-r.Context().Done():
				}
			}
			next.ServeHTTP(w, r)
		})
	}})
	yaml := fmt.Sprintf(appYAML, h.URL()+"/v1") + "limits: {max_in_flight: 1}\nmodels: {m: {serves: [m], slo: {ttft: 20s}}}\nqueue: {size: 7, max_bytes: 1MiB, max_wait: 50s, interactive_wait: 0.9, batch_share: 0.3, batch_spare: 0.4}\n"
	r := startApp(t, t.TempDir(), yaml, nil)
	q := settings(r.app.cfg).Queue
	if q.Size != 7 || q.MaxBytes != 1<<20 || q.MaxWait.Seconds() != 50 || q.InteractiveWait != 0.9 || q.BatchShare != 0.3 || q.BatchSpare != 0.4 {
		t.Errorf("the file's queue is %+v", q)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if status, text := ask(t, http.DefaultClient, r.base, "m", "hello", 20); status != 200 || text != fakecloud.Answer("m", "hello", 20) {
				t.Errorf("%d %q", status, text)
			}
		})
	}
	<-came
	eventually(t, "three wait", func() bool {
		n := 0
		for _, l := range r.app.server.Waiting() {
			n += l.Waiting
		}
		return n == 3
	})
	for i := range 4 {
		if answers <- struct{}{}; i < 3 {
			<-came
		}
	}
	wg.Wait()
	admin := "http://" + r.app.admin.Addr().String()
	eventually(t, "the metrics tell of three that have waited", func() bool { // an answer is settled behind its caller's back
		_, page := get(t, admin+"/metrics")
		return strings.Contains(page, `headrace_queue_wait_seconds_count{headrace_model="m",headrace_priority="interactive"} 3`)
	})
	eventually(t, "the requests tell of three that have waited", func() bool {
		_, body := get(t, admin+"/admin/v1/requests")
		return strings.Count(body, `"queued_ms"`) == 3
	})

	r.write(t, strings.Replace(yaml, "size: 7", "size: 0", 1))
	r.log.await(t, "config reloaded", 1)
	wg.Go(func() {
		if status, _ := ask(t, http.DefaultClient, r.base, "m", "hello", 20); status != 200 {
			t.Errorf("the one that has the place: %d", status)
		}
	})
	<-came
	for range 3 {
		if status, code := ask(t, http.DefaultClient, r.base, "m", "hello", 20); status != 503 {
			t.Errorf("nobody waits, and yet one was not refused: %d %s", status, code)
		}
	}
	answers <- struct{}{}
	wg.Wait()
}
