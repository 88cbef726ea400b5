package vast

import (
	"strings"
	"time"

	"headrace/router/endpoint"
)

// fatal are texts of status_msg that mean that the container will never run.
var fatal = []string{
	"error response from daemon", "failed to pull image", "no space left on device", "manifest unknown",
	"unauthorized", "unexpected eof", "oci runtime create failed",
}

// bootLimit is how long Vast.ai's own tests wait for "running"; a boot that takes longer is likely stuck.
const bootLimit = 40 * time.Minute

// reading is what the control plane says of an instance. candidate means that all four of its states agree on running, so
// that address and identity decide.
type reading struct {
	candidate bool
	state     endpoint.State
	reason    string
	odd       string // what of it is not understood, "" for nothing
}

// read turns an instance's states into one; the first line that fits counts. Reports of what an outbid instance shows differ,
// so that whatever is not running throughout is out.
func (r *row) read(now time.Time) reading {
	actual, cur, next, intended := r.Actual.word(), r.Cur.word(), r.Next.word(), r.Intended.word()
	out := func(s endpoint.State, reason string) reading { return reading{state: s, reason: reason} }
	running := func(s string) bool { return s == "running" || s == "" } // a column that is gone is no reason to lose a fleet: the host is asked itself
	ended := r.End.set && !r.End.time().IsZero() && !now.Before(r.End.time())
	switch actual {
	case "offline", "unknown":
		return out(endpoint.Preempted, "its machine has lost contact with Vast.ai ("+actual+")")
	case "running":
		switch {
		case !running(intended):
			return out(endpoint.Draining, "it is being stopped: asked to be "+intended)
		case !running(cur):
			return out(endpoint.Preempted, "its GPU is no longer its own: contract "+cur)
		case !running(next):
			return out(endpoint.Draining, "it is being stopped: contract goes to "+next)
		case cur == "" || intended == "":
			return reading{candidate: true, odd: "instance without cur_state or intended_status"}
		}
		return reading{candidate: true}
	case "frozen":
		return out(endpoint.Preempted, "it is frozen; its GPU is still billed")
	}
	if msg := strings.ToLower(string(r.Msg)); booting(actual) && cur != "exited" {
		for _, f := range fatal {
			if strings.Contains(msg, f) {
				return out(endpoint.Gone, "it will never run, its host says: "+r.message())
			}
		}
	}
	switch {
	case cur == "exited":
		return out(endpoint.Preempted, "its container died")
	case running(cur) && running(intended):
		return r.starting(actual, now)
	case ended:
		return out(endpoint.Preempted, "its contract has ended")
	case booting(actual) && !running(intended):
		return out(endpoint.Preempted, "its start was lost or its bid is too low: start it again or destroy it")
	case running(intended):
		return out(endpoint.Preempted, "outbid, or waiting for its GPU: it wants to run again")
	case actual == "exited" || actual == "stopped":
		return out(endpoint.Preempted, "stopped: outbid, out of credit, or by its owner")
	}
	return reading{state: endpoint.Preempted, reason: "not running: " + actual + ", contract " + cur, odd: "unknown actual_status " + clip(actual, 32)}
}

func booting(actual string) bool {
	switch actual {
	case "", "created", "loading", "restarting", "rebooting":
		return true
	}
	return false
}

// starting is an instance whose contract runs while its container does not yet.
func (r *row) starting(actual string, now time.Time) reading {
	out := reading{state: endpoint.Starting}
	switch {
	case actual == "exited" || actual == "stopped":
		out.reason = "its container is starting again"
		return out
	case actual == "":
		out.reason = "it is being set up"
	case booting(actual):
		out.reason = "it is " + actual
	default:
		out.reason, out.odd = `its state is the unknown word "`+clip(actual, 32)+`"`, "unknown actual_status "+clip(actual, 32)
		return out
	}
	if m := r.message(); m != "" {
		out.reason += ": " + m
	}
	if start := r.Start.time(); !start.IsZero() && now.Sub(start) > bootLimit {
		out.reason += " (for more than 40 min: likely stuck)"
	}
	return out
}

// message is status_msg, cut, in one line and without secrets.
func (r *row) message() string {
	return clip(r.hide(strings.Join(strings.Fields(string(r.Msg)), " ")), 160)
}

func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
