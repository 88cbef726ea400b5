package fakevast

import (
	"net"
	"strconv"
	"strings"

	"headrace/providers/fakecloud"
)

// Outbid is the tuple of states that an instance shows once it was outbid; reports differ.
type Outbid uint8

// Tuples: actual, cur, next, intended.
const (
	ExitedStopped  Outbid = iota // exited, stopped, stopped, stopped
	StoppedStopped               // stopped, stopped, stopped, stopped
	ExitedQueued                 // exited, stopped, running, running
)

// StartAnswer is what happens to a start that is asked for.
type StartAnswer uint8

// Answers.
const (
	StartWorks       StartAnswer = iota // unless the GPU is somebody else's: then as StartUnavailable
	StartUnavailable                    // 200 with resources_unavailable; it comes up by itself at Resume
	StartLost                           // 200 with success, and nothing comes of it: loading, stopped, stopped, stopped
)

// Outbid takes the GPU away: all connections are reset at once, the API tells after its lag, webhooks after that; with
// Config.OutbidGrace the API and webhooks tell first.
func (i *Instance) Outbid(o Outbid) {
	i.op.Lock()
	defer i.op.Unlock()
	i.c.mu.Lock()
	i.evicted = true
	i.c.mu.Unlock()
	goes := step{do: func() { i.level(off) }}
	steps := []step{
		{after: i.c.cfg.DetectionLag, tell: func(v *view) {
			i.halt(v, "exited")
			switch o {
			case StoppedStopped:
				v.actual = "stopped"
			case ExitedQueued:
				v.next, v.intended = "running", "running"
			case ExitedStopped:
			}
		}},
		{after: i.c.cfg.WebhookDelay, event: "client:outbid"},
	}
	if grace := i.c.cfg.OutbidGrace; grace > 0 {
		goes.after = grace
		steps = append(steps, goes)
	} else {
		steps = append([]step{goes}, steps...)
	}
	i.begin(steps...)
}

// halt is the view of an instance that does not run.
func (i *Instance) halt(v *view, actual string) {
	*v = view{actual: actual, cur: "stopped", next: "stopped", intended: "stopped", msg: v.msg}
	if i.c.cfg.KeepIPs {
		v.ip, _ = i.where()
	}
}

// Resume gives the GPU back: the instance boots by itself, at another port unless Config.PortsSurvive says otherwise.
func (i *Instance) Resume() {
	i.op.Lock()
	defer i.op.Unlock()
	i.c.mu.Lock()
	i.evicted = false
	i.c.mu.Unlock()
	i.comeBack()
}

func (i *Instance) comeBack() {
	i.level(off)
	if !i.c.cfg.PortsSurvive {
		ip, _ := i.where()
		i.move(ip, 0)
	}
	i.boot(false)
}

func (i *Instance) move(ip string, port int) {
	if err := i.host.Move(net.JoinHostPort(ip, strconv.Itoa(port))); err != nil && i.c.ctx.Err() == nil {
		panic("fakevast: " + err.Error())
	}
}

// boot lets the instance come up; image says that the image has to be fetched. The caller holds op.
func (i *Instance) boot(image bool) {
	i.c.mu.Lock()
	b := i.c.cfg.Boot
	if i.cfg.Boot != nil {
		b = *i.cfg.Boot
		b.fill(i.c.cfg.Boot)
	}
	name := i.cfg.Image
	i.c.mu.Unlock()
	fail := i.bootFail
	i.bootFail = ""
	up := func(actual, msg string) func(*view) {
		return func(v *view) {
			*v = view{actual: actual, cur: "running", next: "running", intended: "running", msg: msg}
		}
	}
	var steps []step
	if image {
		steps = append(steps,
			step{tell: up("", "")},
			step{after: b.Provision, tell: up("created", "")},
			step{tell: up("loading", "latest: Pulling from "+strings.TrimSuffix(name, ":latest"))},
			step{after: b.Pull / 2, tell: up("loading", "a1b2c3d4e5f6: Pull complete")},
		)
		b.Pull /= 2
	} else {
		steps = append(steps, step{tell: up("exited", "")}, step{after: b.Provision, tell: up("loading", "starting container")})
		b.Pull = 0
	}
	if fail != "" {
		steps = append(steps, step{after: b.Pull, tell: func(v *view) {
			i.halt(v, "created")
			v.msg = fail
		}})
		i.begin(steps...)
		return
	}
	steps = append(steps,
		step{after: b.Pull, do: func() { i.level(container) }, tell: func(v *view) {
			up("running", "success, running "+strings.ReplaceAll(name, ":", "_")+"/args")(v)
			v.gpu = true
		}, event: "client:instance_started"},
		step{after: b.Ports, tell: func(v *view) {
			v.mapped = true
			v.ip, v.port = i.where()
		}},
		step{after: b.Model, do: func() { i.level(model) }},
	)
	i.begin(steps...)
}

// BootFails lets the next boot end as one that the host gave up, with a reason in words.
func (i *Instance) BootFails(statusMsg string) {
	i.op.Lock()
	defer i.op.Unlock()
	i.bootFail = statusMsg
}

// Stall leaves the instance loading, for good, whatever it was before.
func (i *Instance) Stall(statusMsg string) {
	i.op.Lock()
	defer i.op.Unlock()
	i.begin(step{do: func() { i.level(off) }, tell: func(v *view) {
		*v = view{actual: "loading", cur: "running", next: "running", intended: "running", msg: statusMsg}
	}})
}

// Stop stops the instance as its owner does: it leaves for a while, then it is gone from the network.
func (i *Instance) Stop() {
	i.op.Lock()
	defer i.op.Unlock()
	i.begin(
		step{tell: func(v *view) { v.intended, v.next = "stopped", "stopped" }},
		step{after: i.c.cfg.StopTakes, do: func() { i.level(off) }, tell: func(v *view) { i.halt(v, "exited") }},
		step{after: i.c.cfg.WebhookDelay, event: "client:instance_stopped"},
	)
}

// SetStart says what happens to starts that are asked for from now on.
func (i *Instance) SetStart(a StartAnswer) {
	i.c.mu.Lock()
	defer i.c.mu.Unlock()
	i.start = a
}

// Start starts the instance as its owner does, and tells whether it will come up now.
func (i *Instance) Start() bool {
	i.op.Lock()
	defer i.op.Unlock()
	i.c.mu.Lock()
	how, v := i.start, i.v
	if how == StartWorks && i.evicted {
		how = StartUnavailable
	}
	i.c.mu.Unlock()
	switch {
	case v.cur == "running" && v.intended == "running":
	case how == StartUnavailable:
		i.begin(step{tell: func(v *view) {
			i.halt(v, "exited")
			v.intended, v.next = "running", "running"
		}})
		return false
	case how == StartLost:
		i.begin(step{tell: func(v *view) { i.halt(v, "loading") }})
	default:
		i.comeBack()
	}
	return true
}

// HostOffline cuts the machine off: nothing is answered or refused any more. The API goes on to say "running" for its
// lag, then "unknown", then "offline".
func (i *Instance) HostOffline() {
	i.op.Lock()
	defer i.op.Unlock()
	i.begin(
		step{do: func() { _ = i.host.Isolate(true) }},
		step{after: i.c.cfg.DetectionLag, tell: func(v *view) { v.actual = "unknown" }},
		step{after: i.c.cfg.OfflineAfter, tell: func(v *view) { v.offline = true }},
		step{after: i.c.cfg.WebhookDelay, event: "client:instance_offline"},
	)
}

// HostOnline connects the machine again: what was held on its connections goes on.
func (i *Instance) HostOnline() {
	i.op.Lock()
	defer i.op.Unlock()
	i.begin(
		step{do: func() { _ = i.host.Isolate(false) }},
		step{after: i.c.cfg.DetectionLag, tell: func(v *view) {
			v.offline = false
			if v.actual == "unknown" {
				v.actual = "running"
			}
		}},
		step{after: i.c.cfg.WebhookDelay, event: "client:instance_online"},
	)
}

// FalseRunning makes what the API says untrue, or true again: it says that the instance runs, while nobody listens
// there, and Caddy alone with a Portal.
func (i *Instance) FalseRunning(on bool) {
	i.op.Lock()
	defer i.op.Unlock()
	if on {
		i.host.Kill()
		i.level(container)
		return
	}
	i.level(model)
}

// Unreachable is a port that no packet comes through, while the API says nothing of it: a NAT or firewall that is
// wrong.
func (i *Instance) Unreachable(on bool) {
	i.op.Lock()
	defer i.op.Unlock()
	_ = i.host.Isolate(on)
}

// ModelDead ends the model's server inside a container that goes on, or brings it back; Caddy stays.
func (i *Instance) ModelDead(on bool) { i.FalseRunning(on) }

// Died is a container whose process ended: exited, exited, running, running.
func (i *Instance) Died() {
	i.op.Lock()
	defer i.op.Unlock()
	i.begin(
		step{do: func() { i.level(off) }},
		step{after: i.c.cfg.DetectionLag, tell: func(v *view) {
			i.halt(v, "exited")
			v.cur, v.next, v.intended = "exited", "running", "running"
		}},
	)
}

// Restart restarts the container: it comes back at another port, any free one for 0, and at another loopback address
// unless ip is "". Its id stays.
func (i *Instance) Restart(port int, ip string) {
	i.op.Lock()
	defer i.op.Unlock()
	i.level(off)
	if ip == "" {
		ip, _ = i.where()
	}
	i.move(ip, port)
	i.boot(false)
}

// ReuseAddress lets another tenant's server answer where this instance is or was; the instance itself, if it runs,
// does so at an address that nobody knows. It returns that server.
func (i *Instance) ReuseAddress(cfg fakecloud.HostConfig) *fakecloud.Host {
	i.op.Lock()
	defer i.op.Unlock()
	ip, port := i.where()
	i.move(ip, 0)
	cfg.Addr = net.JoinHostPort(ip, strconv.Itoa(port))
	h, err := fakecloud.StartHost(i.c.ctx, cfg)
	if err != nil {
		panic("fakevast: " + err.Error())
	}
	i.strays = append(i.strays, h)
	return h
}

// Destroy ends the contract; the API forgets the instance at once.
func (i *Instance) Destroy() {
	i.c.mu.Lock()
	delete(i.c.instances, i.cfg.ID)
	i.gone = true
	i.c.mu.Unlock()
	i.end()
	i.c.books.update(func(*Stats) {})
}

// SetHazards changes what is odd in the rows of the instance.
func (i *Instance) SetHazards(h Hazard) {
	i.c.mu.Lock()
	defer i.c.mu.Unlock()
	i.hazards = h
}

// SetPrice changes the price of the GPU in USD per hour, which is the bid of a bid instance.
func (i *Instance) SetPrice(usdPerHour float64) {
	i.Update(func(c *InstanceConfig) { c.DPHBase = usdPerHour })
}

// Update changes what the API tells of the instance: label, price, contract end and the like. What its server is
// made of does not follow.
func (i *Instance) Update(change func(c *InstanceConfig)) {
	i.c.mu.Lock()
	defer i.c.mu.Unlock()
	i.pay()
	id := i.cfg.ID
	change(&i.cfg)
	i.cfg.ID = id
}

// States are the words that the API tells of the instance now: actual, cur, next and intended.
func (i *Instance) States() (actual, cur, next, intended string) {
	i.c.mu.Lock()
	defer i.c.mu.Unlock()
	return i.word(), i.v.cur, i.v.next, i.v.intended
}

func (v *view) shown() string {
	if v.offline {
		return "offline"
	}
	return v.actual
}
