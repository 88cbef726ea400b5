package chaos

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"headrace/gateway/config"
	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakerunpod"
	"headrace/providers/fakecloud/fakevast"
)

// Model is what all hosts of a fleet serve, and Named what callers ask for.
const (
	Model = "org/water-70b"
	Named = "water"
)

// ProbeHeader marks requests that are the gateway's own, to find out whether a host is well.
const ProbeHeader = "X-Headrace-Probe"

// Fleet is the fake hosts of a scenario.
type Fleet struct {
	scenario *Scenario
	members  []*member
	vast     *fakevast.Cloud   // nil without any
	runpod   *fakerunpod.Cloud // nil without any
	network  *network          // nil where nothing befalls it
	dir      string            // of certificates, "" without any
	pace     float64           // how many times faster than in life the control planes are
}

// member is one host.
type member struct {
	id       string // as headrace names it
	name     string // of its spec
	kind     Kind
	host     *fakecloud.Host // nil for RunPod
	instance *fakevast.Instance
	endpoint *fakerunpod.Endpoint
	way      *way // nil where nothing is between
	probes   atomic.Int64
}

// StartFleet starts the hosts of s; Stop ends them.
func StartFleet(ctx context.Context, s *Scenario) (f *Fleet, err error) {
	f = &Fleet{scenario: s}
	defer func() {
		if err != nil {
			f.Stop()
		}
	}()
	if s.TLS {
		if f.dir, err = os.MkdirTemp("", "headrace-chaos-"); err != nil {
			return nil, err
		}
	}
	for _, x := range s.Faults {
		if x.Do == Network && f.network == nil {
			f.network = newNetwork()
		}
	}
	// An instance that gets its GPU back boots for 135 s in life: half of the time that it is away is to be enough.
	f.pace = max(1, 2*135/s.Down.Seconds())
	for _, h := range s.Hosts {
		for i := range h.Count {
			name := h.Name
			if h.Count > 1 {
				name += "-" + strconv.Itoa(i+1)
			}
			if err := f.start(ctx, &h, name, s.Seed+uint64(len(f.members))); err != nil {
				return nil, fmt.Errorf("start host %s: %w", name, err)
			}
		}
	}
	return f, nil
}

func (f *Fleet) start(ctx context.Context, h *HostSpec, name string, seed uint64) (err error) {
	m := &member{name: h.Name, kind: h.Kind}
	switch h.Kind {
	case Static:
		m.id = "static:" + name
		c := fakecloud.HostConfig{
			Name: name, Models: []string{Model}, Class: h.Class, Provider: "vast", TPS: h.TPS, TTFT: h.TTFT, MaxNumSeqs: h.Seqs,
			TimeScale: f.scenario.Speed, Seed: seed, TLS: f.scenario.TLS, Wrap: m.count, NoTokenIDs: h.Plain,
		}
		if c.TLS {
			c.CAFile = filepath.Join(f.dir, name+".pem")
		}
		if m.host, err = fakecloud.StartHost(ctx, c); err != nil {
			return err
		}
		f.members = append(f.members, m)
		if f.network != nil {
			m.way, err = f.network.to(name, address(m.host.URL()))
		}
		return err
	case Vast:
		if f.vast == nil {
			if f.vast, err = fakevast.Start(ctx, fakevast.Config{
				TimeScale: f.pace, EngineScale: f.scenario.Speed, Seed: seed, DetectionLag: vastLag, OfflineAfter: 20 * time.Second,
				Boot: fakevast.Boot{Provision: 10 * time.Second, Pull: 90 * time.Second, Ports: 5 * time.Second, Model: 2 * time.Minute},
			}); err != nil {
				return err
			}
		}
		m.instance = f.vast.AddInstance(fakevast.InstanceConfig{
			Label: name, IsBid: true, DPHBase: h.Class.Vast.USDPerHour.Mid(), Models: []string{Model}, Class: h.Class, TPS: h.TPS, TTFT: h.TTFT, MaxNumSeqs: h.Seqs,
			GPUName: "H100 SXM", NumGPUs: h.Class.GPUCount, GPURAMMB: 81920, Args: []string{"--max-num-seqs", strconv.Itoa(h.Seqs)},
		})
		m.id, m.host = fmt.Sprint("vast:", m.instance.ID()), m.instance.Host()
	case RunPod:
		if f.runpod == nil {
			if f.runpod, err = fakerunpod.Start(ctx, fakerunpod.Config{
				TimeScale: f.scenario.Speed, Seed: seed, RateLimits: fakerunpod.RateLimits{Off: true},
				RedispatchAfter: time.Duration(40 * float64(time.Second) * f.scenario.Speed / f.pace),
			}); err != nil {
				return err
			}
		}
		m.endpoint = f.runpod.AddEndpoint(fakerunpod.EndpointConfig{
			ID: name, Name: name, Class: h.Class, Models: []string{Model}, TPS: h.TPS, TTFT: h.TTFT, WorkersMin: h.Workers, WorkersMax: h.Workers,
			MaxConcurrency: h.Seqs, ColdStart: 5 * time.Second, IdleTimeout: time.Hour,
		})
		m.id = "runpod:" + name
	}
	f.members = append(f.members, m)
	return nil
}

// count notes the gateway's own requests.
func (m *member) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(ProbeHeader) != "" {
			m.probes.Add(1)
		}
		next.ServeHTTP(w, r)
	})
}

// address is host and port of a URL.
func address(url string) string {
	_, rest, _ := strings.Cut(url, "://")
	return rest
}

// Stop ends all hosts.
func (f *Fleet) Stop() {
	done := make(chan struct{})
	for _, m := range f.members {
		go func() {
			if m.kind == Static {
				m.host.Kill()
				m.host.Stop()
			}
			done <- struct{}{}
		}()
	}
	for range f.members {
		<-done
	}
	if f.network != nil {
		f.network.stop()
	}
	if f.vast != nil {
		f.vast.Stop()
	}
	if f.runpod != nil {
		f.runpod.Stop()
	}
	if f.dir != "" {
		_ = os.RemoveAll(f.dir)
	}
}

// IDs names the hosts as headrace does.
func (f *Fleet) IDs() (ids []string) {
	for _, m := range f.members {
		ids = append(ids, m.id)
	}
	return ids
}

// Pace is how many times faster than in life the control planes are.
func (f *Fleet) Pace() float64 { return f.pace }

// VastConsole is where webhooks are asked for, "" without Vast.ai.
func (f *Fleet) VastConsole() string {
	if f.vast == nil {
		return ""
	}
	return f.vast.ConsoleURL()
}

const (
	vastKey   = "vast-key" // the fake's own
	leastPoll = 100 * time.Millisecond
	vastPoll  = 15 * time.Second // in life
	vastLag   = 10 * time.Second // in life, until its API tells what has happened
)

// every is how often a control plane is asked that is asked that often in life.
func (f *Fleet) every(d time.Duration) time.Duration {
	return max(leastPoll, time.Duration(float64(d)/f.pace).Round(time.Millisecond))
}

// trustWithin is how long after its return a host may get its first request, in real time: 10 s, for probes are as far apart as in
// life whatever the engines' speed, and more where engines are slower than in life, which answer these; and by how much the news
// from Vast.ai may be late.
func (f *Fleet) trustWithin() time.Duration {
	d := 10 * time.Second
	if f.scenario != nil && f.scenario.Speed < 1 {
		d = time.Duration(float64(d) / f.scenario.Speed)
	}
	if f.vast != nil {
		d += f.every(vastPoll) + time.Duration(float64(vastLag)/f.pace).Round(time.Millisecond)
	}
	return d
}

// Env is the environment in which the gateway finds the clouds.
func (f *Fleet) Env() map[string]string {
	e := map[string]string{}
	if f.vast != nil {
		e[config.EnvVastKey] = vastKey
		e["VAST_CONSOLE_URL"], e["VAST_RUN_URL"], e["VAST_OPENAI_URL"] = f.vast.ConsoleURL(), f.vast.RunURL(), f.vast.OpenAIURL()
		e[config.EnvVastPoll] = f.every(vastPoll).String()
	}
	if f.runpod != nil {
		e[config.EnvRunPodKey] = f.runpod.Key()
		e["RUNPOD_MANAGEMENT_URL"], e["RUNPOD_QUEUE_URL"] = f.runpod.ManagementURL(), f.runpod.QueueURL()
		e["RUNPOD_BALANCER_URL"], e["RUNPOD_POD_URL"] = f.runpod.BalancerURL(), f.runpod.PodURL()
		e[config.EnvRunPodPoll] = f.every(time.Minute).String()
	}
	return e
}

// Config is the gateway's config: the hosts that stand in one, and the model that all serve.
func (f *Fleet) Config() string {
	var b strings.Builder
	if f.scenario.TokenIDs {
		b.WriteString("continuation: {token_ids: true}\n")
	}
	b.WriteString("models:\n  " + Named + ": {serves: [" + strconv.Quote(Model) + "]}\nproviders:\n")
	var native []string
	static := false
	for _, m := range f.members {
		switch m.kind {
		case Static:
			if !static {
				b.WriteString("  static:\n")
				static = true
			}
			k := m.host.Config()
			url := m.host.URL()
			if m.way != nil {
				url = strings.Replace(url, address(url), m.way.address, 1)
			}
			fmt.Fprintf(&b, "    - {name: %s, base_url: %q, tenure: interruptible, price: {usd_per_hour: %.3f}, gpu: %q, max_num_seqs: %d", k.Name, url+"/v1", k.USDPerHour, k.Class.GPU, k.MaxNumSeqs)
			if k.CAFile != "" {
				fmt.Fprintf(&b, ", tls: {ca: %q}", k.CAFile)
			}
			b.WriteString("}\n")
		case RunPod:
			if f.native(m.name) {
				native = append(native, m.endpoint.ID())
			}
		case Vast:
		}
	}
	if f.vast != nil {
		b.WriteString("  vast:\n")
	}
	if f.runpod != nil {
		b.WriteString("  runpod:\n    health_poll: 1s\n    endpoints:\n")
		for _, id := range native {
			fmt.Fprintf(&b, "      - {match: %s, native: true}\n", id)
		}
		b.WriteString("      - \"*\"\n")
	}
	return b.String()
}

func (f *Fleet) native(name string) bool {
	for _, h := range f.scenario.Hosts {
		if h.Name == name {
			return h.Native
		}
	}
	return false
}

// befall does to m what f says, and returns how it ends. A victim that cannot suffer it any more is left alone.
func (m *member) befall(f *FaultSpec) (over func()) {
	switch f.Do {
	case Kill:
		m.host.Kill()
		return func() { _ = m.host.Revive() }
	case Exit:
		m.host.Exit()
		return func() { _ = m.host.Revive() }
	case Dark:
		_ = m.host.Isolate(true)
		return func() { _ = m.host.Isolate(false) }
	case Vanish:
		_ = m.host.Isolate(true)
		return func() {
			m.host.Kill()
			_ = m.host.Isolate(false)
			_ = m.host.Revive()
		}
	case Engine:
		_ = m.host.SetFaults(f.Engine...)
		return func() { _ = m.host.SetFaults() }
	case Network:
		return m.way.poison(f.Toxics)
	case Outbid:
		m.instance.Outbid(fakevast.ExitedStopped)
		return m.instance.Resume
	case Leave:
		m.instance.Stop()
		return func() { m.instance.Start() }
	case Offline:
		m.instance.HostOffline()
		return m.instance.HostOnline
	case Restart:
		m.instance.Restart(0, "")
	case Worker:
		m.endpoint.KillWorker("")
	}
	return func() {}
}

// listens says whether somebody takes connections there now.
func (m *member) listens(ctx context.Context) bool {
	if m.host == nil {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address(m.host.URL()))
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}
