package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"headrace/router/experiment/trial"
)

// powerOptions are the flags of experiment power.
type powerOptions struct {
	share    float64
	requests []int
	runs     int
	seed     uint64
	units    string
	ttft     float64
	tps      float64
	usd      float64
	failures float64
	output   string
}

func experimentPowerCommand() *cobra.Command {
	o := powerOptions{share: 0.1}
	c := &cobra.Command{
		Use:   "power",
		Short: "Tell how soon an experiment would find what there is, by made-up ones",
		Long: `Run made-up experiments, of which the truth is known, through the statistics that experiments are decided by, looking all the time, and
tell how many of them were stopped within how many requests. Without a flag that says how the canary differs, those of
docs/experiments.md are run: no difference, whose stops are false alarms, TTFT 10 % longer, TPS 10 % lower, tokens 10 % dearer, 1 point and 20 points more failures.

Nothing is measured and no gateway is asked. The same flags give the same figures.

Exit codes: 0 all is well, 2 the command line is wrong, 130 interrupted.`,
		Example: `  headrace experiment power
  headrace experiment power --share 5% --ttft 20% --requests 1000,5000,20000
  headrace experiment power --failures 2% --units requests -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := c.Flags()
	f.Var(percentValue{&o.share, 0, 1}, "share", "the canary's share of units")
	f.IntSliceVar(&o.requests, "requests", []int{1000, 2000, 5000, 10000, 20000}, "numbers of requests, of both arms together")
	f.IntVar(&o.runs, "runs", 200, "experiments of each kind")
	f.Uint64Var(&o.seed, "seed", 1, "of the first experiment")
	f.StringVar(&o.units, "units", "users", "users, who come again, or requests")
	f.Var(percentValue{&o.ttft, -0.9, 9}, "ttft", "by how much the canary's time to the first token is longer")
	f.Var(percentValue{&o.tps, -0.9, 9}, "tps", "by how much its streams are faster; negative: slower")
	f.Var(percentValue{&o.usd, -0.9, 9}, "usd", "by how much its tokens are dearer")
	f.Var(percentValue{&o.failures, 0, 1}, "failures", "what share of its requests fails in addition")
	f.StringVarP(&o.output, "output", "o", "table", "table or json")
	return c
}

// percentValue is a flag that is a share, as 5% or 0.05.
type percentValue struct {
	to        *float64
	low, high float64
}

func (v percentValue) String() string {
	if v.to == nil {
		return ""
	}
	return strconv.FormatFloat(100*(*v.to), 'g', 6, 64) + "%"
}

func (v percentValue) Set(s string) error {
	number, percent := strings.CutSuffix(strings.TrimSpace(s), "%")
	f, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if percent {
		f /= 100
	}
	if err != nil || math.IsNaN(f) || f < v.low || f > v.high {
		return fmt.Errorf("want a share such as 5%% or 0.05, from %g%% to %g%%", 100*v.low, 100*v.high)
	}
	*v.to = f
	return nil
}

func (percentValue) Type() string { return "percent" }

// mostPower bounds what one command simulates.
const mostPower = 1_000_000

func (o *powerOptions) run(cmd *cobra.Command) error {
	switch {
	case o.output != "table" && o.output != "json":
		return &exitError{2, fmt.Errorf("--output %q: want table or json", o.output)}
	case o.units != "users" && o.units != "requests":
		return &exitError{2, fmt.Errorf("--units %q: want users or requests", o.units)}
	case o.runs < 1 || o.runs > 100_000:
		return &exitError{2, fmt.Errorf("--runs %d: want 1 to 100000", o.runs)}
	case len(o.requests) == 0 || slices.Min(o.requests) < 100 || slices.Max(o.requests) > mostPower:
		return &exitError{2, fmt.Errorf("--requests %v: want numbers from 100 to %d", o.requests, mostPower)}
	case o.share <= 0 || o.share >= 1:
		return &exitError{2, errors.New("--share: want more than 0% and less than 100%")}
	}
	slices.Sort(o.requests)
	effects := trial.Effects()
	if f := cmd.Flags(); f.Changed("ttft") || f.Changed("tps") || f.Changed("usd") || f.Changed("failures") {
		effects = []trial.Effect{trial.NewEffect(1+o.ttft, 1+o.tps, 1+o.usd, o.failures)}
	}
	rows, err := trial.Power(cmd.Context(), effects, []bool{o.units == "users"}, []float64{o.share}, o.requests, o.runs, o.seed)
	if err != nil {
		return &exitError{130, errors.New("interrupted")}
	}
	w := cmd.OutOrStdout()
	if o.output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(rows)
	}
	_, err = io.WriteString(w, o.text(rows))
	return err
}

// text is a table of rows.
func (o *powerOptions) text(rows []trial.Row) string {
	cols := []textColumn{{name: "canary"}}
	for _, n := range o.requests {
		cols = append(cols, textColumn{name: strconv.Itoa(n), right: true})
	}
	cols = append(cols, textColumn{name: "median requests", right: true}, textColumn{name: "its units then", right: true}, textColumn{name: "stopped by"})
	for i := range rows {
		r := &rows[i]
		cells := []string{r.Effect}
		for _, s := range r.Stopped {
			cells = append(cells, fmt.Sprintf("%.3g %%", 100*s.Share))
		}
		median, units := "–", "–"
		if !math.IsNaN(float64(r.Requests)) {
			median, units = fmt.Sprintf("%.0f", float64(r.Requests)), fmt.Sprintf("%.0f", float64(r.Units))
		}
		var by []string
		for _, m := range slices.Sorted(maps.Keys(r.By)) {
			by = append(by, fmt.Sprintf("%s %d", m, r.By[m]))
		}
		for k, s := range append(cells, median, units, strings.Join(by, ", ")) {
			cols[k].cells = append(cols[k].cells, s)
		}
	}
	return fmt.Sprintf("%d made-up experiments of each kind, by %s, the canary's share %.3g %%: stopped within so many requests of both arms together\n%s\n",
		o.runs, o.units, 100*o.share, textTable(cols, 160))
}
