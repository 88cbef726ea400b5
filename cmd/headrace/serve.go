package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"headrace/gateway/config"
	"headrace/gateway/state"
)

// configFlags are the flags that find and override the config.
type configFlags struct {
	file      string
	overrides config.Overrides
	open      bool
}

func (f *configFlags) add(c *cobra.Command) {
	c.Flags().StringVarP(&f.file, "config", "c", "", "YAML file (default: headrace.yaml in the working directory, if there is one)")
	c.Flags().StringVar(&f.overrides.Listen, "listen", "", "address of the OpenAI surface, overrides the file")
	c.Flags().StringVar(&f.overrides.Admin, "admin", "", `address of the admin API or "off", overrides the file`)
	c.Flags().StringVar(&f.overrides.LogLevel, "log-level", "", "debug, info, warn or error, overrides the file")
	c.Flags().BoolVar(&f.open, "allow-unauthenticated", false, "listen on other addresses than loopback although callers are asked for no key")
}

const defaultFile = "headrace.yaml"

func (f *configFlags) load(cmd *cobra.Command) (*config.Config, error) {
	if cmd.Flags().Changed("allow-unauthenticated") {
		f.overrides.AllowUnauthenticated = &f.open
	}
	if f.file == "" {
		if _, err := os.Stat(defaultFile); err == nil {
			f.file = defaultFile
		}
	}
	return f.read()
}

func (f *configFlags) read() (*config.Config, error) {
	cfg, err := config.Load(f.file, f.overrides, os.LookupEnv)
	if err == nil {
		err = cfg.Validate()
	}
	if err == nil && cfg.State.Redis != "" {
		err = state.CheckURL(cfg.State.Redis.Reveal())
	}
	if err != nil {
		return nil, &exitError{2, badConfig(err)}
	}
	return cfg, nil
}

func badConfig(err error) error {
	if ps, ok := errors.AsType[*config.Problems](err); ok && len(ps.List) > 1 {
		return fmt.Errorf("the config has %d problems:\n%w", len(ps.List), err)
	}
	return fmt.Errorf("the config has a problem:\n%w", err)
}

func serveCommand() *cobra.Command {
	var f configFlags
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the gateway",
		Long: `Run the gateway until SIGINT or SIGTERM, then let running requests finish (timeouts.drain).

The config is read again on SIGHUP and whenever the file changes. A config that is wrong changes
nothing: the problem is logged and shown at /admin/v1/status. Listen addresses, limits.max_head,
timeouts.idle and log.format take effect at the next start only.

Sockets that systemd opened for it (LISTEN_FDS) are used where the config has their address.`,
		Example: `  headrace serve --config headrace.yaml
  HEADRACE_LISTEN=127.0.0.1:8000 headrace serve -c headrace.yaml --log-level debug`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.load(cmd)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), cfg, f.read)
		},
	}
	f.add(c)
	return c
}

// serve runs the gateway until ctx is done; read reads the config again.
func serve(ctx context.Context, cfg *config.Config, read func() (*config.Config, error)) error {
	given, err := inherited(os.LookupEnv, os.Getpid(), firstSocket)
	if err != nil {
		return err
	}
	a, err := newApp(cfg, os.Stderr, given...)
	if err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	return a.run(ctx, reloadOn(ctx, hup, cfg, read))
}

// reloadOn returns a channel that yields the config anew on each signal and after each change of its
// files; it is closed when ctx is done.
func reloadOn(ctx context.Context, hup <-chan os.Signal, cfg *config.Config, read func() (*config.Config, error)) <-chan reading {
	changed := make(chan struct{}, 1)
	files := make(chan []string, 1)
	out := make(chan reading)
	go func() {
		_ = config.Watch(ctx, cfg.Files(), func() []string { // ends with ctx only
			select {
			case changed <- struct{}{}:
			case <-ctx.Done():
			}
			select {
			case f := <-files:
				return f
			case <-ctx.Done():
				return nil
			}
		})
	}()
	go func() {
		defer close(out)
		for {
			watched := false
			select {
			case <-hup:
			case <-changed:
				watched = true
			case <-ctx.Done():
				return
			}
			c, err := read()
			select {
			case out <- reading{c, err}:
			case <-ctx.Done():
				return
			}
			if watched {
				var f []string
				if err == nil {
					f = c.Files()
				}
				files <- f
			}
		}
	}()
	return out
}

// reading is one attempt at reading the config again.
type reading struct {
	cfg *config.Config
	err error
}
