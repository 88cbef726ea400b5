// Command headrace is a smart inference gateway: an OpenAI base URL that forwards each request to
// the cheapest rented GPU host that can answer it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = ""

func main() {
	collectLate()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := root().ExecuteContext(ctx); err != nil {
		var ee *exitError
		if !errors.As(err, &ee) {
			ee = &exitError{code: 1, err: err}
		}
		if ee.err != nil {
			fmt.Fprintln(os.Stderr, "headrace:", ee.err)
		}
		os.Exit(ee.code) //nolint:gocritic // stop only restores the default signal handling
	}
}

const (
	startPercent = 400                    // first collection at 16 MB
	startLasts   = 100 * time.Millisecond // more than enough to be listening
)

// collectLate keeps the garbage collector from the first moments of the process: what a start makes is nearly all kept, and comes to just
// what makes the collector begin, a tenth of the time to the first answer. Who sets GOGC gets what it says at all times.
func collectLate() {
	if os.Getenv("GOGC") != "" {
		return
	}
	usual := debug.SetGCPercent(startPercent)
	time.AfterFunc(startLasts, func() { debug.SetGCPercent(usual) })
}

// exitError ends the program with a code of its own: 2 for a config or a flag that is wrong, 1 for all else.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func root() *cobra.Command {
	c := &cobra.Command{
		Use:   "headrace",
		Short: "Smart inference gateway for rented, preemptible GPUs",
		Long: `Headrace takes OpenAI requests and forwards each to the cheapest GPU host that can answer it.
It measures time to first token and tokens per second of every request, retries elsewhere what a
host failed before its first token, has another host go on with what broke off later, and frees the
GPU the moment a caller leaves.

Point an application's OpenAI base URL at it: http://127.0.0.1:8080/v1`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       versionText(),
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{2, err} })
	c.AddCommand(serveCommand(), demoCommand(), checkCommand(), explainCommand(), hostsCommand(), keysCommand(), experimentCommand(), reportCommand(), simulateCommand(), chaosCommand(), versionCommand(), schemaCommand())
	return c
}

func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func versionCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  headrace version\n  headrace version -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			goVersion := "unknown"
			if info, ok := debug.ReadBuildInfo(); ok {
				goVersion = info.GoVersion
			}
			switch output {
			case "json":
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "{\"version\":%q,\"go\":%q}\n", versionText(), goVersion)
				return err
			case "text":
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "headrace %s (%s)\n", versionText(), goVersion)
				return err
			}
			return &exitError{2, fmt.Errorf("--output %q: want text or json", output)}
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}
