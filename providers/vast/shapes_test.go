package vast_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"headrace/providers/fakecloud/fakevast"
	"headrace/providers/vast"
	"headrace/router/endpoint"
)

// rewriter changes what the list of instances says.
type rewriter struct {
	f atomic.Pointer[func(body string) string]
}

func (w *rewriter) set(f func(string) string) { w.f.Store(&f) }

func (w *rewriter) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := http.DefaultTransport.RoundTrip(r)
	if f := w.f.Load(); err == nil && f != nil && r.URL.Path == "/api/v1/instances/" {
		b, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil {
			return nil, err
		}
		b = []byte((*f)(string(b)))
		res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
		res.Header.Del("Content-Length")
	}
	return res, err
}

// TestRowsThatCannotBeRead: a list whose rows lack what names them says nothing of which instances there are.
func TestRowsThatCannotBeRead(t *testing.T) {
	renamed := func(n int) func(string) string {
		return func(body string) string { return strings.Replace(body, `"id":`, `"instance_id":`, n) }
	}
	w := &rewriter{}
	r := start(t, fakevast.Config{}, func(o *vast.Options) { o.Transport = w }, fakevast.InstanceConfig{}, fakevast.InstanceConfig{})
	two := func(eps []endpoint.Endpoint) bool { return len(eps) == 2 }
	r.until("two instances", two)

	w.set(renamed(-1))
	s := r.status("a failing poll", func() bool { return r.p.Status().Failing > 1 })
	if !strings.Contains(s.LastError, "no row") {
		t.Errorf("the error is %q", s.LastError)
	}
	if _, eps, _ := r.fleet(); !two(eps) {
		t.Errorf("the fleet is %s", show(eps))
	}

	w.set(renamed(1))
	r.status("a good poll", func() bool { return r.p.Status().Failing == 0 })
	polls := r.p.Status().Polls
	s = r.status("more polls", func() bool { return r.p.Status().Polls > polls+2 })
	if _, eps, _ := r.fleet(); !two(eps) || s.Oddities["an instance without an id"] == 0 {
		t.Errorf("the fleet is %s, oddities %v", show(eps), s.Oddities)
	}

	w.set(func(body string) string { return body })
	r.cloud.Instances()[0].Destroy()
	r.until("one instance", func(eps []endpoint.Endpoint) bool { return len(eps) == 1 })
}

// TestClocksOfReplicas: rows that another replica has read are believed however its clock goes, and our own after them.
func TestClocksOfReplicas(t *testing.T) {
	for name, ahead := range map[string]time.Duration{"an hour ahead": time.Hour, "an hour behind": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := &memory{}
			r := start(t, fakevast.Config{}, func(o *vast.Options) { o.Share = m }, fakevast.InstanceConfig{})
			other := attach(t, r.cloud, func(o *vast.Options) {
				o.Share, o.Poll = m, 3*time.Millisecond // it is nearly always first
				o.Now = func() time.Time { return time.Now().Add(ahead) }
			})
			i := r.cloud.Instances()[0]
			r.state(i, endpoint.Ready, "")
			led := func() {
				t.Helper()
				own, polls := other.p.Status().Polls, r.p.Status().Polls
				r.status("polls of both", func() bool { return other.p.Status().Polls > own+30 && r.p.Status().Polls > polls+3 })
			}
			led()
			i.Outbid(fakevast.ExitedStopped)
			r.state(i, endpoint.Preempted, "")
			i.Resume()
			r.state(i, endpoint.Ready, "")
			led()
			other.stop()
			i.Outbid(fakevast.ExitedStopped)
			r.state(i, endpoint.Preempted, "")
		})
	}
}

// TestAnEmptyListIsBelievedTheSecondTime: all instances at once go seldom, and a wrong list would stop all traffic.
func TestAnEmptyListIsBelievedTheSecondTime(t *testing.T) {
	const empty = `{"success":true,"instances_found":0,"total_instances":0,"next_token":null,"instances":[]}`
	var times atomic.Int64
	w := &rewriter{}
	r := start(t, fakevast.Config{}, func(o *vast.Options) { o.Transport = w }, fakevast.InstanceConfig{}, fakevast.InstanceConfig{})
	r.until("two instances", func(eps []endpoint.Endpoint) bool { return len(eps) == 2 })
	sets, _, _ := r.fleet()
	w.set(func(body string) string {
		if times.Add(1)%2 == 1 { // every other one
			return empty
		}
		return body
	})
	r.status("empty lists", func() bool { return r.p.Status().Oddities["list that is suddenly empty"] >= 3 })
	if now, eps, _ := r.fleet(); len(eps) != 2 {
		t.Errorf("after single empty lists, %d sets: %s", now-sets, show(eps))
	}
	w.set(func(string) string { return empty })
	r.until("an empty fleet", func(eps []endpoint.Endpoint) bool { return len(eps) == 0 })
}
