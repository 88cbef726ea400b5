package runpod_test

import (
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/providers/fakecloud/fakerunpod"
	"headrace/providers/runpod"
	"headrace/router/endpoint"
)

// hand is a clock that goes on when it is told to.
type hand struct {
	mu sync.Mutex
	t  time.Time
}

func (h *hand) now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.t
}

func (h *hand) add(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.t = h.t.Add(d)
}

const billingCall = "GET billing/serverless"

// TestBill compares the billing API with prices and worker seconds: of an endpoint with a worker that stays up and one that
// sleeps, and of a pod that is stopped half-way.
func TestBill(t *testing.T) {
	for name, tc := range map[string]struct {
		factor    float64
		low, high float64 // error in percent
		warnings  int
	}{
		"as it says": {1, -3, 3, 0},
		"30 % more":  {1.3, 26, 34, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clk := &hand{t: time.Date(2026, 8, 20, 9, 40, 0, 0, time.UTC)}
			var pod *fakerunpod.Pod
			r := rent(t, fakerunpod.Config{BillNow: clk.now}, runpod.Options{Now: clk.now, Pods: []runpod.PodOptions{{Match: "*"}}}, func(c *fakerunpod.Cloud) {
				c.SetBilling(tc.factor)
				c.AddEndpoint(fakerunpod.EndpointConfig{ID: "e1", Env: secretEnv, WorkersMin: 1, ColdStart: time.Second, GPUTypes: []string{"NVIDIA L40S"}})
				c.AddEndpoint(fakerunpod.EndpointConfig{ID: "e2", Env: secretEnv})
				var err error
				if pod, err = c.AddPod(fakerunpod.PodConfig{ID: "p1", Models: []string{"pm"}, GPUType: "NVIDIA GeForce RTX 4090", GPUCount: 1}); err != nil {
					t.Fatal(err)
				}
			})
			tick := func(d time.Duration) {
				polls, pods, looks := r.Status().Polls, calls(r, "GET /v2/pods"), calls(r, "GET /health")
				clk.add(d)
				r.status(t, "a look at all", func() bool {
					return r.Status().Polls > polls && calls(r, "GET /v2/pods") > pods && calls(r, "GET /health") >= looks+2
				})
			}
			for r.now == nil || r.now[0].State != endpoint.Ready || r.now[0].Hardware.GPU != "L40S" {
				tick(10 * time.Second)
			}
			for range 75 { // 6 h
				tick(5 * time.Minute)
				if clk.now().Hour() == 12 && pod.Status() == fakerunpod.PodRunning {
					pod.Stop()
				}
			}
			b := r.Status().Bill
			if b == nil || b.Compared != 3 || b.LeftOut != 0 || b.LastError != "" || b.From.Hour() != 10 || b.To.Sub(b.From) < 4*time.Hour || b.AgeSeconds > 3600+20*60 {
				t.Fatalf("%+v", b)
			}
			if b.ErrorPercent < tc.low || b.ErrorPercent > tc.high {
				t.Errorf("%+v", b)
			}
			parts, hosts := 0.0, map[endpoint.ID]bool{}
			for _, p := range b.Parts {
				parts += p.USD
				hosts[p.Endpoint] = true
				if p.To.Sub(p.From) != time.Hour || p.From.Before(b.From) || p.To.After(b.To) {
					t.Errorf("part %+v of a bill from %v to %v", p, b.From, b.To)
				}
			}
			if math.Abs(parts-b.BilledUSD) > 1e-9 || len(hosts) != b.Compared {
				t.Errorf("parts of $%v for %v, the bill is $%v for %d", parts, hosts, b.BilledUSD, b.Compared)
			}
			if want := b.To.Sub(b.From).Hours() * 1.908; b.ExpectedUSD < want || b.ExpectedUSD > want+3 || math.Abs(b.BilledUSD/b.ExpectedUSD-tc.factor) > 0.04 {
				t.Errorf("billed %g, expected %g; the endpoint alone has cost %g", b.BilledUSD, b.ExpectedUSD, want)
			}
			if n := r.ManagementCalls()[billingCall]; n < 4 || n > 7 {
				t.Errorf("%d looks at the bill", n)
			}
			if n := strings.Count(r.log.String(), "the bill is not what"); n != tc.warnings {
				t.Errorf("%d warnings", n)
			}
		})
	}
}

func calls(r *rented, name string) (n int64) {
	for _, c := range r.Status().Calls {
		if c.Name == name {
			n += c.Calls
		}
	}
	return n
}
