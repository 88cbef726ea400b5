package fakerunpod

// gauges are the workers of an endpoint as /health counts them. They overlap: an idle worker is ready too.
type gauges struct {
	Idle         int `json:"idle"`
	Initializing int `json:"initializing"`
	Ready        int `json:"ready"`
	Running      int `json:"running"`
	Throttled    int `json:"throttled"`
	Unhealthy    int `json:"unhealthy"`
}

type healthJobs struct {
	Completed  int `json:"completed"`
	Failed     int `json:"failed"`
	InProgress int `json:"inProgress"`
	InQueue    int `json:"inQueue"`
	Retried    int `json:"retried"`
}

type healthAnswer struct {
	Jobs    healthJobs `json:"jobs"`
	Workers gauges     `json:"workers"`
}

// gauges counts. The caller holds e.mu. ready are workers that poll for jobs: idle ones, and busy ones with room for more.
// A load balancer's running workers are containers that are up; they are ready once their health check says so.
func (e *Endpoint) gauges() (g gauges) {
	balancer := e.cfg.Type == LoadBalancer
	for _, w := range e.workers {
		switch {
		case balancer && !w.started.IsZero():
			g.Running++
			if (w.up || w.ready) && !e.sick {
				g.Ready++
				if w.load() == 0 {
					g.Idle++
				}
			}
		case w.status == Idle:
			g.Idle++
			g.Ready++
		case w.status == Running:
			g.Running++
			if w.room() {
				g.Ready++
			}
		case w.status == Throttled:
			g.Throttled++
		case w.status == Unhealthy:
			g.Unhealthy++
		case w.ready:
			g.Ready++
		default:
			g.Initializing++
		}
	}
	return g
}

func (e *Endpoint) health() healthAnswer {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := healthAnswer{Workers: e.gauges()}
	if s := e.stats; e.cfg.Type == Queue {
		h.Jobs = healthJobs{Completed: s.Completed, Failed: s.Failed + s.TimedOut, InProgress: s.InProgress, InQueue: s.Queued, Retried: s.Retried}
	}
	return h
}

// metrics is undocumented; its shape is the one that RunPod's own SDK reads.
func (e *Endpoint) metrics() any {
	e.mu.Lock()
	defer e.mu.Unlock()
	ready := []string{}
	for _, w := range e.workers {
		if w.up {
			ready = append(ready, w.id)
		}
	}
	return map[string]any{"readyWorkers": ready, "workers": e.gauges()}
}
