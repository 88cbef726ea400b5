package main

import (
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
)

// demoOptions are the flags of demo.
type demoOptions struct {
	listen, admin string
	duration      time.Duration
	seed          uint64
	rate          float64       // requests per second
	hour          time.Duration // what an hour of the market takes
	calm          bool
	open          bool // other addresses than loopback are meant
	verbose       bool
}

func demoCommand() *cobra.Command {
	var o demoOptions
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run the gateway in front of a local fake cloud, with a bid war",
		Long: `Start a fake RunPod and a fake Vast.ai on loopback, with a small fleet, and the gateway with nothing but their
keys, as "RUNPOD_API_KEY=… VAST_API_KEY=… headrace serve" does: it asks both for what is rented there and finds out what
each host serves and costs. Stream one answer, then keep a gentle load up and show hosts, prices, speeds and costs while
others bid for the cheap instances: each is outbid every 6 h on average, at random, and is back 10 min later at another
port. The market runs in fast motion (--hour); hosts answer at the speed of life. No account and no network is needed.

Hosts, prices and speeds are made up: they come from the fake clouds' built-in tables.`,
		Example: "  headrace demo\n  headrace demo --for 30s --listen 127.0.0.1:0 --admin off\n  headrace demo --hour 2s --seed 7",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo(cmd.Context(), &o, cmd.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&o.listen, "listen", "127.0.0.1:8080", "address of the OpenAI surface; port 0 picks a free one")
	f.StringVar(&o.admin, "admin", "127.0.0.1:9090", `address of the admin API or "off"`)
	f.BoolVar(&o.open, "allow-unauthenticated", false, "listen on other addresses than loopback although callers are asked for no key")
	f.DurationVar(&o.duration, "for", 0, "stop by itself after that long (0: on Ctrl-C)")
	f.Uint64Var(&o.seed, "seed", 7, "seed of hosts, prices, load and bid war")
	f.Float64Var(&o.rate, "rate", 4, "requests per second of the load, on average")
	f.DurationVar(&o.hour, "hour", 5*time.Second, "how long an hour of the market takes")
	f.BoolVar(&o.calm, "calm", false, "nobody bids for the cheap instances")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print the gateway's log too")
	return c
}

func (o *demoOptions) check() error {
	switch {
	case o.hour < 100*time.Millisecond || o.hour > time.Hour:
		return fmt.Errorf("--hour %v: want 100ms to 1h", o.hour)
	case !(o.rate >= 0 && o.rate <= 1000):
		return fmt.Errorf("--rate %v: want 0 to 1000", o.rate)
	case o.duration < 0:
		return fmt.Errorf("--for %v: want 0 or more", o.duration)
	}
	return nil
}

const demoPrompt = "In one paragraph: how does a water wheel work?"

// demo runs clouds, gateway and load until ctx is done, and leaves nothing running.
func demo(ctx context.Context, o *demoOptions, out io.Writer) (err error) {
	if err := o.check(); err != nil {
		return &exitError{2, err}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m, err := startMarket(context.WithoutCancel(ctx), o) // it outlives the gateway, whose streams end first
	if err != nil {
		return err
	}
	defer m.Stop()
	cfg, err := m.config(o)
	if err != nil {
		return err
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
	base := "http://" + reachable(a.listeners[0].Addr())
	if cfg.Providers.Vast.WebhookSecret, err = m.subscribe(ctx, base); err != nil {
		a.closeListeners()
		return err
	}
	m.hurry(a, cfg)
	v := newView(a, m, out)
	a.onSettled = v.settled

	served := make(chan error, 1)
	serveCtx, stopServe := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		served <- a.run(serveCtx, nil)
		cancel() // a gateway that ended by itself ends the demo
	}()
	if o.duration > 0 {
		defer time.AfterFunc(o.duration, cancel).Stop()
	}
	err = v.play(ctx, base, o)
	cancel()
	stopServe()
	err = errors.Join(err, <-served)
	v.client.CloseIdleConnections()
	v.summary()
	return err
}

// play shows everything until ctx is done.
func (v *view) play(ctx context.Context, base string, o *demoOptions) error {
	v.intro(base, o)
	if err := v.waitReady(ctx, time.Minute); err != nil {
		return err
	}
	if err := v.firstAnswer(ctx, base+"/v1"); err != nil || ctx.Err() != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	v.opened = time.Now()
	wg.Go(func() { v.load(ctx, base+"/v1", o.rate, rand.New(rand.NewPCG(o.seed, 2))) }) //nolint:gosec // repeatable on purpose
	wg.Go(func() { v.market.Run(ctx, v.heard) })
	wg.Go(func() { v.watch(ctx) })
	v.show(ctx, base)
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

// waitReady waits until the gateway has found every host and knows what it serves; nil too when ctx is done.
func (v *view) waitReady(ctx context.Context, most time.Duration) error {
	limit := time.NewTimer(most)
	defer limit.Stop()
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		missing := v.missing()
		if len(missing) == 0 {
			v.prose("The gateway found all of them, their models and prices after %s.\n", brief(time.Since(v.began)))
			return nil
		}
		select {
		case <-t.C:
		case <-limit.C:
			return fmt.Errorf("after %v the gateway has not found these hosts of the fake clouds: %s", most, strings.Join(missing, ", "))
		case <-ctx.Done():
			return nil
		}
	}
}

// missing lists the rented hosts that take no requests yet.
func (v *view) missing() (ids []string) {
	usable := map[string]bool{}
	for _, h := range v.app.router.Hosts() {
		usable[string(h.ID)] = len(h.Models) > 0 && (h.State == "ready" || h.State == "cold")
	}
	for _, l := range v.market.Fleet() {
		if !usable[l.ID] {
			ids = append(ids, l.ID)
		}
	}
	return ids
}
