package load

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"headrace/cmd/loadgen/internal/mock"
	"headrace/cmd/loadgen/internal/procstat"
)

// Bounds of one run.
const (
	MaxConnections = 5000
	MaxDuration    = 2 * time.Minute
	MaxRequests    = 5_000_000
)

const (
	// settle is the pause that lets connections close before the next reading.
	settle = 50 * time.Millisecond
	// sampleEvery is how often memory is looked at for its peak.
	sampleEvery = 250 * time.Millisecond
	// maxFailures ends a worker: a target that is down is not worth the CPU.
	maxFailures  = 20
	failurePause = 10 * time.Millisecond
	// slack is what an exchange may take beyond the mock's own schedule.
	slack = 20 * time.Second
)

// Plan is one run against one target.
type Plan struct {
	Mock      mock.Settings
	Stream    bool
	Conns     int
	Rate      float64 // open loop: requests per second; 0: closed loop, each connection as fast as it can
	Duration  time.Duration
	Requests  int           // at most
	PerWorker int           // requests of one connection at most; 0: no bound
	Ramp      time.Duration // over which connections start
}

// Validate names everything that is out of bounds.
func (p Plan) Validate() error {
	var errs []error
	if p.Conns < 1 || p.Conns > MaxConnections {
		errs = append(errs, fmt.Errorf("%d connections: want 1 to %d", p.Conns, MaxConnections))
	}
	if p.Duration <= 0 || p.Duration > MaxDuration || p.Ramp < 0 || p.Ramp > MaxDuration {
		errs = append(errs, fmt.Errorf("duration %v, ramp %v: want at most %v", p.Duration, p.Ramp, MaxDuration))
	}
	if p.Requests < 1 || p.Requests > MaxRequests {
		errs = append(errs, fmt.Errorf("%d requests: want 1 to %d", p.Requests, MaxRequests))
	}
	if p.Rate < 0 || p.Rate > 1e6 {
		errs = append(errs, fmt.Errorf("rate %g: want 0 to 1e6", p.Rate))
	}
	if d := time.Duration(p.Mock.Tokens)*p.Mock.Gap + p.Mock.Delay; p.Stream && d > MaxDuration {
		errs = append(errs, fmt.Errorf("a stream would take %v: want at most %v", d, MaxDuration))
	}
	errs = append(errs, p.Mock.Validate())
	return errors.Join(errs...)
}

func (p Plan) want(t *Target) expected {
	return expected{stream: p.Stream, tokens: p.Mock.Tokens, usage: t.asksUsage || p.Mock.Usage, content: []byte(mock.Content(p.Mock.Body))}
}

// limit bounds one exchange.
func (p Plan) limit() time.Duration {
	d := p.Mock.Delay + slack
	if p.Stream {
		d += time.Duration(p.Mock.Tokens) * p.Mock.Gap
	}
	return d
}

// Warm returns a shorter closed-loop run with the same connections, which fills pools and caches.
func (p Plan) Warm() Plan {
	p.Duration, p.Rate, p.Ramp = min(time.Second, p.Duration/2), 0, 0
	p.Requests, p.PerWorker = 20*p.Conns+100, 0
	if p.Mock.Gap > 0 {
		p.PerWorker = 1
	}
	return p
}

// Run loads t as planned; the mock at mockURL gets the plan's settings first. Runs end early when ctx
// does, with its error. Failed exchanges are counted in the row and no error.
func Run(ctx context.Context, t *Target, p Plan, mockURL string) (Row, error) {
	if err := p.Validate(); err != nil {
		return Row{}, err
	}
	mockPID, err := Configure(mockURL, p.Mock)
	if err != nil {
		return Row{}, err
	}
	r := run{t: t, p: p}
	r.left.Store(int64(p.Requests))
	if r.idle, err = t.usage(); err != nil {
		return Row{}, err
	}
	mockBefore, err := procstat.Tree(mockPID)
	if err != nil {
		return Row{}, fmt.Errorf("usage of the mock: %w", err)
	}
	if err := r.load(ctx); err != nil {
		return Row{}, err
	}
	end, err := t.usage()
	if err != nil {
		return Row{}, err
	}
	mockAfter, err := procstat.Tree(mockPID)
	if err != nil {
		return Row{}, fmt.Errorf("usage of the mock: %w", err)
	}
	row := r.row(end.CPU-r.idle.CPU, mockAfter.CPU-mockBefore.CPU)
	return row, Pause(ctx, settle)
}

// run is the state of one run.
type run struct {
	t           *Target
	p           Plan
	tally       tally
	left        atomic.Int64 // requests that may still start
	unscheduled atomic.Uint64
	elapsed     time.Duration
	idle, peak  procstat.Usage // of the proxy, before the run and at its largest
}

// load runs the workers to their end and watches the proxy's memory meanwhile.
func (r *run) load(ctx context.Context) error {
	timed, cancel := context.WithTimeout(ctx, r.p.Duration)
	defer cancel()
	var tickets chan time.Time
	var wg sync.WaitGroup
	if r.p.Rate > 0 {
		tickets = make(chan time.Time, 4096)
		wg.Go(func() { r.schedule(timed, tickets) })
	}
	start := time.Now()
	for i := range r.p.Conns {
		wg.Go(func() {
			if Pause(timed, r.p.Ramp*time.Duration(i)/time.Duration(r.p.Conns)) == nil {
				r.work(ctx, timed, tickets)
			}
		})
	}
	finished := make(chan struct{})
	go func() { wg.Wait(); close(finished) }()
	r.peak = r.idle
	sample := time.NewTicker(sampleEvery)
	defer sample.Stop()
	for {
		select {
		case <-finished:
			r.elapsed = time.Since(start)
			return ctx.Err()
		case <-sample.C:
			if u, err := r.t.usage(); err == nil && u.RSS > r.peak.RSS {
				r.peak = u
			}
		}
	}
}

// work is one connection's part. A started exchange may outlast timed, but not ctx.
func (r *run) work(ctx, timed context.Context, tickets <-chan time.Time) {
	w := worker{t: r.t, tally: &r.tally, want: r.p.want(r.t), bufLen: 16 << 10, limit: r.p.limit()}
	if r.p.Conns > 512 {
		w.bufLen = 4 << 10
	}
	defer w.close()
	failures := 0
	for n := 0; r.p.PerWorker == 0 || n < r.p.PerWorker; n++ {
		since := time.Now()
		if tickets != nil {
			due, ok := <-tickets
			if !ok {
				return
			}
			since = due // waiting for a free connection is part of the latency
		}
		if timed.Err() != nil && tickets == nil || r.left.Add(-1) < 0 {
			return
		}
		err := w.exchange(ctx, since)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			r.tally.fail(err)
			if failures++; failures >= maxFailures || Pause(timed, failurePause) != nil {
				return
			}
		}
	}
}

// schedule issues a ticket for every arrival of an open loop. An arrival that finds the queue full is
// counted, not delayed: a load that slows down with its target hides what it should show.
func (r *run) schedule(ctx context.Context, tickets chan<- time.Time) {
	defer close(tickets)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	start := time.Now()
	for i := 0; i < r.p.Requests && ctx.Err() == nil; i++ {
		due := start.Add(time.Duration(float64(i) / r.p.Rate * float64(time.Second)))
		if deadline, ok := ctx.Deadline(); ok && due.After(deadline) {
			return
		}
		sleepUntil(due)
		select {
		case tickets <- due:
		default:
			r.unscheduled.Add(1)
		}
	}
}

// Pause waits for d, and less with the context's error when that ends first.
func Pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
