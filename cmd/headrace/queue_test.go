package main

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"headrace/providers/fakecloud"
)

// TestRequestsWait has a gateway with one place for requests, as its file says: those that come meanwhile wait, are counted, and are
// refused once the file says that none waits.
func TestRequestsWait(t *testing.T) {
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}, TPS: 50})
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
	wg.Wait()
	admin := "http://" + r.app.admin.Addr().String()
	_, page := get(t, admin+"/metrics")
	if !strings.Contains(page, `headrace_queue_wait_seconds_count{headrace_model="m",headrace_priority="interactive"} 3`) {
		t.Errorf("three have waited, and the page says\n%s", grep(page, "headrace_queue"))
	}
	if _, body := get(t, admin+"/admin/v1/requests"); strings.Count(body, `"queued_ms"`) != 3 {
		t.Errorf("three have waited: %s", body)
	}

	r.write(t, strings.Replace(yaml, "size: 7", "size: 0", 1))
	r.log.await(t, "config reloaded", 1)
	refused := 0
	var mu sync.Mutex
	for range 4 {
		wg.Go(func() {
			if status, _ := ask(t, http.DefaultClient, r.base, "m", "hello", 20); status == 503 {
				mu.Lock()
				refused++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if refused == 0 {
		t.Error("nobody waits, and nobody was refused")
	}
}

// grep returns the lines that hold what.
func grep(page, what string) string {
	var out strings.Builder
	for line := range strings.Lines(page) {
		if strings.Contains(line, what) {
			out.WriteString(line)
		}
	}
	return out.String()
}
