// Command loadgen measures what a proxy for LLM traffic costs: time added, CPU, memory, start. It
// loads loopback addresses only, and brings its own mock upstream.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	exitMissed = 3 // compare --enforce: a bound was missed
)

// errMissed says that a comparison fell short of its bounds.
var errMissed = errors.New("the acceptance list is not met")

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	// A garbage collector that seldom runs disturbs the measured less. GOGC still overrides this.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program but for the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, "loadgen:", err)
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	if errors.Is(err, errMissed) {
		return exitMissed
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "loadgen",
		Short: "Measure what a proxy for LLM traffic costs, on loopback",
		Long: "loadgen loads targets on loopback with OpenAI chat completions, plain and streamed, checks every\n" +
			"answer, and reports time, CPU and memory. Other addresses than loopback are refused.",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(newRun(), newHold(), newCold(), newMock(), newCompare())
	return root
}

// checked reports an error of a command's own checks as one of usage.
func checked(err error) error {
	if err != nil {
		return usageError{err}
	}
	return nil
}
