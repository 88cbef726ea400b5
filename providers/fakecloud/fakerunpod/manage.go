package fakerunpod

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// serveManagement answers what stands for https://api.runpod.io/v2/….
func (c *Cloud) serveManagement(w http.ResponseWriter, r *http.Request, path string) {
	w.Header().Set("X-Request-Id", c.draw(20))
	if err := c.authorize(r, false); err != nil {
		detail := "invalid bearer token"
		if err == errNoKey { //nolint:errorlint // one of two of our own
			detail = "missing bearer token"
		}
		problem(w, http.StatusUnauthorized, detail)
		return
	}
	parts := strings.Split(strings.Trim(path, "/"), "/")
	kind := strings.Join(parts[:min(len(parts), 2)], "/")
	if parts[0] == "serverless" || parts[0] == "pods" {
		kind = parts[0]
		if len(parts) > 1 {
			kind += "/{id}"
		}
		if len(parts) > 2 {
			kind += "/" + parts[2]
		}
	}
	c.mu.Lock()
	c.calls[r.Method+" "+kind]++
	c.mu.Unlock()
	if !c.quota.take(w, c.cfg.Management) {
		return
	}
	methods := []string{http.MethodGet}
	switch kind {
	case "pods/{id}/action":
		methods = []string{http.MethodPost}
	case "serverless/{id}":
		methods = append(methods, http.MethodPatch)
	}
	var serve func()
	id := ""
	if len(parts) > 1 {
		id = parts[1]
	}
	switch {
	case kind == "catalog/gpus":
		serve = func() { c.serveGPUs(w, r, strings.Join(parts[2:], "/")) }
	case kind == "billing/serverless" && len(parts) == 2, kind == "billing/pods" && len(parts) == 2:
		serve = func() { c.serveBilling(w, r, id) }
	case kind == "serverless":
		serve = func() { c.listEndpoints(w) }
	case kind == "serverless/{id}" || kind == "serverless/{id}/workers" && len(parts) == 3:
		if e := c.endpointByID(id); e != nil {
			serve = func() {
				if r.Method == http.MethodPatch {
					e.patch(w, r)
					return
				}
				writeJSON(w, http.StatusOK, e.describe(len(parts) == 3))
			}
		}
	case kind == "pods":
		serve = func() { c.listPods(w) }
	case kind == "pods/{id}", kind == "pods/{id}/action" && len(parts) == 3:
		if p := c.podByID(id); p != nil {
			serve = func() { p.serve(w, r, len(parts) == 3) }
		}
	}
	switch {
	case serve == nil:
		problem(w, http.StatusNotFound, "resource not found")
	case !slices.Contains(methods, r.Method):
		w.Header().Set("Allow", strings.Join(methods, ", "))
		problem(w, http.StatusMethodNotAllowed, "The requested method is not allowed for this path.")
	default:
		serve()
	}
}

// ManagementCalls counts the requests that the management API got, by method and path: "GET serverless/{id}/workers".
func (c *Cloud) ManagementCalls() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.calls)
}

func (c *Cloud) listEndpoints(w http.ResponseWriter) {
	list := []any{}
	for _, e := range c.endpointList() {
		list = append(list, e.describe(false))
	}
	writeJSON(w, http.StatusOK, map[string]any{"endpoints": list})
}

func (c *Cloud) isOdd() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.odd
}

// describe is the endpoint, or its workers, as the management API shows them.
func (e *Endpoint) describe(workers bool) map[string]any {
	odd := e.c.isOdd()
	pools := slices.Clone(e.cfg.Pools)
	for _, id := range e.cfg.GPUTypes {
		if e.cfg.Pools != nil {
			break
		}
		if p := e.c.gpu(id).pool; p != "" && !slices.Contains(pools, p) {
			pools = append(pools, p)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if workers {
		return e.describeWorkers(odd)
	}
	kind, urls := "QUEUE", e.queueURLs()
	if e.cfg.Type == LoadBalancer {
		kind, urls = "LOAD_BALANCER", map[string]string{
			"base": strings.ReplaceAll(e.c.BalancerURL(), "{id}", e.cfg.ID), "health": e.c.QueueURL() + "/" + e.cfg.ID + "/health",
		}
	}
	scaling := map[string]any{"type": "QUEUE_DELAY", "queueDelay": e.cfg.QueueDelay.Seconds()}
	if e.cfg.RequestCount > 0 {
		scaling = map[string]any{"type": "REQUEST_COUNT", "requestCount": e.cfg.RequestCount}
	}
	m := map[string]any{
		"id": e.cfg.ID, "name": e.cfg.Name, "type": kind, "requestUrls": urls,
		"image": e.image, "args": e.cfg.Args, "env": e.cfg.Env, "disk": 20, "ports": []string{}, "registry": nil,
		"gpu":     map[string]any{"pools": pools, "excludedTypes": []string{}, "count": e.cfg.GPUCount},
		"workers": map[string]any{"min": e.workersMin, "max": e.workersMax, "idleTimeout": int(e.idleTimeout.Seconds())},
		"scaling": scaling, "timeout": e.cfg.Timeout.Milliseconds(), "flashboot": "FLASHBOOT",
		"dataCenterIds": e.cfg.DataCenters, "networkVolumes": []string{}, "createdAt": e.created.UTC().Format(time.RFC3339),
		"endpointVersion": e.version,
	}
	if odd {
		m["type"], m["workers"], m["timeout"] = "HYBRID", map[string]any{"min": "0", "max": "3"}, "600000"
		delete(m, "requestUrls")
		delete(m, "scaling")
	}
	return m
}

// patch changes what the body names of the workers' numbers, and answers with the endpoint. The other settings that RunPod lets
// be changed are refused: a fake that took them without effect would be believed.
func (e *Endpoint) patch(w http.ResponseWriter, r *http.Request) {
	var body map[string]json.RawMessage
	if decode(r, &body) != nil {
		problem(w, http.StatusBadRequest, "request body is not valid JSON")
		return
	}
	var ask struct{ Min, Max, IdleTimeout *int }
	if json.Unmarshal(body["workers"], &ask) != nil || len(body) != 1 {
		problem(w, http.StatusUnprocessableEntity, "Request validation failed.")
		return
	}
	e.c.mu.Lock()
	refused := e.c.refusals
	if refused > 0 {
		e.c.refusals--
	}
	e.c.mu.Unlock()
	if refused > 0 {
		problem(w, http.StatusForbidden, "access denied")
		return
	}
	ok := false
	e.with(func() {
		least, most, idle := e.workersMin, e.workersMax, int(e.idleTimeout.Seconds())
		for into, v := range map[*int]*int{&least: ask.Min, &most: ask.Max, &idle: ask.IdleTimeout} {
			if v != nil {
				*into = *v
			}
		}
		if ok = least >= 0 && most >= least && idle >= 1 && idle <= 3600; !ok {
			return
		}
		if ask.IdleTimeout != nil {
			e.idleTimeout = time.Duration(idle) * time.Second
		}
		e.workersMax = most
		e.setWorkersMin(least)
	})
	if !ok {
		problem(w, http.StatusUnprocessableEntity, "Request validation failed.")
		return
	}
	e.c.mu.Lock()
	lost := e.c.lost > 0
	if lost {
		e.c.lost--
	}
	e.c.mu.Unlock()
	if lost {
		panic(http.ErrAbortHandler)
	}
	writeJSON(w, http.StatusOK, e.describe(false))
}

// RefuseChanges answers the next n changes of endpoints with 403, as for a key that may only read.
func (c *Cloud) RefuseChanges(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refusals = n
}

// LoseChangeAnswers makes the next n changes of endpoints without answering: the connection is reset.
func (c *Cloud) LoseChangeAnswers(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost = n
}

// WorkersMin is how many workers are kept up now.
func (e *Endpoint) WorkersMin() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.workersMin
}

func (e *Endpoint) queueURLs() map[string]string {
	base := e.c.QueueURL() + "/" + e.cfg.ID
	return map[string]string{
		"run": base + "/run", "runSync": base + "/runsync", "status": base + "/status", "stream": base + "/stream", "cancel": base + "/cancel",
		"retry": base + "/retry", "purgeQueue": base + "/purge-queue", "health": base + "/health",
	}
}

// describeWorkers lists the workers. The caller holds e.mu.
func (e *Endpoint) describeWorkers(odd bool) map[string]any {
	summary := map[string]int{"running": 0, "idle": 0, "initializing": 0, "throttled": 0, "unhealthy": 0, "total": len(e.workers)}
	list := []any{}
	for _, w := range e.workers {
		summary[strings.ToLower(string(w.status))]++
		m := map[string]any{
			"id": w.id, "status": string(w.status), "isStale": w.version != e.version, "version": w.version, "gpuCount": e.cfg.GPUCount,
			"image": w.image, "uptimeSeconds": nil, "gpuTypeId": nil, "dataCenterId": nil, "startedAt": nil,
		}
		if !w.started.IsZero() {
			m["uptimeSeconds"] = int(time.Since(w.started).Seconds())
			m["startedAt"] = w.started.UTC().Format(time.RFC3339)
			m["gpuTypeId"], m["dataCenterId"] = w.gpu, w.dc
		}
		if odd {
			m["status"], m["gpuCount"] = "HIBERNATING", decimal(float64(e.cfg.GPUCount))
			delete(m, "isStale")
		}
		list = append(list, m)
	}
	return map[string]any{"endpointVersion": e.version, "summary": summary, "workers": list}
}

func decode(r *http.Request, into any) error { return json.NewDecoder(r.Body).Decode(into) }
