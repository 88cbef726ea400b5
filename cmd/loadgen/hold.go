package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"headrace/cmd/loadgen/internal/load"
)

// holdOptions are the flags of loadgen hold.
type holdOptions struct {
	shared
	plan  load.Plan
	conns []int
}

func newHold() *cobra.Command {
	o := &holdOptions{plan: load.Plan{Stream: true, PerWorker: 1, Duration: 7 * time.Second, Ramp: 2 * time.Second}}
	c := &cobra.Command{
		Use:   "hold --target NAME=URL,PID ...",
		Short: "Hold many slow streams and read what they cost the proxy",
		Long: "hold keeps that many slow streams open on each target in turn and prints memory and CPU of the process\n" +
			"behind it. Start the proxy afresh before: memory kept from an earlier run hides what the streams cost.\n" +
			"The number of tokens follows from the time and the gap.",
		Example: `  loadgen hold -c 1000,5000 --gap 250ms -d 7s --ramp 5s --target gw=http://127.0.0.1:8080/v1/chat/completions,/run/gw.pid`,
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return o.run(c) },
	}
	o.register(c)
	o.set.Gap = 250 * time.Millisecond
	planFlags(c, &o.plan, &o.shared)
	c.Flags().IntSliceVarP(&o.conns, "connections", "c", []int{1000}, "streams held at once, one or several levels")
	return c
}

func (o *holdOptions) run(c *cobra.Command) error {
	if o.set.Gap <= 0 || o.set.Gap > o.plan.Duration {
		return checked(fmt.Errorf("gap %v: want more than 0 and at most the duration", o.set.Gap))
	}
	o.set.Tokens = int(o.plan.Duration / o.set.Gap)
	o.plan.Mock = o.set
	o.plan.Duration += o.plan.Ramp // all streams have started by then
	for _, n := range o.conns {
		o.plan.Conns = n
		if err := o.plan.Validate(); err != nil {
			return checked(err)
		}
	}
	targets, err := o.prepare(o.conns...)
	if err != nil {
		return err
	}
	for _, n := range o.conns {
		o.plan.Conns = n
		if err := o.level(c, targets); err != nil {
			return err
		}
	}
	return nil
}

func (o *holdOptions) level(c *cobra.Command, targets []*load.Target) error {
	out := c.OutOrStdout()
	if o.output == "table" {
		fmt.Fprintf(out, "\n%d streams, gap %v, %d tokens each (times in µs, memory in KiB)\n\n", o.plan.Conns, o.plan.Mock.Gap, o.plan.Mock.Tokens)
		fmt.Fprintln(out, "| target | idle RSS | peak RSS | RSS per stream | anon per stream | CPU/token | proxy cores | tokens/s | TTFT p50 | p99 | gap p99 | transit p50 | p99 | errors |")
		fmt.Fprintln(out, "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
	}
	for _, t := range targets {
		w, err := load.Run(c.Context(), t, o.plan, o.mock)
		if err != nil {
			return err
		}
		if w.Errors > 0 {
			c.PrintErrf("%s c=%d: %d errors, last: %s\n", t.Name, w.Conns, w.Errors, w.LastError)
		}
		if o.output == "json" {
			if err := writeJSON(out, w); err != nil {
				return err
			}
			continue
		}
		cores := w.CPUToken * float64(w.Tokens) / 1e6 / w.Seconds
		fmt.Fprintf(out, "| %s | %d | %d | %.1f | %.1f | %.2f | %.2f | %.0f | %s | %s | %s | %s | %s | %d |\n", t.Name,
			w.IdleRSS>>10, w.PeakRSS>>10, w.RSSPerConn(), w.AnonPerConn(), w.CPUToken, cores, w.TokensPS,
			micros(w.TTFT50), micros(w.TTFT99), micros(w.Gap99), micros(w.Transit50), micros(w.Transit99), w.Errors)
	}
	return nil
}
