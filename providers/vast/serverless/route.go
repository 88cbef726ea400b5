package serverless

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"headrace/providers/api"
)

// worker is where a route leads.
type worker struct {
	url  string
	auth []byte // the engine's whole answer, which the worker wants to see. It is good for one call.
}

// What Vast.ai's client gives the engine for an answer, and how long it keeps a request that is asked about again.
const (
	routeTimeout  = 10 * time.Second
	replayTimeout = 60 // s
	routeFaults   = 3  // answers in a row that may fail; the next worker may be a better one
)

// route asks for a worker until there is one or ctx is done. While it asks, the engine knows the request by
// request_idx, 0 at first: so it is counted once, and counts towards the recruiting of workers.
func (c *call) route(ctx context.Context, cost int64) (*worker, fault) {
	idx := json.RawMessage("0")
	for n, faults := 0, 0; ; n++ {
		a, err := c.p.engine.Do(ctx, api.Call{
			Name: "POST /route/", Method: http.MethodPost, URL: c.base + "/route/", Key: c.key, Timeout: routeTimeout,
			Body: struct {
				Endpoint string          `json:"endpoint"`
				APIKey   string          `json:"api_key"`
				Cost     int64           `json:"cost"`
				Index    json.RawMessage `json:"request_idx"`
				Replay   int             `json:"replay_timeout"`
			}{c.name, c.key.Reveal(), cost, idx, replayTimeout},
		})
		switch {
		case ctx.Err() != nil:
			return nil, noWorker
		case err == nil:
			var to *worker
			var next json.RawMessage
			if to, next, err = c.lead(a.Body); to != nil {
				return to, none
			}
			if next != nil {
				idx = next
			}
		case !passing(err):
			faults = routeFaults
		}
		if err == nil {
			faults = 0
		} else if faults++; faults > routeFaults {
			return nil, c.routeFailed(err)
		}
		if c.pause(n) != nil {
			return nil, noWorker
		}
	}
}

// lead reads the engine's answer: a worker, or nil while there is none, and the number to ask on with, if it gives one.
// The form of its other words is not documented.
func (c *call) lead(b []byte) (to *worker, idx json.RawMessage, err error) {
	var m struct {
		URL   word            `json:"url"`
		Index json.RawMessage `json:"request_idx"`
	}
	b = bytes.TrimSpace(b)
	if len(b) == 0 || b[0] != '{' || json.Unmarshal(b, &m) != nil {
		return nil, nil, errors.New("the answer is not the JSON object that was expected")
	}
	if m.URL == "" {
		if s := string(m.Index); s != "" && s != "null" && s != "0" {
			idx = m.Index
		}
		return nil, idx, nil
	}
	base, host, err := c.workerURL(string(m.URL))
	if err != nil {
		return nil, nil, err
	}
	c.worker = host
	return &worker{url: base, auth: b}, nil, nil
}

// passing tells whether the engine may do better soon.
func passing(err error) bool {
	e, ok := errors.AsType[*api.Error](err)
	return ok && (e.Status == 0 || e.Status == http.StatusRequestTimeout || e.Status == http.StatusTooManyRequests || e.Status >= 500)
}

func (c *call) routeFailed(err error) fault {
	c.p.odd("no route")
	c.p.opt.Log.Warn("no route", "endpoint", c.id, "error", err)
	e, ok := errors.AsType[*api.Error](err)
	switch {
	case errors.Is(err, errPlain):
		return unsafe
	case ok && e.Denied():
		return denied
	case ok && e.Status == http.StatusTooManyRequests:
		return busy
	}
	return noRoute
}
