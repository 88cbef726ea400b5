package fakevast

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"headrace/providers/fakecloud"
)

// Instance is one rented container. Its methods may be called from any goroutine; those that change its life return
// when the network is as it should be, while the API tells of it when its lag is over.
type Instance struct {
	c      *Cloud
	host   *fakecloud.Host
	portal *portal // nil for PlainVLLM
	token  string  // jupyter_token

	op       sync.Mutex        // held during each change of its life
	strays   []*fakecloud.Host // other tenants at its old addresses; guarded by op
	bootFail string            // status_msg of the next boot, which then fails; guarded by op

	// Guarded by c.mu.
	cfg     InstanceConfig
	epoch   int // counts the events: what an earlier one planned is void
	gone    bool
	v       view
	evicted bool // the GPU is somebody else's
	start   StartAnswer
	hazards Hazard
	started time.Time // by the API's clock
	pending *priceIncrease
	paid    Charge    // until since
	since   time.Time // by the API's clock
}

// view is what the API tells.
type view struct {
	actual   string // "" for null
	intended string
	cur      string
	next     string
	msg      string
	offline  bool // computed when shown: no filter sees it
	mapped   bool // ports are published
	ip       string
	port     int
	gpu      bool // the GPU is held, and paid for
}

var serving = view{actual: "running", intended: "running", cur: "running", next: "running", mapped: true, gpu: true} //nolint:gochecknoglobals // a constant, if structs could be

// AddInstance adds an instance. It panics when there is no address for it, or when its id is taken.
func (c *Cloud) AddInstance(cfg InstanceConfig) *Instance {
	i, err := c.add(cfg)
	if err != nil {
		panic("fakevast: " + err.Error())
	}
	return i
}

func (c *Cloud) add(cfg InstanceConfig) (*Instance, error) {
	c.mu.Lock()
	cfg.fill(c.nextID)
	_, taken := c.instances[cfg.ID]
	if taken = taken || c.stopped; !taken {
		c.instances[cfg.ID] = nil // reserved
		c.nextID = max(c.nextID, cfg.ID+1)
	}
	i := &Instance{c: c, token: c.hex(64), hazards: cfg.Hazards, started: c.cfg.Now(), since: c.cfg.Now()}
	seed := c.rng.Uint64()
	c.mu.Unlock()
	if taken {
		return nil, fmt.Errorf("instance %d exists already, or the cloud is stopped", cfg.ID)
	}
	if cfg.EndDate.IsZero() {
		cfg.EndDate = c.cfg.Now().Add(30 * 24 * time.Hour)
	}
	cfg.Env = maps.Clone(cfg.Env)
	cfg.Args = slices.Clone(cfg.Args)
	hc := fakecloud.HostConfig{
		Name: "vast-" + strconv.FormatInt(cfg.ID, 10), Addr: net.JoinHostPort(cfg.IP, strconv.Itoa(cfg.HostPort)),
		Provider: "vast", Class: cfg.Class, Models: cfg.Models, TPS: cfg.TPS, TTFT: cfg.TTFT, MaxNumSeqs: cfg.MaxNumSeqs,
		TimeScale: max(0, c.cfg.EngineScale), Seed: seed, AllowHeaderFaults: true,
	}
	i.secure(&cfg, &hc)
	host, err := fakecloud.StartHost(c.ctx, hc)
	if err != nil {
		c.mu.Lock()
		delete(c.instances, cfg.ID)
		c.mu.Unlock()
		return nil, err
	}
	i.host, i.cfg = host, cfg
	i.op.Lock()
	defer i.op.Unlock()
	if cfg.Boot != nil {
		i.level(off)
	}
	c.mu.Lock()
	c.instances[cfg.ID] = i
	i.v = serving
	i.v.ip, i.v.port = i.where()
	i.v.msg = "success, running " + strings.ReplaceAll(cfg.Image, ":", "_") + "/args"
	c.mu.Unlock()
	if cfg.Boot != nil {
		i.boot(true)
	}
	return i, nil
}

// secure sets the keys up and shows them where the configuration says.
func (i *Instance) secure(cfg *InstanceConfig, hc *fakecloud.HostConfig) {
	if cfg.Env == nil {
		cfg.Env = map[string]string{}
	}
	if cfg.front != nil {
		hc.Wrap = cfg.front
		if cfg.frontTLS {
			hc.TLS, hc.Certificate = true, i.c.ca.issue("pyworker.vast.ai", cfg.Portal.Certificate)
		}
		return
	}
	if cfg.Template == Portal {
		i.portal = newPortal(cfg, i.token)
		hc.Wrap = i.portal.wrap
		if cfg.Portal.HTTPS {
			hc.TLS, hc.RedirectPlain = true, true
			hc.Certificate = i.c.ca.issue("jupyter.vast.ai", cfg.Portal.Certificate)
		}
		if cfg.KeyIn != KeyHidden && cfg.APIKey != "" && cfg.Env["WEB_PASSWORD"] == "" {
			cfg.Env["WEB_PASSWORD"] = cfg.APIKey
		}
		if cfg.Env["OPEN_BUTTON_TOKEN"] == "" {
			cfg.Env["OPEN_BUTTON_TOKEN"] = "1"
		}
		return
	}
	hc.APIKey = cfg.APIKey
	switch {
	case cfg.APIKey == "":
	case cfg.KeyIn == KeyInArgs:
		cfg.Args = append(cfg.Args, "--api-key", cfg.APIKey)
	case cfg.KeyIn == KeyInEnv:
		cfg.Env["VLLM_API_KEY"] = cfg.APIKey
	}
}

// ID returns the contract's id.
func (i *Instance) ID() int64 { return i.Config().ID }

// Config returns the settings with all that was left out filled in, and what was changed since.
func (i *Instance) Config() InstanceConfig {
	i.c.mu.Lock()
	defer i.c.mu.Unlock()
	return i.cfg
}

// Host returns the machine's server: its books, and further faults.
func (i *Instance) Host() *fakecloud.Host { return i.host }

// URL returns where the instance really is, which the API may tell later or not at all.
func (i *Instance) URL() string { return i.host.URL() }

// Token returns the jupyter_token, which a Portal takes for a bearer.
func (i *Instance) Token() string { return i.token }

// Bearer returns what the server of the instance asks for, "" for nothing.
func (i *Instance) Bearer() string {
	if i.portal != nil {
		return cmp.Or(i.portal.password, i.token)
	}
	return i.host.Config().APIKey
}

// where returns the host's address.
func (i *Instance) where() (ip string, port int) {
	_, rest, _ := strings.Cut(i.host.URL(), "://")
	ip, p, err := net.SplitHostPort(rest)
	if err == nil {
		port, err = strconv.Atoi(p)
	}
	if err != nil {
		panic("BUG: a host's URL without a port: " + rest)
	}
	return ip, port
}

// How much of an instance is up.
const (
	off       = iota // nobody listens
	container        // the container runs, the model does not
	model
)

// level makes it so. The caller holds op.
func (i *Instance) level(n int) {
	if i.portal != nil {
		i.portal.dead.Store(n < model)
	}
	if n == model || n == container && i.portal != nil {
		_ = i.host.Revive() // fails when the cloud is stopped, or a test took the port
		return
	}
	i.host.Kill()
}

// end stops all that belongs to the instance.
func (i *Instance) end() {
	i.op.Lock()
	defer i.op.Unlock()
	i.host.Kill()
	i.host.Stop()
	for _, s := range i.strays {
		s.Kill()
		s.Stop()
	}
	i.strays = nil
}

// step is one thing that happens to an instance.
type step struct {
	after time.Duration // since the step before, by the service's clock
	do    func()        // to the network
	tell  func(v *view) // to the API
	event string        // sent to webhooks
}

// begin makes void what is planned for the instance, and plans steps. The caller holds op.
func (i *Instance) begin(steps ...step) {
	i.c.mu.Lock()
	i.epoch++
	epoch := i.epoch
	i.c.mu.Unlock()
	i.follow(epoch, steps)
}

func (i *Instance) follow(epoch int, steps []step) {
	for len(steps) > 0 {
		if d := i.c.scaled(steps[0].after); d > 0 {
			i.c.after(d, func() {
				i.op.Lock()
				defer i.op.Unlock()
				i.c.mu.Lock()
				void := i.gone || i.epoch != epoch
				i.c.mu.Unlock()
				if !void {
					i.take(steps[0])
					i.follow(epoch, steps[1:])
				}
			})
			return
		}
		i.take(steps[0])
		steps = steps[1:]
	}
}

func (i *Instance) take(s step) {
	if s.do != nil {
		s.do()
	}
	if s.tell != nil {
		i.c.mu.Lock()
		i.pay()
		s.tell(&i.v)
		i.c.mu.Unlock()
	}
	if s.event != "" {
		i.c.Fire(s.event)
	}
	i.c.books.update(func(*Stats) {})
}
