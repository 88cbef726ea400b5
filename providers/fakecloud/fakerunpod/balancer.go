package fakerunpod

import (
	"net/http"
	"strings"
	"time"
)

const workerHeader = "X-Runpod-Worker-Id"

// serveBalancer answers what stands for https://ID.api.runpod.ai/….
func (c *Cloud) serveBalancer(w http.ResponseWriter, r *http.Request, path string) {
	if err := c.authorize(r, true); err != nil {
		envelope(w, http.StatusUnauthorized, err.Error())
		return
	}
	id, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	e := c.endpointByID(id)
	switch {
	case e == nil:
		envelope(w, http.StatusNotFound, "endpoint not found")
		return
	case e.cfg.Type != LoadBalancer:
		writeJSON(w, c.cfg.WrongTypeCode, map[string]string{"error": "not allowed for QB API"})
		return
	case r.ContentLength > maxBalancer:
		tooLarge(w, r)
		return
	}
	e.counted("balancer", false)
	k, answered := e.await(w, r)
	if answered {
		return
	}
	defer e.release(k)
	e.mu.Lock()
	h, bad := k.host, e.badPorts
	e.mu.Unlock()
	w.Header().Set(workerHeader, k.id)
	if bad || h == nil {
		html(w, http.StatusBadGateway, "502: Bad gateway")
		return
	}
	relay{
		c: c, w: w, r: r, target: h.URL() + "/" + rest, whole: c.limit(c.cfg.BalancerLimit), most: maxBalancer,
		broken: func() { html(w, http.StatusBadGateway, "502: Bad gateway") },
	}.run()
}

// await finds a worker for a request and takes a place at it. answered means that it answered itself.
func (e *Endpoint) await(w http.ResponseWriter, r *http.Request) (k *worker, answered bool) {
	want := r.Header.Get(workerHeader)
	mode := ""
	if m, id, ok := strings.Cut(want, " "); ok && (m == "strict" || m == "strict-resume") {
		mode, want = m, strings.TrimSpace(id)
	}
	patience := e.c.cfg.NoWorkerWait
	if mode != "" {
		patience = e.c.cfg.AffinityWait
	}
	over := time.NewTimer(e.c.limit(patience))
	defer over.Stop()
	e.mu.Lock()
	e.stats.InProgress++
	e.move()
	e.mu.Unlock()
	for {
		e.mu.Lock()
		k, there := e.choose(want, mode)
		if k != nil {
			k.requests++
			k.busy()
			e.mu.Unlock()
			return k, false
		}
		changed := e.changed.wait()
		e.mu.Unlock()
		if mode == "strict" && !there {
			e.depart()
			writeJSON(w, http.StatusNotFound, map[string]string{"error": "affinity worker is gone", "reason": "affinity_worker_gone"})
			return nil, true
		}
		select {
		case <-changed:
		case <-over.C:
			e.depart()
			switch {
			case mode != "":
				writeJSON(w, http.StatusBadRequest, map[string]string{"error": "timed out waiting for worker", "reason": "worker_timeout"})
			case e.c.cfg.NoWorkerText:
				writeBody(w, http.StatusBadRequest, "text/plain; charset=utf-8", []byte("timed out waiting for worker"))
			default:
				writeJSON(w, e.c.cfg.NoWorkerCode, map[string]string{"error": "no workers available"})
			}
			return nil, true
		case <-r.Context().Done():
			e.depart()
			panic(http.ErrAbortHandler)
		}
	}
}

// choose returns a worker with room: the wanted one, or when that need not be, any. there tells whether the wanted one
// exists. The caller holds e.mu.
func (e *Endpoint) choose(want, mode string) (k *worker, there bool) {
	if e.sick {
		return nil, true
	}
	for _, w := range e.workers {
		if w.id == want {
			there = true
			if w.room() {
				return w, true
			}
		}
	}
	if mode == "strict" || mode == "strict-resume" && there {
		return nil, there
	}
	return e.pick(), there
}

// release ends a request at a worker.
func (e *Endpoint) release(k *worker) {
	e.mu.Lock()
	k.requests--
	k.rest()
	e.mu.Unlock()
	e.depart()
}

// depart ends a request.
func (e *Endpoint) depart() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stats.InProgress--
	e.changed.fire()
	e.move()
}
