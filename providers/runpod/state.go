package runpod

import (
	"cmp"
	"time"

	"headrace/router/endpoint"
)

// gauges are what /health counts now. They are gauges of their own and not to be summed: an idle worker is
// counted as ready too. What each means is told by runpod/runpod-plugins-official (golden path 15) and runpod-mcp.
type gauges struct {
	idle, initializing, ready, running, throttled, unhealthy int
	queued, inProgress, completed                            int
}

// Times after which a reading means something else.
const (
	throttledFresh = time.Minute      // throttled workers often clear in 30 s; older ones without a queue are leftovers
	queuedTooLong  = 90 * time.Second // jobs wait, and no worker even starts
	stuckTooLong   = 3 * time.Minute  // jobs wait, and workers that say they are ready take none
	startingLong   = 7 * time.Minute  // RUNPOD_INIT_TIMEOUT: RunPod takes a worker for unhealthy then
	// assumedCold is a cold start of which nothing is known: 44 s and 41.6 s were measured on warm hosts, 105 s on others.
	assumedCold = 45 * time.Second
	coldLimit   = 20 * time.Minute // a fresh host that pulls its image took that long; more is a queue, not a start
)

// sight is what one look after the other has told about a service.
type sight struct {
	any  bool // looked before
	last gauges
	up   bool

	down      time.Time // last look at which nobody was up
	starting  time.Time // first look at which a start was under way
	queued    time.Time // first look at which jobs waited and nobody was up or starting
	throttled time.Time // first look at which workers were throttled
	cameUp    time.Time // first look at which a worker was up again, until it has worked
	stuck     time.Time // first look at which ready workers left jobs in the queue
	crashing  bool

	cold time.Duration // mean of the starts that were seen whole, 0 for none
	pace float64       // Options.Pace; 0 for 1
}

func (v *sight) coldStart() time.Duration {
	paced := func(d time.Duration) time.Duration { return time.Duration(float64(d) * cmp.Or(v.pace, 1)) }
	if v.cold == 0 {
		return paced(assumedCold)
	}
	// In steps, so that a mean that moves a little is no news.
	return v.cold.Round(max(paced(time.Second), v.cold.Truncate(paced(10*time.Second))/10))
}

// learn takes in how long a start took.
func (v *sight) learn(d time.Duration) {
	switch {
	case d <= 0 || d > coldLimit:
	case v.cold == 0:
		v.cold = d
	default:
		v.cold += (d - v.cold) * 3 / 10
	}
}

// since notes when a condition was first seen, and forgets that when it is over.
func since(at *time.Time, now time.Time, holds bool) time.Duration {
	switch {
	case !holds:
		*at = time.Time{}
	case at.IsZero():
		*at = now
	}
	if at.IsZero() {
		return 0
	}
	return now.Sub(*at)
}

// look judges a reading in the light of the earlier ones. A load-balancing endpoint is up when a worker is ready: running
// means there that a container runs, whatever its health check says.
func (v *sight) look(g gauges, now time.Time, d *description, settle time.Duration) (endpoint.State, string) {
	up := g.ready > 0 || g.idle > 0 || g.running > 0
	if d.balancer {
		up = g.ready > 0
	}
	before, was, looked := v.last, v.up, v.any
	v.last, v.up, v.any = g, up, true
	if !up {
		v.down = now
	}

	switch {
	case up && !v.starting.IsZero():
		v.learn(now.Sub(v.starting))
		v.starting = time.Time{}
	case !up && g.wanted(d) && looked && (was || !before.wanted(d)): // not one that was under way at the first look
		v.starting = now
	case !g.wanted(d):
		v.starting = time.Time{}
	}

	if up {
		since(&v.queued, now, false)
		since(&v.throttled, now, false)
		v.crashing = false
		return v.lookUp(g, before, was, looked, now, d, settle)
	}
	since(&v.cameUp, now, false)
	since(&v.stuck, now, false)
	throttled := since(&v.throttled, now, g.throttled > 0)
	queued := since(&v.queued, now, g.queued > 0 && g.initializing == 0)
	v.crashing = g.unhealthy > 0 && (v.crashing || g.queued > 0 && (g.initializing == 0 || looked && g.unhealthy > before.unhealthy))
	switch {
	case d.maxWorkers == 0:
		return endpoint.NoCapacity, "it may run no workers (max is 0): RunPod sets that after 7 days without requests, and 2 after 3 days; raise it again"
	case v.crashing:
		return endpoint.NoCapacity, "its workers crash while jobs wait: see their logs at RunPod"
	case g.initializing > 0:
		if g.unhealthy > 0 {
			return endpoint.Starting, "a worker starts, another was unhealthy"
		}
		if !v.starting.IsZero() && now.Sub(v.starting) > startingLong {
			return endpoint.Starting, "a worker has been starting for over 7 minutes: a fresh host pulls the whole image"
		}
		return endpoint.Starting, "a worker starts"
	case g.throttled > 0 && (g.queued > 0 || throttled < throttledFresh):
		return endpoint.NoCapacity, "RunPod has no free GPU for its workers (throttled)"
	case g.queued > 0 && queued > queuedTooLong:
		return endpoint.NoCapacity, "jobs wait and RunPod starts no worker"
	case g.queued > 0:
		return endpoint.Starting, "jobs wait for a worker"
	case d.balancer && g.running > 0:
		return endpoint.Starting, "a worker's container runs, but its health check does not pass yet"
	case g.unhealthy > 0:
		return endpoint.Cold, "no worker is up; the last one was unhealthy"
	case g.throttled > 0:
		return endpoint.Cold, "no worker is up; a throttled one is left from before"
	}
	return endpoint.Cold, "no worker is up"
}

// lookUp judges a reading with a worker up.
func (v *sight) lookUp(g, before gauges, was, looked bool, now time.Time, d *description, settle time.Duration) (endpoint.State, string) {
	works := g.inProgress > 0 || looked && g.completed > before.completed || !d.balancer && g.running > 0
	stuck := since(&v.stuck, now, g.queued > 0 && !works)
	switch {
	case works || !looked: // at the first look it is taken at its word
		v.cameUp = time.Time{}
	case !was:
		v.cameUp = now
	}
	if !v.cameUp.IsZero() && now.Sub(v.cameUp) < settle {
		return endpoint.Starting, "a worker has just come up and may still load its model"
	}
	v.cameUp = time.Time{}
	switch {
	case d.maxWorkers == 0:
		return endpoint.Draining, "it may run no workers any more (max is 0); those that are up finish"
	case stuck > stuckTooLong:
		return endpoint.NoCapacity, "jobs stay in the queue although workers say they are ready"
	case stuck > 0:
		return endpoint.Starting, "jobs wait although a worker says it is ready: it may still load its model"
	case g.queued > 0 && before.queued > 0 && g.idle == 0:
		return endpoint.Saturated, "all its workers are busy and jobs wait"
	}
	return endpoint.Ready, ""
}

// wanted tells that a worker starts or that somebody waits for one.
func (g *gauges) wanted(d *description) bool {
	return g.initializing > 0 || g.queued > 0 || d.balancer && g.running > 0
}
