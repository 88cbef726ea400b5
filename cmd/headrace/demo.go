package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"headrace/gateway/config"
	"headrace/providers/fakecloud"
	"headrace/router/endpoint"
)

// demoOptions are the flags of demo.
type demoOptions struct {
	listen, admin string
	duration      time.Duration
	seed          uint64
	rate          float64
	kill          time.Duration
	verbose       bool
}

func demoCommand() *cobra.Command {
	var o demoOptions
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run the gateway in front of a local fake cloud",
		Long: `Start a small fleet of fake GPU hosts on loopback (RunPod-like steady ones and Vast-like cheap ones that
get preempted), the gateway in front of them and a gentle load. Stream one answer, then show hosts,
prices, speeds and what happens when a host dies and comes back. No account and no network is needed.

The hosts are processes' own goroutines that really speak HTTP; their speeds and prices are illustrative
figures of late 2023 and early 2024.`,
		Example: "  headrace demo\n  headrace demo --for 30s --listen 127.0.0.1:0 --admin off",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&o.listen, "listen", "127.0.0.1:8080", "address of the OpenAI surface; port 0 picks a free one")
	f.StringVar(&o.admin, "admin", "127.0.0.1:9090", `address of the admin API or "off"`)
	f.DurationVar(&o.duration, "for", 0, "stop by itself after that long (0: on Ctrl-C)")
	f.Uint64Var(&o.seed, "seed", 1, "seed of hosts, prices and load")
	f.Float64Var(&o.rate, "rate", 2, "requests per second of the load")
	f.DurationVar(&o.kill, "kill-every", 15*time.Second, "how often a cheap host is preempted (0: never)")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print the gateway's log too")
	return c
}

// demoFleet is what the demo rents: the cheap hosts carry the load, the steady ones what those cannot.
var demoFleet = []struct{ name, class, provider string }{
	{"vast-a100", "a100-llama-70b", "vast"},
	{"vast-4090", "2x4090-llama-70b", "vast"},
	{"runpod-a100", "a100-llama-70b", "runpod"},
	{"vast-h100", "h100-mixtral", "vast"},
	{"runpod-h100", "h100-mixtral", "runpod"},
}

// cloud is the demo's fleet.
type cloud struct {
	hosts []*fakecloud.Host
	byID  map[endpoint.ID]*fakecloud.Host
}

func startCloud(ctx context.Context, seed uint64) (*cloud, error) {
	c := &cloud{byID: map[endpoint.ID]*fakecloud.Host{}}
	for _, f := range demoFleet {
		class, ok := fakecloud.ClassNamed(f.class)
		if !ok {
			panic("BUG: no class " + f.class)
		}
		h, err := fakecloud.StartHost(ctx, fakecloud.HostConfig{Name: f.name, Class: class, Provider: f.provider, TimeScale: 1, Seed: seed})
		if err != nil {
			c.stop()
			return nil, fmt.Errorf("start fake host %s: %w", f.name, err)
		}
		c.hosts = append(c.hosts, h)
		c.byID[h.Endpoint().ID] = h
	}
	return c, nil
}

func (c *cloud) stop() {
	for _, h := range c.hosts {
		h.Kill()
		h.Stop()
	}
}

// yaml is the config one would write for these hosts.
func (c *cloud) yaml(o *demoOptions) string {
	var b strings.Builder
	fmt.Fprintf(&b, "listen: %q\nadmin: %q\nproviders:\n  static:\n", o.listen, o.admin)
	for _, h := range c.hosts {
		ep := h.Endpoint()
		gpu := ep.Hardware.GPU
		if n := ep.Hardware.GPUCount; n > 1 {
			gpu = fmt.Sprintf("%dx %s", n, gpu)
		}
		fmt.Fprintf(&b, "    - name: %s\n      base_url: %q\n      price: {usd_per_hour: %.2f}\n      tenure: %s\n      gpu: %q\n      max_num_seqs: %d\n",
			h.Name(), ep.BaseURL, ep.Price.USDPerHour, ep.Tenure, gpu, ep.MaxNumSeqs)
	}
	b.WriteString("models:\n  llama-70b: {serves: [\"llama-2-70b*\"]}\n  mixtral: {serves: [\"mixtral*\"]}\nbreaker: {failures: 2, open_for: 3s}\nlog: {format: text}\n")
	return b.String()
}

const (
	demoModel  = "llama-70b"
	demoPrompt = "In one paragraph: how does a water wheel work?"
)

func demo(ctx context.Context, o demoOptions, out io.Writer) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, err := startCloud(context.WithoutCancel(ctx), o.seed) // it outlives the gateway, whose streams end first
	if err != nil {
		return err
	}
	defer c.stop()
	cfg, err := config.Parse("demo.yaml", []byte(c.yaml(&o)), config.Overrides{}, func(string) (string, bool) { return "", false })
	if err != nil {
		return badConfig(err)
	}
	var logTo io.Writer = io.Discard
	if o.verbose {
		logTo = os.Stderr
	}
	a, err := newApp(cfg, logTo)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w\nAnother program has the port. Try: headrace demo --listen 127.0.0.1:0 --admin off", err)
	}
	if err != nil {
		return err
	}
	v := newView(a, out)
	a.onSettled = v.settled

	served := make(chan error, 1)
	serveCtx, stopServe := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		served <- a.run(serveCtx, nil)
		cancel() // a gateway that ended by itself ends the demo
	}()
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
		stopServe()
		if serr := <-served; err == nil && serr != nil {
			err = serr
		}
	}()

	base := "http://" + reachable(a.listeners[0].Addr()) + "/v1"
	fmt.Fprintf(out, "Headrace demo: %d fake GPU hosts on loopback, the gateway at %s\n\n", len(c.hosts), base)
	if o.duration > 0 {
		time.AfterFunc(o.duration, cancel)
	}
	if err := a.waitReady(ctx); err != nil {
		return nil //nolint:nilerr // stopped before the hosts were up
	}
	if err := v.firstAnswer(ctx, base); err != nil && ctx.Err() == nil {
		return err
	}
	wg.Go(func() { v.load(ctx, base, o.rate, rand.New(rand.NewPCG(o.seed, 2))) }) //nolint:gosec // repeatable on purpose
	if o.kill > 0 {
		wg.Go(func() { v.preempt(ctx, c, o.kill) })
	}
	v.show(ctx, base)
	v.summary()
	return nil
}

// reachable is where a client on this machine finds addr.
func reachable(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr.String()
}

// waitReady waits until every host has told what it serves.
func (a *app) waitReady(ctx context.Context) error {
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		hosts := a.router.Hosts()
		ready := len(hosts) > 0
		for _, h := range hosts {
			ready = ready && len(h.Models) > 0
		}
		if ready {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// isTerminal tells whether w is a screen that can be painted over.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}

// sseData returns the data of an event line, nil for other lines.
func sseData(line []byte) []byte {
	d, ok := bytes.CutPrefix(line, []byte("data: "))
	if !ok {
		return nil
	}
	return bytes.TrimSpace(d)
}
