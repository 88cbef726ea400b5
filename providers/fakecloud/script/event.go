package script

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"headrace/providers/fakecloud/fakerunpod"
	"headrace/providers/fakecloud/fakevast"
)

// Event is one thing that happens: "{at: 10s, outbid: cheap, for: 10m}".
type Event struct {
	At  Duration // after the beginning
	For Duration // after that it is undone; 0 for never

	what string // a word of actions
	on   string // a host's name, a cloud or a number, as the action wants it
	usd  float64
	how  string // of an outage

	line int
}

// kind is what an action can happen to.
type kind uint8

const (
	instance kind = 1 << iota
	serverless
	service
	pod
	cloudName
	number
)

// action is a word of the language.
type action struct {
	takes kind
	doc   string
	do    func(c *Clouds, t *host, e *Event)
	undo  func(c *Clouds, t *host) // nil where "for" makes no sense
	says  string                   // the news
	after string                   // the news of undo
}

// actions are all words, with what they mean.
var actions = map[string]action{
	"outbid": {
		takes: instance | pod, doc: "somebody bids more: connections are reset, the host is gone; undone, it comes back at another port",
		do: func(_ *Clouds, t *host, _ *Event) {
			if t.pod != nil {
				t.pod.Preempt()
				return
			}
			t.instance.Outbid(fakevast.ExitedStopped)
		},
		undo: func(_ *Clouds, t *host) {
			if t.pod != nil {
				_ = t.pod.Start() // fails when the cloud is stopped
				return
			}
			t.instance.Resume()
		},
		says: "is outbid: its connections are reset", after: "has its GPU again and boots at another port",
	},
	"offline": {
		takes: instance, doc: "the machine is cut off: silence, while the API goes on to say running for a while",
		do:   func(_ *Clouds, t *host, _ *Event) { t.instance.HostOffline() },
		undo: func(_ *Clouds, t *host) { t.instance.HostOnline() },
		says: "is cut off from the network", after: "is connected again",
	},
	"false_running": {
		takes: instance, doc: "nobody listens there, while the API says running",
		do:   func(_ *Clouds, t *host, _ *Event) { t.instance.FalseRunning(true) },
		undo: func(_ *Clouds, t *host) { t.instance.FalseRunning(false) },
		says: "listens no more, while its cloud says that it runs", after: "listens again",
	},
	"restart": {
		takes: instance | pod, doc: "the container restarts: it comes back at another port",
		do: func(_ *Clouds, t *host, _ *Event) {
			if t.pod != nil {
				_ = t.pod.Restart() // fails when the cloud is stopped
				return
			}
			t.instance.Restart(0, "")
		},
		says: "restarts, at another port",
	},
	"price": {
		takes: instance | service, doc: "the price moves to usd_per_hour: of an instance, or of an endpoint's GPU type",
		do: func(c *Clouds, t *host, e *Event) {
			if t.instance != nil {
				t.instance.SetPrice(e.usd)
				return
			}
			for _, g := range t.service.Config().GPUTypes {
				c.RunPod.SetPrice(g, e.usd)
			}
		},
	},
	"kill_worker": {
		takes: service, doc: "the busiest worker dies in the middle of its work; its jobs are given to another one",
		do:   func(_ *Clouds, t *host, _ *Event) { t.service.KillWorker("") },
		says: "loses a worker",
	},
	"sleep": {
		takes: service, doc: "all workers leave, so that the next request meets a cold start; undone, workers_min is kept up again",
		do: func(_ *Clouds, t *host, _ *Event) {
			t.service.SetWorkersMin(0)
			t.service.KillWorkers()
		},
		undo: func(_ *Clouds, t *host) { t.service.SetWorkersMin(t.service.Config().WorkersMin) },
		says: "has no workers any more", after: "keeps its workers up again",
	},
	"throttled": {
		takes: service, doc: "the cloud has no GPU for new workers: requests queue until it is undone",
		do:   func(_ *Clouds, t *host, _ *Event) { t.service.Throttle(true) },
		undo: func(_ *Clouds, t *host) { t.service.Throttle(false) },
		says: "gets no GPU for new workers", after: "gets GPUs again",
	},
	"crash_loop": {
		takes: service, doc: "workers that start from now on crash, again and again",
		do:   func(_ *Clouds, t *host, _ *Event) { t.service.CrashLoop(true) },
		undo: func(_ *Clouds, t *host) { t.service.CrashLoop(false) },
		says: "starts workers that crash", after: "starts workers that live",
	},
	"outage": {
		takes: cloudName, doc: "the API of runpod or vast fails, its hosts do not; how: reset (the default), html_502 or malformed",
		do:   func(c *Clouds, t *host, e *Event) { c.outage(t.name, cmp.Or(e.how, "reset")) },
		undo: func(c *Clouds, t *host) { c.outage(t.name, "") },
		says: "cannot be asked: an outage of its API", after: "can be asked again",
	},
	"webhook_storm": {
		takes: number, doc: "so many outbid events are sent to the webhooks of the account at Vast.ai, all false",
		do: func(c *Clouds, t *host, _ *Event) {
			n, _ := strconv.Atoi(t.name)
			for range n {
				c.Vast.Fire("client:outbid")
			}
		},
		says: "webhooks that mean nothing are sent",
	},
}

// Words describes all words of the language, one a line.
func Words() string {
	var b strings.Builder
	for _, w := range slices.Sorted(maps.Keys(actions)) {
		fmt.Fprintf(&b, "  %-13s  %s\n", w, actions[w].doc)
	}
	return b.String()
}

// UnmarshalYAML reads an event.
func (e *Event) UnmarshalYAML(n *yaml.Node) error {
	e.line = n.Line
	if n.Kind != yaml.MappingNode {
		return wrong(n.Line, "no event: write {at: 10s, outbid: NAME}")
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		var err error
		switch k.Value {
		case "at":
			err = v.Decode(&e.At)
		case "for":
			if err = v.Decode(&e.For); err == nil && e.For == 0 {
				err = wrong(v.Line, "for: 0 is no time")
			}
		case "usd_per_hour":
			err = v.Decode(&e.usd)
		case "how":
			e.how = v.Value
		default:
			if _, ok := actions[k.Value]; !ok {
				return wrong(k.Line, "unknown event %q: want one of %s", k.Value, strings.Join(slices.Sorted(maps.Keys(actions)), ", "))
			}
			if e.what != "" {
				return wrong(k.Line, "two events in one: %s and %s", e.what, k.Value)
			}
			e.what, e.on = k.Value, v.Value
		}
		if err != nil {
			return err
		}
	}
	if e.what == "" {
		return wrong(n.Line, "nothing happens: want one of %s", strings.Join(slices.Sorted(maps.Keys(actions)), ", "))
	}
	return nil
}

func (c *checker) event(s *Script, e *Event) {
	bad := func(format string, args ...any) {
		c.errs = append(c.errs, fmt.Errorf("%s:%d: %s: %s", c.name, e.line, e.what, fmt.Sprintf(format, args...)))
	}
	a := actions[e.what]
	k, known := c.taken[e.on]
	switch {
	case a.takes == number:
		if n, err := strconv.Atoi(e.on); err != nil || n < 1 || n > 100_000 {
			bad("%q is no number from 1 to 100000", e.on)
		}
		if s.Vast == nil {
			bad("there is no vast")
		}
	case a.takes == cloudName:
		if !(e.on == "vast" && s.Vast != nil) && !(e.on == "runpod" && s.RunPod != nil) {
			bad("there is no cloud %q", e.on)
		}
	case !known:
		bad("there is no host %q", e.on)
	case a.takes&k == 0:
		bad("it cannot happen to %s", e.on)
	}
	if a.undo == nil && e.For > 0 {
		bad("it cannot be undone: no for")
	}
	if (e.what == "price") != (e.usd > 0) {
		bad("a price, and it alone, has usd_per_hour above 0")
	}
	if _, ok := outages[e.how]; e.how != "" && (e.what != "outage" || !ok) {
		bad("how: an outage, and it alone, is reset, html_502 or malformed")
	}
}

// outages are the ways in which an API fails.
var outages = map[string]struct {
	vast   fakevast.TroubleKind
	runpod fakerunpod.Trouble
}{
	"reset":     {fakevast.Down, fakerunpod.Trouble{Reset: true}},
	"html_502":  {fakevast.HTML502, fakerunpod.Trouble{Status: 502}},
	"malformed": {fakevast.MalformedJSON, fakerunpod.Trouble{Malformed: true}},
}

// outage makes a cloud's API fail, or ends its trouble when how is "".
func (c *Clouds) outage(cloud, how string) {
	o, on := outages[how]
	switch {
	case cloud == "runpod":
		c.RunPod.SetTrouble(fakerunpod.ManagementPlane, o.runpod)
	case on:
		c.Vast.SetTroubles(fakevast.Trouble{Kind: o.vast})
	default:
		c.Vast.SetTroubles()
	}
}

// scaled turns a duration of the script into one of the wall clock.
func scaled(d Duration, scale float64) time.Duration { return time.Duration(float64(d) / scale) }
