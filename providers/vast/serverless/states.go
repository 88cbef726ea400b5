package serverless

import (
	"fmt"
	"strings"

	"headrace/router/endpoint"
)

// phase is what a worker's state means for requests.
type phase uint8

const (
	strange phase = iota // a word nobody has told us of
	up                   // takes requests
	loading              // the model is being loaded: billed as if it were up
	coming               // its machine is being prepared
	asleep               // stopped: can be woken
	leaving
	broken
)

// phaseOf reads a worker's state. Vast.ai writes it in capitals in its documentation and small in its API.
func phaseOf(status string) phase {
	switch s := strings.ToLower(strings.TrimSpace(status)); s {
	case "idle", "ready", "running":
		return up
	case "model_loading":
		return loading
	case "loading", "starting", "creating", "created", "pending", "rebooting":
		return coming
	case "stopped", "inactive":
		return asleep
	case "stopping", "destroying":
		return leaving
	case "error", "unavail", "unavailable":
		return broken
	default:
		if strings.HasPrefix(s, "update_") { // a rolling update restarts it
			return coming
		}
		return strange
	}
}

// census counts an endpoint's workers.
type census struct {
	all, up, full, coming, asleep, broken int
}

func (p *Provider) census(workers []workerRow) (c census) {
	for _, w := range workers {
		c.all++
		switch phaseOf(string(w.Status)) {
		case up:
			c.up++
			if w.Perf > 0 && w.CurLoad >= w.Perf {
				c.full++
			}
		case loading, coming:
			c.coming++
		case asleep:
			c.asleep++
		case broken:
			c.broken++
		case leaving:
		case strange:
			p.odd("worker state " + clip(string(w.Status)))
		}
	}
	return c
}

// state is never NoCapacity: requests are what makes Vast.ai recruit, so one that comes must be let through.
func (c census) state() endpoint.State {
	switch {
	case c.up > 0 && c.full == c.up:
		return endpoint.Saturated
	case c.up > 0:
		return endpoint.Ready
	case c.coming > 0:
		return endpoint.Starting
	}
	return endpoint.Cold
}

func (c census) reason() string {
	switch {
	case c.up > 0 && c.full == c.up:
		return fmt.Sprintf("all %d workers are at the load they were measured to bear", c.up)
	case c.up > 0:
		return ""
	case c.coming > 0:
		return fmt.Sprintf("%d of %d workers are starting", c.coming, c.all)
	case c.all > 0 && c.broken == c.all:
		return fmt.Sprintf("all %d workers have failed; they may keep Vast.ai from recruiting others until they are destroyed", c.all)
	case c.asleep > 0:
		return fmt.Sprintf("%d workers are stopped; a request wakes one", c.asleep)
	}
	return "no worker is up; a request makes Vast.ai recruit one"
}
