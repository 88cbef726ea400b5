package vast_test

import (
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/providers/fakecloud/fakevast"
	"headrace/providers/vast"
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

const chargesCall = "GET /api/v0/charges/"

// TestBill compares charges with prices: of one instance that runs, and one that is stopped, where storage alone goes on. The
// clock goes in steps of 2 minutes, so that the stop is seen, and a bill dated, that late.
func TestBill(t *testing.T) {
	for name, tc := range map[string]struct {
		factor       float64
		low, high    float64 // error in percent
		warnings     int
		beginAtNight bool // a day ends in between
	}{
		"as it says":   {factor: 1, low: -4, high: 4},
		"30 % more":    {factor: 1.3, low: 25, high: 35, warnings: 1},
		"over the day": {factor: 1, low: -4, high: 4, beginAtNight: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clk := &hand{t: time.Date(2026, 8, 20, 9, 30, 0, 0, time.UTC)}
			if tc.beginAtNight {
				clk.add(13 * time.Hour)
			}
			const dph = 2.0
			r := start(t, fakevast.Config{Now: clk.now}, func(o *vast.Options) { o.Now = clk.now },
				fakevast.InstanceConfig{ID: 11, DPHBase: dph, DiskGB: 720}, fakevast.InstanceConfig{ID: 12, DPHBase: dph, DiskGB: 720, StorageCost: 0.5})
			r.cloud.SetBilling(tc.factor)
			r.until("both", func(eps []endpoint.Endpoint) bool { return len(eps) == 2 && eps[1].State == endpoint.Ready })
			step := func() {
				polls, asked := r.p.Status().Polls, r.cloud.Stats().Calls[chargesCall]
				clk.add(2 * time.Minute)
				r.status("a poll", func() bool { return r.p.Status().Polls > polls })
				if n := r.cloud.Stats().Calls[chargesCall] - asked; n > 1 {
					t.Fatalf("%d looks at the bill within 2 minutes", n)
				}
			}
			for range 40 {
				step()
			}
			r.cloud.Instances()[1].Stop()
			for range 80 {
				step()
			}
			s := r.status("a bill of 2 hours", func() bool {
				b := r.p.Status().Bill
				return b != nil && b.To.Sub(b.From) > 2*time.Hour
			})
			b := s.Bill
			if b.Compared != 2 || b.LeftOut != 0 || b.ErrorPercent < tc.low || b.ErrorPercent > tc.high || b.OtherUSD > 0.01 || b.AgeSeconds > 3700 {
				t.Errorf("%+v", b)
			}
			one := r.cloud.Instances()[0].Charge()
			if most := tc.factor * 2 * (one.GPU + one.Disk); b.BilledUSD > most || b.BilledUSD < most/2 || math.Abs(b.ExpectedUSD*tc.factor-b.BilledUSD) > 0.5 {
				t.Errorf("billed %g, expected %g; the first alone has cost %+v", b.BilledUSD, b.ExpectedUSD, one)
			}
			if n := r.cloud.Stats().Calls[chargesCall]; n < 3 || n > 5 { // in 4 hours
				t.Errorf("%d looks at the bill", n)
			}
			if n := strings.Count(r.log.String(), "the bill is not what"); n != tc.warnings {
				t.Errorf("%d warnings", n)
			}
		})
	}
}

// TestBillRefused has a key that may not see charges: that is said once, and changes nothing else.
func TestBillRefused(t *testing.T) {
	clk := &hand{t: time.Date(2026, 8, 20, 9, 30, 0, 0, time.UTC)}
	r := start(t, fakevast.Config{Now: clk.now}, func(o *vast.Options) {
		o.Now = clk.now
		o.Transport = roundTrip(func(req *http.Request) (*http.Response, error) {
			if strings.HasPrefix(req.URL.Path, "/api/v0/charges") {
				return answer(req, 403, `{"success":false,"error":"auth_error","msg":"This action requires billing_read."}`), nil
			}
			return http.DefaultTransport.RoundTrip(req)
		})
	}, fakevast.InstanceConfig{})
	r.until("one", func(eps []endpoint.Endpoint) bool { return len(eps) == 1 && eps[0].State == endpoint.Ready })
	for range 40 {
		polls := r.p.Status().Polls
		clk.add(5 * time.Minute)
		r.status("a poll", func() bool { return r.p.Status().Polls > polls })
	}
	s := r.status("a failed bill", func() bool { return r.p.Status().Bill != nil })
	if b := s.Bill; !strings.Contains(b.LastError, "billing_read") || b.Compared != 0 || s.Failing != 0 {
		t.Errorf("%+v", s)
	}
	if n := strings.Count(r.log.String(), "the bill cannot be read"); n != 1 {
		t.Errorf("said %d times", n)
	}
}
