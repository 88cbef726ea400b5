package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"headrace/cmd/headrace/internal/chaos"
	"headrace/gateway/config"
)

// chaosOptions are the flags of chaos.
type chaosOptions struct {
	scenario  string
	duration  time.Duration
	streams   int
	hosts     int
	killEvery time.Duration
	down      time.Duration
	speed     float64
	seed      uint64
	tls       bool
	native    bool
	tokenIDs  bool
	plain     float64
	output    string
	report    string
	verbose   bool
	list      bool
}

func chaosCommand() *cobra.Command {
	var o chaosOptions
	c := &cobra.Command{
		Use:   "chaos",
		Short: "Take hosts away under load, and check every token that callers get",
		Long: `Start a fleet of fake hosts on loopback, a gateway in front of it, and callers that read one answer after another; then take
hosts away, cut them off, let them fall silent, outbid them, by a scenario. What the hosts answer is known beforehand, so
that a token that is lost, doubled or altered is always found, and so is an answer that ends as though it were complete.

Built-in scenarios: ` + strings.Join(chaos.Builtin(), ", ") + `. docs/chaos.md tells what they do, and how to write
one. No account and no network is needed.

Exit codes: 0 all targets are met, 1 one is missed, 2 the command line or a file is wrong, 130 interrupted.`,
		Example: `  headrace chaos
  headrace chaos --scenario all --for 30s --streams 60 --kill-every 2s --down 4s
  headrace chaos --scenario my.yaml --seed 7 -o json --report chaos.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.list {
				return listChaos(cmd.OutOrStdout())
			}
			s, err := o.chosen(cmd)
			if err != nil {
				return &exitError{2, err}
			}
			return o.play(cmd.Context(), s, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.StringVar(&o.scenario, "scenario", "preempt", "name of a built-in scenario, or a YAML file")
	f.DurationVar(&o.duration, "for", 0, "callers begin no answer after that (default: the scenario's)")
	f.IntVar(&o.streams, "streams", 0, "callers at once (default: the scenario's)")
	f.IntVar(&o.hosts, "hosts", 0, "how many there are of the scenario's first kind of hosts (default: the scenario's)")
	f.DurationVar(&o.killEvery, "kill-every", 0, "time between two faults (default: the scenario's)")
	f.DurationVar(&o.down, "down", 0, "how long a fault lasts, ±30 % (default: the scenario's)")
	f.Float64Var(&o.speed, "speed", 0, "engines are so many times faster than in life (default: the scenario's)")
	f.Uint64Var(&o.seed, "seed", 1, "seed of questions, faults and victims (default: the scenario's)")
	f.BoolVar(&o.tls, "tls", false, "hosts of kind static, and the gateway for its callers, speak TLS")
	f.BoolVar(&o.native, "native", false, "the same as --scenario native: RunPod's native jobs")
	f.BoolVar(&o.tokenIDs, "token-ids", false, "the gateway continues answers by the numbers of their tokens, where it can (default: the scenario's)")
	f.Float64Var(&o.plain, "plain-share", 0, "share of the requests that ask for no stream (default: the scenario's)")
	f.StringVarP(&o.output, "output", "o", "table", "table or json")
	f.StringVar(&o.report, "report", "", "also write the report as JSON to this file")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "tell of each fault, and print the gateway's log")
	f.BoolVar(&o.list, "list", false, "list the built-in scenarios")
	for name, words := range map[string][]string{"scenario": chaos.Builtin(), "output": {"table", "json"}} {
		if err := c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveDefault)); err != nil {
			panic("BUG: " + err.Error())
		}
	}
	return c
}

func listChaos(w io.Writer) error {
	for _, name := range chaos.Builtin() {
		s, err := chaos.Load(name, os.LookupEnv)
		var title string
		if err != nil { // this build cannot do it
			title = err.Error()
		} else {
			title = s.Title
		}
		if _, err := fmt.Fprintf(w, "%-9s %s\n", name, title); err != nil {
			return err
		}
	}
	return nil
}

// chosen is the scenario that the flags ask for.
func (o *chaosOptions) chosen(cmd *cobra.Command) (*chaos.Scenario, error) {
	set := cmd.Flags().Changed
	switch {
	case o.output != "table" && o.output != "json":
		return nil, fmt.Errorf("--output %q: want table or json", o.output)
	case o.native && set("scenario"):
		return nil, errors.New("--native is a scenario of its own: give it or --scenario")
	case set("for") && o.duration <= 0, set("kill-every") && o.killEvery <= 0, set("down") && o.down <= 0:
		return nil, errors.New("--for, --kill-every, --down: want more than 0")
	case set("streams") && (o.streams < 1 || o.streams > 10_000):
		return nil, fmt.Errorf("--streams %d: want 1 to 10000", o.streams)
	case set("hosts") && (o.hosts < 1 || o.hosts > 1000):
		return nil, fmt.Errorf("--hosts %d: want 1 to 1000", o.hosts)
	case set("speed") && !(o.speed > 0 && o.speed <= 1000): //nolint:staticcheck // NaN is not above 0 either
		return nil, fmt.Errorf("--speed %g: want more than 0 and at most 1000", o.speed)
	case !(o.plain >= 0 && o.plain <= 1):
		return nil, fmt.Errorf("--plain-share %g: want 0 to 1", o.plain)
	}
	if o.report != "" { // before minutes of work rather than after
		if info, err := os.Stat(filepath.Dir(o.report)); err != nil || !info.IsDir() {
			return nil, fmt.Errorf("--report %s: there is no such folder", o.report)
		}
	}
	if o.native {
		o.scenario = "native"
	}
	s, err := chaos.Load(o.scenario, os.LookupEnv)
	if err != nil {
		return nil, err
	}
	s.TLS = o.tls
	for name, alter := range map[string]func(){
		"for": func() { s.For = o.duration }, "streams": func() { s.Streams = o.streams }, "hosts": func() { s.Hosts[0].Count = o.hosts },
		"kill-every": func() { s.Every = o.killEvery }, "down": func() { s.Down = o.down }, "speed": func() { s.Speed = o.speed },
		"token-ids": func() { s.TokenIDs = o.tokenIDs }, "seed": func() { s.Seed = o.seed }, "plain-share": func() { s.Traffic.Plain = o.plain },
	} {
		if set(name) {
			alter()
		}
	}
	return s, nil
}

// play plays s and tells what came of it.
func (o *chaosOptions) play(ctx context.Context, s *chaos.Scenario, out, errs io.Writer) error {
	logTo := io.Discard
	var tell func(string)
	if o.verbose {
		logTo = errs
		tell = func(line string) { _, _ = fmt.Fprintln(errs, line) }
	}
	rep, err := playChaos(ctx, s, logTo, tell)
	if err != nil {
		return err
	}
	if o.report != "" {
		b, err := json.MarshalIndent(rep, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.report, append(b, '\n'), 0o600); err != nil {
			return err
		}
	}
	if o.output == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		err = e.Encode(rep)
	} else {
		_, err = io.WriteString(out, chaosText(rep, screenWidth(out)))
	}
	switch missed := rep.Missed(); {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return &exitError{130, errors.New("interrupted: this is what there was until then")}
	case len(missed) > 0:
		return &exitError{1, fmt.Errorf("targets missed: %s", strings.Join(missed, "; "))}
	}
	return nil
}

// readyWithin is how long the gateway may take to find its hosts.
const readyWithin = time.Minute

// playChaos starts fleet and gateway, plays s on them and leaves nothing running.
func playChaos(ctx context.Context, s *chaos.Scenario, logTo io.Writer, tell func(string)) (rep *chaos.Report, err error) {
	fleet, err := chaos.StartFleet(context.WithoutCancel(ctx), s) // it outlives the gateway
	if err != nil {
		return nil, fmt.Errorf("start the fleet: %w", err)
	}
	defer fleet.Stop()
	text, trust := fleet.Config(), (*tls.Config)(nil)
	scheme := "http://"
	if s.TLS {
		dir, err := os.MkdirTemp("", "headrace-chaos-")
		if err != nil {
			return nil, err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		var listen string
		if listen, trust, err = loopbackTLS(dir); err != nil {
			return nil, err
		}
		text, scheme = listen+text, "https://"
	}
	cfg, err := chaosConfig(text, s.TLS, fleet.Env())
	if err != nil {
		return nil, err
	}
	a, err := newApp(cfg, logTo)
	if err != nil {
		return nil, err
	}
	base := scheme + reachable(a.listeners[0].Addr())
	if console := fleet.VastConsole(); console != "" {
		if s.TLS { // the fake posts to plain HTTP only; polls will do
			console = ""
		}
		if console != "" {
			if cfg.Providers.Vast.WebhookSecret, err = subscribe(ctx, console, cfg.Providers.Vast.APIKey.Reveal(), base); err != nil {
				a.closeListeners()
				return nil, err
			}
		}
		a.rented.Store(hurried(cfg, max(1/fleet.Pace(), 1.0/60), a.log)) // it knows the secret
	}
	run := chaos.New(chaos.Options{Scenario: s, Fleet: fleet, Base: base + "/v1", TLS: trust, Tell: tell, Held: a.held})
	a.onSettled = run.Settled
	served := make(chan error, 1)
	serveCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	playCtx, ended := context.WithCancel(ctx)
	defer ended()
	go func() {
		served <- a.run(serveCtx, nil)
		ended() // a gateway that ended by itself ends the play
	}()
	if err = awaitHosts(playCtx, a, fleet.IDs()); err == nil {
		rep = run.Play(playCtx)
	}
	stop()
	return rep, errors.Join(err, <-served)
}

// chaosConfig is the gateway's config: that of serve, with hosts and accounts of the fleet.
func chaosConfig(text string, secure bool, env map[string]string) (*config.Config, error) {
	o := config.Overrides{Listen: "127.0.0.1:0", Admin: "off"}
	if secure {
		o.Listen = "" // as the text says
	}
	cfg, err := config.Parse("chaos.yaml", []byte(text), o, func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	})
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("BUG: the config of the fleet is wrong: %w\n%s", err, text)
	}
	return cfg, nil
}

// awaitHosts waits until the gateway takes requests for all hosts.
func awaitHosts(ctx context.Context, a *app, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		var missing []string
		hosts := a.router.Hosts()
		for _, id := range ids {
			ok := false
			for i := range hosts {
				h := &hosts[i]
				usable := h.State == "ready" || h.Provider == "runpod" && h.State == "starting" // a worker is doubted for half a minute
				ok = ok || string(h.ID) == id && len(h.Models) > 0 && usable
			}
			if !ok {
				missing = append(missing, id)
			}
		}
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return &exitError{130, errors.New("interrupted before it began")}
			}
			slices.Sort(missing)
			return fmt.Errorf("after %v the gateway does not use these hosts: %s", readyWithin, strings.Join(missing, ", "))
		}
	}
}

// held is how many requests the router holds to be running, by host.
func (a *app) held() map[string]int64 {
	m := map[string]int64{}
	for _, h := range a.router.Hosts() {
		m[string(h.ID)] = h.InFlight
	}
	return m
}

// loopbackTLS makes a certificate for loopback in dir. It returns the config's section that serves it, and what callers need.
func loopbackTLS(dir string) (listen string, trust *tls.Config, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(48 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return "", nil, err
	}
	kb, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", nil, err
	}
	certFile, keyFile := filepath.Join(dir, "gateway.pem"), filepath.Join(dir, "gateway.key")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	err = errors.Join(os.WriteFile(certFile, cert, 0o600), os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb}), 0o600))
	if err != nil {
		return "", nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	listen = fmt.Sprintf("listen: {address: \"127.0.0.1:0\", tls: {cert: %q, key: %q}}\n", certFile, keyFile)
	return listen, &tls.Config{RootCAs: pool, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12}, nil
}
