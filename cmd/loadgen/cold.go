package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"headrace/cmd/loadgen/internal/h1"
	"headrace/cmd/loadgen/internal/load"
	"headrace/cmd/loadgen/internal/mock"
	"headrace/cmd/loadgen/internal/rig"
	"headrace/cmd/loadgen/internal/stat"
)

// coldOptions are the flags of loadgen cold.
type coldOptions struct {
	shared
	starts   int
	upstream string
	commands []string
}

// coldRow is what cold reports for one program.
type coldRow struct {
	Name   string    `json:"name"`
	Starts []float64 `json:"starts_ms"`
	Median float64   `json:"median_ms"`
}

func newCold() *cobra.Command {
	o := &coldOptions{}
	c := &cobra.Command{
		Use:   "cold --proxy-cmd NAME=COMMAND ...",
		Short: "Time programs from their start to the first right answer",
		Long: "cold starts each program several times, in turns, on a free loopback port, asks it for a chat completion\n" +
			"until the answer is right, and stops it again. A command has {listen}, {upstream} and {dir} filled in.",
		Example: `  loadgen mock &
  loadgen cold --proxy-cmd 'gw=./gw -addr {listen} -upstream {upstream}'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return o.run(c) },
	}
	o.registerRequest(c)
	f := c.Flags()
	f.StringArrayVar(&o.commands, "proxy-cmd", nil, "`NAME=COMMAND` to time; repeatable")
	f.StringVar(&o.upstream, "upstream", defaultMock, "`HOST:PORT` of the mock upstream, which must run")
	f.IntVar(&o.starts, "starts", 5, "starts of each program, 1 to 50")
	return c
}

func (o *coldOptions) run(c *cobra.Command) (err error) {
	req, err := o.request()
	if err := errors.Join(err, checkOutput(o.output), h1.CheckLoopback(o.upstream)); err != nil {
		return checked(err)
	}
	if o.starts < 1 || o.starts > 50 || len(o.commands) == 0 {
		return checked(errors.New("want --proxy-cmd, and 1 to 50 --starts"))
	}
	var programs []rig.Program
	for _, text := range o.commands {
		p, err := rig.Command(text)
		if err != nil {
			return checked(err)
		}
		programs = append(programs, p)
	}
	if _, err := load.Configure("http://"+o.upstream, mock.Defaults()); err != nil {
		return err
	}
	r, err := rig.New(func(string, ...any) {})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	rows := make([]coldRow, len(programs))
	for range o.starts {
		for i, p := range programs {
			took, err := o.once(c.Context(), r, p, req)
			if err != nil {
				return err
			}
			rows[i].Name = p.Name
			rows[i].Starts = append(rows[i].Starts, float64(took)/float64(time.Millisecond))
		}
	}
	return o.print(c, rows)
}

// once starts a program, waits for its first answer, and stops it.
func (o *coldOptions) once(ctx context.Context, r *rig.Rig, p rig.Program, req load.Request) (time.Duration, error) {
	proc, err := r.Start(p, "", o.upstream)
	if err != nil {
		return 0, err
	}
	defer r.Stop(proc)
	t, err := load.NewTarget(p.Name, "http://"+proc.Place.Listen+"/v1/chat/completions", proc.PID, req)
	if err != nil {
		return 0, err
	}
	return r.AwaitReady(ctx, proc, func(ctx context.Context) error { return load.Probe(ctx, t, mock.Defaults().Body) })
}

func (o *coldOptions) print(c *cobra.Command, rows []coldRow) error {
	out := c.OutOrStdout()
	if o.output == "table" {
		fmt.Fprintf(out, "| program | start to first answer, ms (median of %d) | least | most |\n|---|--:|--:|--:|\n", o.starts)
	}
	for _, w := range rows {
		w.Median = stat.Median(w.Starts)
		if o.output == "json" {
			if err := writeJSON(out, w); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(out, "| %s | %.1f | %.1f | %.1f |\n", w.Name, w.Median, slices.Min(w.Starts), slices.Max(w.Starts))
	}
	return nil
}
