package vast

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"io"
	"net/http"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

// sampleRow is a row with the columns that are asked for. More makes it another.
func sampleRow(id int, actual, more string) string {
	return fmt.Sprintf(`{"id":%d,"machine_id":%d,"host_id":55555,"label":"gw","is_bid":true,"actual_status":%q,"intended_status":"running","cur_state":"running",
	"next_state":"running","status_msg":"success, running vllm/vllm-openai_latest/args%s","image_uuid":"vllm/vllm-openai:latest",
	"image_args":["--model","meta-llama/Llama-3.1-70B-Instruct","--port","8000","--api-key","0123456789abcdef"],"extra_env":[["MODEL_ID","x/y"],["-p 8000:8000","1"],["HF_TOKEN","hf_0123456789"]],
	"jupyter_token":"df77e27085bd4b3bd5d9024bdefb9e6df614b27adb0689e9d8f066fce5e01f0c","template_id":null,"template_hash_id":null,"template_name":null,
	"public_ipaddr":"203.0.113.10","static_ip":true,"ports":{"8000/tcp":[{"HostIp":"0.0.0.0","HostPort":"%d"},{"HostIp":"::","HostPort":"%d"}],"22/tcp":[{"HostIp":"0.0.0.0","HostPort":"%d"}]},
	"gpu_name":"RTX 4090","num_gpus":1,"gpu_frac":0.25,"disk_space":50.0,"disk_usage":31.2,"dph_total":0.2104,"storage_total_cost":0.0104,
	"search":{"gpuCostPerHour":0.20,"diskHour":0.0104,"totalHour":0.2104,"discountTotalHour":0,"discountedTotalPerHour":0.2104},
	"instance":{"gpuCostPerHour":0.20,"diskHour":0.0104,"totalHour":0.2104,"discountTotalHour":0,"discountedTotalPerHour":0.2104},"credit_discount":null,
	"internet_up_cost_per_tb":0.5,"internet_down_cost_per_tb":0.25,"inet_up_cost":0.00049,"inet_down_cost":0.00024,"reliability2":0.993,"verification":"verified","hosting_type":1,
	"geolocation":"California, US","country_code":null,"start_date":1787722703.2,"end_date":1990000000.0}`, id, id/4, actual, more, 30000+id, 30000+id, 20000+id)
}

// bodies are the pages of a list of n instances.
func bodies(n int, more string) [][]byte {
	var out [][]byte
	for from := 0; from < n; from += pageSize {
		var rows []string
		for id := from + 1; id <= min(n, from+pageSize); id++ {
			rows = append(rows, sampleRow(id, "running", more))
		}
		out = append(out, []byte(fmt.Sprintf(`{"success":true,"instances_found":25,"total_instances":%d,"next_token":null,"instances":[%s]}`, n, strings.Join(rows, ","))))
	}
	return out
}

// poller takes lists in as Run does, without the network.
type poller struct{ f *fleet }

func newPoller() *poller {
	p := New(Options{Key: "k"})
	return &poller{&fleet{p: p, events: make(chan func(), 1), seed: maphash.MakeSeed(), hosts: map[int64]*host{}, byHash: map[uint64]*host{}}}
}

func (p *poller) poll(tb testing.TB, pages [][]byte, now time.Time) []endpoint.Endpoint {
	tb.Helper()
	l := &listing{}
	for _, b := range pages {
		r, rows, err := parsePage(&api.Answer{Status: 200, Body: b})
		if err != nil || r == nil {
			tb.Fatal(err)
		}
		l.Pages = append(l.Pages, page{now, rows})
	}
	if err := p.f.take(tb.Context(), l, now); err != nil {
		tb.Fatal(err)
	}
	if !p.f.changed {
		return nil
	}
	set := p.f.set(now)
	p.f.changed, p.f.sentAt = false, now
	for i := range set {
		p.f.hosts[idOf(&set[i])].sent = set[i]
	}
	return set
}

// BenchmarkPoll is the CPU time of one poll: pages decoded, diffed, and the fleet built anew where it changed.
func BenchmarkPoll(b *testing.B) {
	for _, n := range []int{25, 1000} {
		same, other := bodies(n, ""), bodies(n, " again")
		for name, pages := range map[string][2][][]byte{"unchanged": {same, same}, "all_changed": {same, other}} {
			b.Run(fmt.Sprintf("instances=%d/%s", n, name), func(b *testing.B) {
				p := newPoller()
				p.poll(b, same, testNow)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					p.poll(b, pages[(i+1)%2], testNow.Add(time.Duration(i)*time.Second))
				}
			})
		}
	}
}

// cpu is the processor time that this process has used: of the clock's, other programs take their part.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestPollCost holds 1,000 instances to 50 ms of CPU time per poll, even one that changes all of them, and to flat memory.
func TestPollCost(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own time and memory would be measured")
	}
	const n, within = 1000, 50 * time.Millisecond
	a, b := bodies(n, ""), bodies(n, " again")
	p := newPoller()
	if set := p.poll(t, a, testNow); len(set) != n {
		t.Fatalf("%d endpoints", len(set))
	}
	best := map[string]time.Duration{"nothing changed": time.Hour, "everything changed": time.Hour}
	run := func(what string, pages [][]byte, k int) {
		began := cpu(t)
		p.poll(t, pages, testNow.Add(time.Duration(k)*time.Minute))
		best[what] = min(best[what], cpu(t)-began)
	}
	for k := range 5 {
		run("nothing changed", a, 3*k)
		run("everything changed", b, 3*k+1)
		run("everything changed", a, 3*k+2)
	}
	before := live()
	for k := range 30 {
		p.poll(t, [][][]byte{a, b}[k%2], testNow.Add(time.Duration(100+k)*time.Minute))
	}
	grown := live() - before
	runtime.KeepAlive(p) // or what is held is not counted at the end
	runtime.KeepAlive([][][]byte{a, b})
	t.Logf("1,000 instances: %v of CPU time per poll, garbage collection included; %d KiB live, %d bytes more after 30 polls", best, before>>10, grown)
	for what, d := range best {
		if d > within {
			t.Errorf("a poll of %d instances takes %s of CPU time when %s", n, d, what)
		}
	}
	if grown > 1<<20 {
		t.Errorf("30 polls keep %d bytes", grown)
	}
}

func live() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc) //nolint:gosec // far below
}

// console answers lists from memory, in no time.
type console struct {
	n     int
	calls map[string]int
	pages map[int][]byte // by the id before the first
}

// RoundTrip answers one page, or the instances that a filter names.
func (c *console) RoundTrip(req *http.Request) (*http.Response, error) {
	c.calls[req.URL.Path]++
	if req.URL.Path == "/api/v0/charges/" {
		return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"success":true,"results":[]}`)), Request: req}, nil
	}
	q := req.URL.Query()
	from := 0
	_, _ = fmt.Sscan(q.Get("after_token"), &from)
	if f := q.Get("select_filters"); f != "" {
		var ids struct{ ID struct{ In []int } }
		if err := json.Unmarshal([]byte(f), &ids); err != nil {
			return nil, err
		}
		from = -1 - ids.ID.In[0]
	}
	b := c.pages[from]
	if b == nil {
		first, last := from+1, min(from+pageSize, c.n)
		if from < 0 {
			first, last = -1-from, -1-from
		}
		var rows []string
		for id := first; id <= last; id++ {
			rows = append(rows, sampleRow(id, "offline", ""))
		}
		token := "null"
		if from >= 0 && last < c.n {
			token = fmt.Sprintf("%q", fmt.Sprint(last))
		}
		b = fmt.Appendf(nil, `{"success":true,"total_instances":%d,"next_token":%s,"instances":[%s]}`, c.n, token, strings.Join(rows, ","))
		c.pages[from] = b
	}
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(b)), Request: req}, nil
}

// TestCallsPerMinute prints what polling costs in calls, by the size of the fleet, in virtual time.
func TestCallsPerMinute(t *testing.T) {
	for _, tc := range []struct {
		n           int
		every       time.Duration // between the begins of two polls
		atMost      float64       // calls per minute
		nudgePerSec bool
	}{
		{0, 15 * time.Second, 4.2, false},
		{25, 15 * time.Second, 4.2, false},
		{100, 15 * time.Second, 16.5, false},
		{300, 15 * time.Second, 49.5, false},
		{1000, 48 * time.Second, 51.5, false},
		{25, 0, 51.5, true}, // traffic fails all the time
		{1000, 0, 51.5, true},
	} {
		if raceEnabled && tc.n > 100 {
			continue // minutes of it are the reading of thousands of instances
		}
		synctest.Test(t, func(t *testing.T) {
			c := &console{n: tc.n, calls: map[string]int{}, pages: map[int][]byte{}}
			p := New(Options{Key: "k", Transport: c})
			ctx, cancel := context.WithCancel(t.Context())
			out := make(chan []endpoint.Endpoint)
			done := make(chan error, 1)
			go func() { done <- p.Run(ctx, out) }()
			go func() {
				for {
					select {
					case <-out:
					case <-ctx.Done():
						return
					}
				}
			}()
			const minutes = 10
			for range minutes * 60 {
				time.Sleep(time.Second) //nolint:forbidigo // virtual
				if tc.nudgePerSec {
					p.Nudge("vast:7")
				}
			}
			s := p.Status()
			cancel()
			<-done
			total := 0
			for _, k := range c.calls {
				total += k
			}
			perMinute := float64(total) / minutes
			t.Logf("%4d instances, traffic failing: %-5v: %5.1f calls per minute, a look at all every %.1f s", tc.n, tc.nudgePerSec, perMinute, minutes*60/float64(s.Polls))
			if perMinute > tc.atMost {
				t.Errorf("%d instances cost %.1f calls per minute, more than %.1f", tc.n, perMinute, tc.atMost)
			}
			if want := int64(minutes * time.Minute / max(tc.every, 1)); tc.every > 0 && (s.Polls < want-1 || s.Polls > want+1) {
				t.Errorf("%d instances: %d polls in %d minutes, want one each %s", tc.n, s.Polls, minutes, tc.every)
			}
			if s.Endpoints != tc.n || s.LastError != "" {
				t.Errorf("status %+v", s)
			}
		})
	}
}
