package fakecloud

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Spec is a host that a provider offers: what it really does, drawn from its class.
type Spec struct {
	Name       string
	Provider   string // "runpod" or "vast"
	Class      Class
	USDPerHour float64
	TPS        float64
	TTFT       time.Duration
	Seed       uint64
}

// Draw draws n hosts. Classes come in turn, or all of Classes if none are given, and so do the providers, RunPod first.
// The same seed draws the same hosts.
func Draw(seed uint64, n int, classes ...Class) []Spec {
	if len(classes) == 0 {
		classes = Classes[:]
	}
	specs := make([]Spec, n)
	for i := range specs {
		rng := rand.New(rand.NewPCG(seed, uint64(i))) //nolint:gosec // fleets are to be repeatable
		s := Spec{Provider: "runpod", Class: classes[i/2%len(classes)], Seed: rng.Uint64()}
		if i%2 == 1 {
			s.Provider = "vast"
		}
		s.Name = s.Provider + "-" + s.Class.Name + "-" + strconv.Itoa(i+1)
		o := s.Class.Offer(s.Provider)
		s.USDPerHour = float64(int(o.USDPerHour.draw(rng)*1000)) / 1000
		s.TPS = o.TPS.draw(rng)
		s.TTFT = time.Duration(o.TTFT.draw(rng) * float64(time.Millisecond))
		specs[i] = s
	}
	return specs
}

// Config is a host's settings after spec; base gives all that a spec does not know.
func (s Spec) Config(base HostConfig) HostConfig {
	base.Name, base.Provider, base.Class = s.Name, s.Provider, s.Class
	base.USDPerHour, base.TPS, base.TTFT, base.Seed = s.USDPerHour, s.TPS, s.TTFT, s.Seed
	return base
}

// CloudConfig sets a Cloud up.
type CloudConfig struct {
	Hosts []Spec
	Base  HostConfig // what all hosts share; Name, Class, Provider, price, speed and Seed are those of the specs
	Port  int        // of the first host, the others take those behind it; 0 lets the system choose
	CADir string     // with Base.TLS: each host's CA is written to NAME.pem here
}

// Cloud is a number of hosts.
type Cloud struct{ hosts []*Host }

// StartCloud starts all hosts, or none.
func StartCloud(ctx context.Context, cfg CloudConfig) (*Cloud, error) {
	c := &Cloud{}
	for i, s := range cfg.Hosts {
		hc := s.Config(cfg.Base)
		hc.Addr = "127.0.0.1:0"
		if cfg.Port != 0 {
			hc.Addr = "127.0.0.1:" + strconv.Itoa(cfg.Port+i)
		}
		if hc.TLS && cfg.CADir != "" {
			hc.CAFile = filepath.Join(cfg.CADir, s.Name+".pem")
		}
		h, err := StartHost(ctx, hc)
		if err != nil {
			c.Stop()
			return nil, err
		}
		c.hosts = append(c.hosts, h)
	}
	return c, nil
}

// Hosts returns the hosts in the order of their specs.
func (c *Cloud) Hosts() []*Host { return c.hosts }

// Host returns the host of that name, nil when there is none.
func (c *Cloud) Host(name string) *Host {
	for _, h := range c.hosts {
		if h.Name() == name {
			return h
		}
	}
	return nil
}

// Stop stops all hosts, all at once, as Host.Stop does.
func (c *Cloud) Stop() {
	done := make(chan struct{})
	for _, h := range c.hosts {
		go func() {
			h.Stop()
			done <- struct{}{}
		}()
	}
	for range c.hosts {
		<-done
	}
}

// YAML is the section of a headrace config that names the hosts.
func (c *Cloud) YAML() string {
	var b strings.Builder
	b.WriteString("providers:\n  static:\n")
	for _, h := range c.hosts {
		k := h.Config()
		fmt.Fprintf(&b, "    - name: %s\n      base_url: %q\n      price: {usd_per_hour: %.3f}\n      tenure: %s\n      gpu: %q\n      max_num_seqs: %d\n",
			k.Name, h.URL()+"/v1", k.USDPerHour, tenure(k.Provider), k.Class.GPU, k.MaxNumSeqs)
		fmt.Fprintf(&b, "      labels: {provider: %s, class: %s}\n", k.Provider, k.Class.Name)
		if k.APIKey != "" {
			fmt.Fprintf(&b, "      api_key: %q\n", k.APIKey)
		}
		if k.CAFile != "" {
			path := k.CAFile
			if wd, err := os.Getwd(); err == nil && !filepath.IsAbs(path) {
				path = filepath.Join(wd, path)
			}
			fmt.Fprintf(&b, "      tls: {ca: %q}\n", path)
		}
	}
	return b.String()
}
