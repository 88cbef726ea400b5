package runpod

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	"headrace/providers/api"
)

// fleetOf is an account with n endpoints, a third of which is up.
func fleetOf(n int) *account {
	a := newAccount()
	var entries []string
	for i := range n {
		id := fmt.Sprintf("ep%04d", i)
		entries = append(entries, entry(id))
		if i%3 == 0 {
			a.set("/v2/"+id+"/health", readyHealth)
		}
	}
	a.set("/v2/serverless", listOf(entries...))
	a.limit = &quotas{q: [3]float64{60, 3000, 50000}} // the samples of RunPod's specification
	return a
}

// Calls a minute by the size of the fleet, and never a 429.
func TestCallsPerMinute(t *testing.T) {
	for _, n := range []int{1, 10, 100, 1000} {
		if raceEnabled && n == 1000 {
			continue // a minute of it is 5,000 calls
		}
		a := fleetOf(n)
		inBubble(t, a, Options{}, func(t *testing.T, w *watched) {
			if eps := w.after(time.Minute); len(eps) != n {
				t.Fatalf("%d endpoints were sent, want %d", len(eps), n)
			}
			minutes := min(60, 2000/float64(n))
			before := w.Status()
			w.after(time.Duration(minutes) * time.Minute)
			now := w.Status()
			per := func(names ...string) (sum float64) {
				for _, name := range names {
					sum += float64(callsOf(now, name)-callsOf(before, name)) / minutes
				}
				return sum
			}
			managed := per("GET /v2/serverless", "GET /v2/catalog/gpus", "GET /v2/serverless/{id}", "GET /v2/serverless/{id}/workers")
			health := per("GET /health")
			t.Logf("%4d endpoints, a third of them up: %5.1f management calls a minute (lists %.1f, prices %.1f, workers %.1f), %7.1f looks at /health a minute",
				n, managed, per("GET /v2/serverless"), per("GET /v2/catalog/gpus"), per("GET /v2/serverless/{id}/workers"), health)
			if a.limit.refused > 0 {
				t.Errorf("%d endpoints: %d calls ran into the rate limit", n, a.limit.refused)
			}
			if managed > 30 {
				t.Errorf("%d endpoints: %.1f management calls a minute, more than a half of the limit", n, managed)
			}
			if health > 6000 {
				t.Errorf("%d endpoints: %.1f looks a minute", n, health)
			}
			if per("GET /v2/serverless") < 0.9 && n < 1000 {
				t.Errorf("%d endpoints: the list is read %.2f times a minute only", n, per("GET /v2/serverless"))
			}
		})
	}
}

// A 429 that comes nevertheless, because others use the account too, is waited out.
func TestOthersUseUpTheLimit(t *testing.T) {
	a := fleetOf(20)
	inBubble(t, a, Options{}, func(t *testing.T, w *watched) {
		w.after(10 * time.Second)
		a.mu.Lock()
		a.limit.used[0] = a.limit.q[0] // all of this minute
		a.mu.Unlock()
		w.after(10 * time.Minute)
		if a.limit.refused > 2 {
			t.Errorf("%d calls were refused where the first says it all", a.limit.refused)
		}
		if st := w.Status(); st.Failing != 0 || time.Since(st.LastGood) > 2*time.Minute {
			t.Errorf("status %+v", st)
		}
	})
}

func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// thousand is a Provider that knows a thousand endpoints, and two lists that differ in one of ten.
func thousand(t testing.TB) (p *Provider, lists [2]*api.Answer) {
	t.Helper()
	var entries, moved []string
	for i := range 1000 {
		e := entry(fmt.Sprintf("ep%04d", i))
		entries = append(entries, e)
		if i%10 == 0 {
			e = entry(fmt.Sprintf("ep%04d", i))[:len(e)-1] + `,"moved":true}`
		}
		moved = append(moved, e)
	}
	lists = [2]*api.Answer{{Body: []byte(listOf(entries...))}, {Body: []byte(listOf(moved...))}}
	p = New(Options{Key: testKey})
	p.gotCatalog(sampleCatalog, time.Unix(0, 0))
	p.gotList(lists[0], nil)
	if len(p.fleet()) != 1000 {
		t.Fatalf("%d endpoints", len(p.fleet()))
	}
	return p, lists
}

// A poll of a thousand endpoints: reading the list, comparing, building what has changed, putting the set together.
func TestAThousandEndpoints(t *testing.T) {
	p, lists := thousand(t)
	polls := 40
	if raceEnabled {
		polls = 4
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	poll := func(i int) {
		p.gotList(lists[i%2], nil)
		if set := p.fleet(); len(set) != 1000 {
			t.Fatalf("%d endpoints", len(set))
		}
	}
	for i := range 4 {
		poll(i)
	}
	before, began := heap(), cpu(t)
	for i := range polls {
		poll(i)
	}
	took, after := (cpu(t)-began)/time.Duration(polls), heap()
	t.Logf("a poll of 1,000 endpoints, 100 of them changed: %v of CPU time, garbage collection included; heap %d KiB before %d polls and %d KiB after", took, before>>10, polls, after>>10)
	if limit := 50 * time.Millisecond; took > limit && !raceEnabled {
		t.Errorf("a poll took %v of CPU time, want less than %v", took, limit)
	}
	runtime.KeepAlive(p)
	runtime.KeepAlive(lists)
	if after > before+before/10+256<<10 {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
}

func BenchmarkPollOfAThousand(b *testing.B) {
	p, lists := thousand(b)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		p.gotList(lists[i%2], nil)
		p.fleet()
		i++
	}
}

func BenchmarkLookAtHealth(b *testing.B) {
	p, _ := thousand(b)
	answers := [2]*api.Answer{{Body: []byte(readyHealth)}, {Body: []byte(asleepHealth)}}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		p.gotHealth(p.order[i%len(p.order)], answers[i/len(p.order)%2], nil)
		i++
	}
}
