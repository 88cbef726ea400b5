package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"headrace/cmd/loadgen/internal/load"
	"headrace/cmd/loadgen/internal/stat"
)

// runOptions are the flags of loadgen run.
type runOptions struct {
	shared
	plan   load.Plan
	conns  []int
	rounds int
}

func newRun() *cobra.Command {
	o := &runOptions{plan: load.Plan{Duration: defaultDuration}}
	c := &cobra.Command{
		Use:   "run --target NAME=URL[,PID] ...",
		Short: "Load targets in interleaved rounds",
		Long: "run gives every target its turn in each round and prints medians over the rounds. Added latency and\n" +
			"ratios are taken within a round, against the first target, which should be the mock itself. Without\n" +
			"--rate each connection sends as fast as it gets answers (closed loop); with it, requests arrive on a\n" +
			"schedule and their latency counts from when they were due (open loop).",
		Example: `  loadgen mock &
  loadgen run --target direct=http://127.0.0.1:9100/v1/chat/completions \
    --target gw=http://127.0.0.1:8080/v1/chat/completions,/run/gw.pid -c 1,16,64
  loadgen run --stream -c 200 --gap 20ms --tokens 100 --ramp 1s --target ...
  loadgen run -c 64 --rate 1000 --target ...`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return o.run(c) },
	}
	o.register(c)
	planFlags(c, &o.plan, &o.shared)
	f := c.Flags()
	f.BoolVar(&o.plan.Stream, "stream", false, "ask for streams")
	f.IntSliceVarP(&o.conns, "connections", "c", []int{16}, "concurrent connections, one or several levels")
	f.Float64Var(&o.plan.Rate, "rate", 0, "open loop: requests per second (0: closed loop)")
	f.IntVar(&o.rounds, "rounds", 5, "rounds, 1 to 50")
	f.IntVar(&o.set.Tokens, "tokens", o.set.Tokens, "content chunks of a stream")
	f.IntVar(&o.set.Batch, "batch", o.set.Batch, "content chunks the mock writes at once when --gap is 0")
	f.IntVar(&o.set.Body, "body", o.set.Body, "bytes of content in an answer that is no stream")
	return c
}

func (o *runOptions) run(c *cobra.Command) error {
	if o.rounds < 1 || o.rounds > 50 {
		return checked(fmt.Errorf("%d rounds: want 1 to 50", o.rounds))
	}
	o.plan.Mock = o.set
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

// level does all rounds with one number of connections.
func (o *runOptions) level(c *cobra.Command, targets []*load.Target) error {
	by := map[string][]load.Row{}
	for round := range o.rounds {
		for _, t := range targets {
			if round == 0 {
				if _, err := load.Run(c.Context(), t, o.plan.Warm(), o.mock); err != nil {
					return err
				}
			}
			w, err := load.Run(c.Context(), t, o.plan, o.mock)
			if err != nil {
				return err
			}
			w.Round = round
			by[t.Name] = append(by[t.Name], w)
			if o.output == "json" {
				if err := writeJSON(c.OutOrStdout(), w); err != nil {
					return err
				}
			}
			if w.Errors > 0 {
				c.PrintErrf("%s c=%d round %d: %d errors, last: %s\n", t.Name, w.Conns, round+1, w.Errors, w.LastError)
			}
		}
	}
	if o.output == "table" {
		o.table(c.OutOrStdout(), targets, by)
	}
	return nil
}

// column is one column of a table: its title, and its value from a row and the row of the first
// target in the same round.
type column struct {
	title string
	value func(w, first load.Row) float64
	form  string
}

func (o *runOptions) columns() []column {
	if o.plan.Stream {
		return []column{
			{"streams/s", func(w, _ load.Row) float64 { return w.RPS }, "%.0f"},
			{"tokens/s", func(w, _ load.Row) float64 { return w.TokensPS }, "%.0f"},
			{"× first", func(w, f load.Row) float64 { return w.TokensPS / f.TokensPS }, "%.3f"},
			{"TTFT p50", func(w, _ load.Row) float64 { return w.TTFT50 }, "%.0f"},
			{"p99", func(w, _ load.Row) float64 { return w.TTFT99 }, "%.0f"},
			{"added p50", func(w, f load.Row) float64 { return w.TTFT50 - f.TTFT50 }, "%.0f"},
			{"added p99", func(w, f load.Row) float64 { return w.TTFT99 - f.TTFT99 }, "%.0f"},
			{"gap p99", func(w, _ load.Row) float64 { return w.Gap99 }, "%.0f"},
			{"transit p50", func(w, _ load.Row) float64 { return w.Transit50 }, "%.0f"},
			{"p99", func(w, _ load.Row) float64 { return w.Transit99 }, "%.0f"},
			{"CPU/token", func(w, _ load.Row) float64 { return w.CPUToken }, "%.2f"},
			{"CPU/stream", func(w, _ load.Row) float64 { return w.CPURequest }, "%.1f"},
		}
	}
	return []column{
		{"requests/s", func(w, _ load.Row) float64 { return w.RPS }, "%.0f"},
		{"× first", func(w, f load.Row) float64 { return w.RPS / f.RPS }, "%.3f"},
		{"p50", func(w, _ load.Row) float64 { return w.P50 }, "%.1f"},
		{"p90", func(w, _ load.Row) float64 { return w.P90 }, "%.1f"},
		{"p99", func(w, _ load.Row) float64 { return w.P99 }, "%.1f"},
		{"p99.9", func(w, _ load.Row) float64 { return w.P999 }, "%.1f"},
		{"added p50", func(w, f load.Row) float64 { return w.P50 - f.P50 }, "%.1f"},
		{"added p99", func(w, f load.Row) float64 { return w.P99 - f.P99 }, "%.1f"},
		{"CPU/request", func(w, _ load.Row) float64 { return w.CPURequest }, "%.1f"},
		{"mock's CPU/request", func(w, _ load.Row) float64 { return w.MockRequest }, "%.1f"},
	}
}

// table prints medians over rounds.
func (o *runOptions) table(out io.Writer, targets []*load.Target, by map[string][]load.Row) {
	p := o.plan
	kind, loop := "plain", "closed loop"
	if p.Stream {
		kind = fmt.Sprintf("streams of %d tokens, gap %v", p.Mock.Tokens, p.Mock.Gap)
	}
	if p.Rate > 0 {
		loop = fmt.Sprintf("open loop, %g requests/s", p.Rate)
	}
	fmt.Fprintf(out, "\n%s, %d connections, %s, delay %v, %d rounds of %v (times in µs)\n\n| target |", kind, p.Conns, loop, p.Mock.Delay, o.rounds, p.Duration)
	columns := o.columns()
	for _, c := range columns {
		fmt.Fprintf(out, " %s |", c.title)
	}
	fmt.Fprintf(out, " peak RSS, MiB | errors | late |\n|---|%s\n", strings.Repeat("--:|", len(columns)+3))
	first := by[targets[0].Name]
	for _, t := range targets {
		rows := by[t.Name]
		fmt.Fprintf(out, "| %s |", t.Name)
		for _, c := range columns {
			v := make([]float64, len(rows))
			for i, w := range rows {
				v[i] = c.value(w, first[i])
			}
			fmt.Fprintf(out, " "+c.form+" |", stat.Median(v))
		}
		var rss []float64
		var errs, late uint64
		for _, w := range rows {
			rss = append(rss, float64(w.PeakRSS)/(1<<20))
			errs += w.Errors
			late += w.Unscheduled
		}
		fmt.Fprintf(out, " %.1f | %d | %d |\n", stat.Median(rss), errs, late)
	}
}
