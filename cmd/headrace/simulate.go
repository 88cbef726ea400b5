package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/progress"
	"github.com/spf13/cobra"

	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
	"headrace/router/sim"
	"headrace/router/sim/report"
)

// simulateOptions are the flags of simulate.
type simulateOptions struct {
	suite    string
	policies []string
	seeds    int
	seed     uint64
	hours    float64
	rate     float64
	fleet    string
	trace    string
	deaths   []string
	output   string
	report   string
	jobs     int
	list     bool
}

// usualPolicies are simulated unless told otherwise.
var usualPolicies = []string{
	sim.Brain, sim.Oracle, "round-robin", "least-connections", "peak-ewma", "all-runpod", "all-vast", "cheapest-capped", "inverse-square", "lowest-latency",
	"spill-0.5", "spill-0.35",
}

const usualSeeds = 3

func simulateCommand() *cobra.Command {
	var o simulateOptions
	c := &cobra.Command{
		Use:   "simulate [SCENARIO...]",
		Short: "Run the router against a simulated fleet, next to simpler policies",
		Long: `Run this very router in virtual time against a fleet of simulated hosts with your prices and traffic, next to simpler
policies and one that knows everything, and tell what each would have cost and how many requests would have kept their SLO.

Without arguments the built-in scenario S1 is simulated, with --fleet the fleet of that file. --suite standard shows every
claim of the acceptance table (all scenarios, whole days, 5 seeds: 35 minutes on two idle processors), --suite short the
same claims on a morning in less than a minute; with --fleet on your own fleet.

Each figure is the mean over seeds, ± half its 95 % confidence interval by Student's t. Each seed draws the hosts' true
speeds and prices, the traffic and the faults anew; all policies of one seed meet the same. The same seeds give the same
figures. docs/simulator.md tells what is simulated and what not.

Exit codes: 0 all is well, 1 a claim of the suite is missed, 2 the command line or a file is wrong, 130 interrupted.`,
		Example: `  headrace simulate
  headrace simulate S2 SD --policy headrace,oracle,least-connections --seeds 5
  headrace simulate --fleet fleet.yaml --trace calls.csv --report report.html
  headrace simulate --suite short
  headrace simulate --list`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.list {
				return listSimulations(cmd.OutOrStdout(), o.output)
			}
			s, err := o.simulation(cmd, args)
			if err != nil {
				return &exitError{2, err}
			}
			return s.run(cmd.Context())
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var words []string
			for _, s := range sim.Scenarios() {
				words = append(words, s.Name+"\t"+s.Title)
			}
			return words, cobra.ShellCompDirectiveNoFileComp
		},
	}
	f := c.Flags()
	f.StringVar(&o.suite, "suite", "", "standard or short: show the claims of the acceptance table")
	f.StringSliceVar(&o.policies, "policy", nil, "policies parted by commas, or all (default: "+strings.Join(usualPolicies, ",")+")")
	f.IntVar(&o.seeds, "seeds", 0, fmt.Sprintf("how many seeds (default: %d, or the suite's)", usualSeeds))
	f.Uint64Var(&o.seed, "seed", 1, "the first of them")
	f.Float64Var(&o.hours, "hours", 0, "simulate so many hours around noon, when load is highest (default: the scenario's, mostly a day)")
	f.Float64Var(&o.rate, "rate", 0, "mean requests per second; stretches or squeezes a trace (default: the scenario's)")
	f.StringVar(&o.fleet, "fleet", "", "YAML file with a fleet of your own, its prices, SLO, traffic and faults (deploy/fleet.example.yaml)")
	f.StringVar(&o.trace, "trace", "", "CSV file of requests to replay: timestamp, prompt tokens, output tokens and perhaps a session")
	f.StringSliceVar(&o.deaths, "deaths", nil, "JSON files of spot instances' availability, by which interruptible hosts come and go: one for each host in turn")
	f.StringVarP(&o.output, "output", "o", "table", "table or json")
	f.StringVar(&o.report, "report", "", "also write an HTML page with charts to this file")
	f.IntVar(&o.jobs, "jobs", 0, "runs at once (default: one for each processor)")
	f.BoolVar(&o.list, "list", false, "list scenarios, policies and suites")
	for name, words := range map[string][]string{
		"suite": {"standard", "short"}, "output": {"table", "json"}, "policy": append(policyNames(), "all"),
	} {
		if err := c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic("BUG: " + err.Error())
		}
	}
	return c
}

func policyNames() (names []string) {
	for _, p := range sim.Policies() {
		names = append(names, p.Name)
	}
	return names
}

// simulation is what is to be run, and where what comes of it goes.
type simulation struct {
	options    sim.SuiteOptions
	plan       *report.Plan // nil without a suite
	decision   func() time.Duration
	out, errs  io.Writer
	json       bool
	reportFile string
	command    string // for the report

	told func(done, total int) // also told of progress, or nil
}

// simulation is what the flags ask for.
func (o *simulateOptions) simulation(cmd *cobra.Command, args []string) (*simulation, error) {
	s := &simulation{
		out: cmd.OutOrStdout(), errs: cmd.ErrOrStderr(), json: o.output == "json", reportFile: o.report, decision: decisionTime,
		command: o.commandLine(args),
	}
	set := cmd.Flags().Changed
	switch {
	case o.output != "table" && o.output != "json":
		return nil, fmt.Errorf("--output %q: want table or json", o.output)
	case o.suite != "" && o.suite != "standard" && o.suite != "short":
		return nil, fmt.Errorf("--suite %q: want standard or short", o.suite)
	case o.suite != "" && (len(args) > 0 || len(o.policies) > 0):
		return nil, errors.New("--suite names its scenarios and policies itself")
	case set("seeds") && (o.seeds < 1 || o.seeds > 10_000):
		return nil, fmt.Errorf("--seeds %d: want 1 to 10000", o.seeds)
	case set("hours") && !(o.hours > 0 && o.hours <= 24*366): //nolint:staticcheck // NaN is not positive either
		return nil, fmt.Errorf("--hours %g: want more than 0 and at most a year", o.hours)
	case set("rate") && !(o.rate > 0 && o.rate <= 100_000): //nolint:staticcheck // likewise
		return nil, fmt.Errorf("--rate %g: want more than 0 and at most 100000", o.rate)
	case o.jobs < 0:
		return nil, fmt.Errorf("--jobs %d: want 1 or more", o.jobs)
	}
	own, err := o.own()
	if err != nil {
		return nil, err
	}
	if o.suite != "" {
		plan := report.Standard(own)
		if o.suite == "short" {
			plan = report.Short(own)
		}
		s.plan = &plan
		o.seeds = max(o.seeds, 0)
		if o.seeds == 0 {
			o.seeds = plan.Seeds
		}
		s.options = plan.Options(o.seed, o.seeds)
	} else {
		if o.seeds == 0 {
			o.seeds = usualSeeds
		}
		plan := report.Plan{}
		if plan.Scenarios, err = chosenScenarios(args, own); err != nil {
			return nil, err
		}
		if plan.Policies, err = chosenPolicies(o.policies); err != nil {
			return nil, err
		}
		s.options = plan.Options(o.seed, o.seeds)
	}
	s.options.Parallel = o.jobs
	if err := o.alter(s.options.Scenarios); err != nil {
		return nil, err
	}
	if o.report != "" { // before hours of work rather than after
		if info, err := os.Stat(filepath.Dir(o.report)); err != nil || !info.IsDir() {
			return nil, fmt.Errorf("--report %s: there is no such folder", o.report)
		}
	}
	return s, nil
}

// commandLine is how to get the same again.
func (o *simulateOptions) commandLine(args []string) string {
	parts := append([]string{"headrace", "simulate"}, args...)
	add := func(name, value string, given bool) {
		if given {
			parts = append(parts, "--"+name, value)
		}
	}
	add("suite", o.suite, o.suite != "")
	add("policy", strings.Join(o.policies, ","), len(o.policies) > 0)
	add("seeds", strconv.Itoa(o.seeds), o.seeds != 0)
	add("seed", strconv.FormatUint(o.seed, 10), o.seed != 1)
	add("hours", fmt.Sprint(o.hours), o.hours != 0)
	add("rate", fmt.Sprint(o.rate), o.rate != 0)
	add("fleet", filepath.Base(o.fleet), o.fleet != "")
	add("trace", filepath.Base(o.trace), o.trace != "")
	for _, d := range o.deaths {
		add("deaths", filepath.Base(d), true)
	}
	return strings.Join(parts, " ")
}

// own is the fleet of --fleet, nil without one.
func (o *simulateOptions) own() (*sim.Scenario, error) {
	if o.fleet == "" {
		return nil, nil
	}
	return readFleet(o.fleet, os.LookupEnv)
}

// alter does to every scenario what flags say.
func (o *simulateOptions) alter(scenarios []sim.Scenario) error {
	var calls []sim.Call
	var spots []sim.Spot
	if o.trace != "" {
		var err error
		if calls, err = readFile(o.trace, sim.ReadCalls); err != nil {
			return err
		}
	}
	for _, name := range o.deaths {
		spot, err := readFile(name, sim.ReadSpot)
		if err != nil {
			return err
		}
		spots = append(spots, spot)
	}
	for i := range scenarios {
		s := &scenarios[i]
		if len(calls) > 0 {
			s.Load = sim.Load{Trace: calls} // at its own pace
			if o.hours == 0 {
				s.Hours = max(1.0/60, calls[len(calls)-1].At/3600)
			}
		}
		if o.rate > 0 {
			s.Load.PerSecond = o.rate
		}
		if len(spots) > 0 {
			s.Faults.Spot = spots
		}
		switch {
		case o.hours > 0 && len(s.Load.Trace) > 0:
			s.Hours = o.hours
		case o.hours > 0:
			*s = s.Busiest(o.hours)
		}
		if err := s.Validate(); err != nil {
			return err
		}
	}
	return nil
}

// readFile reads a file with a reader of its format; mistakes are named with their place.
func readFile[T any](name string, read func(io.Reader) (T, error)) (v T, err error) {
	f, err := os.Open(name)
	if err != nil {
		return v, err
	}
	defer func() { _ = f.Close() }()
	if v, err = read(f); err != nil {
		if le, ok := errors.AsType[*sim.LineError](err); ok {
			return v, fmt.Errorf("%s:%d: %w", name, le.Line, le.Err)
		}
		return v, fmt.Errorf("%s: %w", name, err)
	}
	return v, nil
}

func chosenScenarios(names []string, own *sim.Scenario) (list []sim.Scenario, err error) {
	if own != nil {
		if len(names) > 0 {
			return nil, errors.New("give --fleet or names of built-in scenarios, not both")
		}
		return []sim.Scenario{*own}, nil
	}
	if len(names) == 0 {
		names = []string{"S1"}
	}
	if slices.Equal(names, []string{"all"}) {
		return sim.Scenarios(), nil
	}
	for _, name := range names {
		s, ok := sim.ScenarioNamed(name)
		if !ok {
			return nil, fmt.Errorf("no scenario %q; headrace simulate --list names them", name)
		}
		if slices.ContainsFunc(list, func(l sim.Scenario) bool { return l.Name == name }) {
			return nil, fmt.Errorf("scenario %s is given twice", name)
		}
		list = append(list, s)
	}
	return list, nil
}

func chosenPolicies(names []string) (list []sim.Policy, err error) {
	if slices.Equal(names, []string{"all"}) {
		return sim.Policies(), nil
	}
	if len(names) == 0 {
		names = usualPolicies
	}
	for _, name := range names {
		p, ok := sim.PolicyNamed(name)
		if !ok {
			return nil, fmt.Errorf("--policy: no policy %q; headrace simulate --list names them", name)
		}
		if slices.ContainsFunc(list, func(l sim.Policy) bool { return l.Name == name }) {
			return nil, fmt.Errorf("--policy: %s is given twice", name)
		}
		list = append(list, p)
	}
	return list, nil
}

// run simulates and tells.
func (s *simulation) run(ctx context.Context) error {
	bar := newBar(s.errs)
	ran, all, besides := 0, 0, 0
	if s.plan != nil {
		besides = len(s.options.Seeds) // the experiments of each
	}
	progress := func(done, total int) {
		ran, all = done, total
		bar.show(done, total)
		if s.told != nil {
			s.told(done, total)
		}
	}
	s.options.Progress = func(done, total int) { progress(done, total+besides) }
	rep, err := sim.Suite(ctx, s.options)
	var measured report.Measured
	if err == nil && s.plan != nil {
		measured.Alarms, err = s.plan.Alarms(ctx, s.options.Seeds, s.options.Parallel, func() { progress(ran+1, all) })
	}
	bar.stop()
	switch {
	case errors.Is(err, context.Canceled):
		return s.interrupted(&rep, ran, all)
	case err != nil:
		return err
	}
	var claims []report.Claim
	if s.plan != nil {
		measured.Decision = s.decision()
		claims = s.plan.Judge(&rep, measured)
	}
	if s.reportFile != "" {
		if err := s.writeReport(&rep, claims); err != nil {
			return err
		}
	}
	if s.json {
		if err := writeSimulationJSON(s.out, &rep, claims); err != nil {
			return err
		}
	} else {
		width := screenWidth(s.out)
		text := cellsText(&rep, width)
		if s.plan != nil {
			text = scenariosText(&rep, width) + "\n" + claimsText(claims, s.plan.Name, len(s.options.Seeds), width)
		}
		if _, err := io.WriteString(s.out, text); err != nil {
			return err
		}
	}
	var missed []string
	for i := range claims {
		if claims[i].Verdict == report.Missed {
			missed = append(missed, claims[i].ID)
		}
	}
	if len(missed) > 0 {
		return &exitError{1, fmt.Errorf("targets missed: %s", strings.Join(missed, ", "))}
	}
	return nil
}

// interrupted tells what was finished. A suite judges nothing then.
func (s *simulation) interrupted(rep *sim.Report, ran, all int) error {
	var done []string
	for i := range rep.Cells {
		done = append(done, rep.Cells[i].Scenario+" under "+rep.Cells[i].Policy)
	}
	if s.json {
		if err := writeSimulationJSON(s.out, rep, nil); err != nil {
			return err
		}
	} else if len(done) > 0 {
		if _, err := io.WriteString(s.out, cellsText(rep, screenWidth(s.out))); err != nil {
			return err
		}
	}
	what := "nothing with all its seeds"
	if len(done) > 0 {
		what = strings.Join(done, ", ")
	}
	return &exitError{130, fmt.Errorf("interrupted after %d of %d runs; finished: %s", ran, all, what)}
}

// writeSimulationJSON writes the report; with claims, without what each single run was made of.
func writeSimulationJSON(w io.Writer, rep *sim.Report, claims []report.Claim) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if claims == nil {
		return e.Encode(rep)
	}
	brief := sim.Report{Seeds: rep.Seeds, Cells: slices.Clone(rep.Cells)}
	for i := range brief.Cells {
		c := &brief.Cells[i]
		c.Runs = slices.Clone(c.Runs)
		for k := range c.Runs {
			c.Runs[k].Hosts, c.Runs[k].Moments, c.Runs[k].Classes = nil, nil, nil
		}
	}
	return e.Encode(struct {
		Claims []report.Claim `json:"claims"`
		sim.Report
	}{claims, brief})
}

func (s *simulation) writeReport(rep *sim.Report, claims []report.Claim) (err error) {
	f, err := os.Create(s.reportFile)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	return report.Write(f, &report.Page{Report: rep, Scenarios: s.options.Scenarios, Claims: claims, Command: s.command, Version: versionText()})
}

// bar shows progress on a terminal, and nothing elsewhere.
type bar struct {
	writer  progress.Writer // nil where nothing is shown
	tracker *progress.Tracker
	done    chan struct{}
}

func newBar(w io.Writer) *bar {
	if !isTerminal(w) {
		return &bar{}
	}
	b := &bar{writer: progress.NewWriter(), tracker: &progress.Tracker{Message: "simulated runs"}, done: make(chan struct{})}
	b.writer.SetOutputWriter(w)
	b.writer.SetUpdateFrequency(200 * time.Millisecond)
	b.writer.SetTrackerLength(30)
	b.writer.SetStyle(progress.StyleBlocks)
	b.writer.Style().Visibility.ETA = true
	b.writer.Style().Visibility.Value = true
	b.writer.Style().Options.DoneString = "all done"
	b.writer.Style().Options.ErrorString = "stopped"
	b.writer.Style().Options.PercentFormat = "%3.0f%%"
	return b
}

// show tells that done of total runs are over. Calls come one after another.
func (b *bar) show(done, total int) {
	if b.writer == nil {
		return
	}
	if b.tracker.Total == 0 {
		b.tracker.Total = int64(total)
		b.writer.AppendTracker(b.tracker)
		go func() {
			defer close(b.done)
			b.writer.Render()
		}()
	}
	b.tracker.SetValue(int64(done))
}

// stop leaves the bar as it is.
func (b *bar) stop() {
	if b.writer == nil || b.tracker.Total == 0 {
		return
	}
	if b.tracker.Value() < b.tracker.Total {
		b.tracker.MarkAsErrored()
	}
	b.writer.Stop()
	<-b.done
}

// decisionTime is the median time that the router takes for a decision among 64 hosts and its settlement. A batch takes less than a tenth of what a
// busy machine lets a program run at a time, so that most know nothing of others' work.
func decisionTime() time.Duration {
	const hosts, batches, perBatch = 64, 501, 16
	r := router.New(router.Options{Now: time.Now, Seed: 1})
	var eps []endpoint.Endpoint
	now := time.Now()
	for i := range hosts {
		eps = append(eps, endpoint.Endpoint{
			ID: endpoint.ID(fmt.Sprintf("static:host-%d", i)), Provider: "static", BaseURL: fmt.Sprintf("http://127.0.0.1:%d", 10_000+i),
			Served: []endpoint.Served{{Name: "m"}}, State: endpoint.Ready, Tenure: endpoint.Interruptible,
			Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 0.5 + 0.01*float64(i), AsOf: now},
		})
	}
	r.Update(eps, []router.ModelRule{{Name: "m", Serves: []string{"m"}, SLO: router.SLO{TTFT: 2 * time.Second, TPS: 15, Confidence: 0.9}}})
	var times []time.Duration
	var l router.Lease
	for range batches {
		from := time.Now()
		for range perBatch {
			if err := r.Pick(&router.Request{Model: "m", PromptTokens: 430, MaxTokens: 512}, &l); err != nil {
				panic("BUG: 64 idle hosts and none can be picked: " + err.Error())
			}
			l.FirstContent(300 * time.Millisecond)
			l.Done(router.Result{Class: outcome.Success, OutputTokens: 230, Streamed: 8 * time.Second})
		}
		times = append(times, time.Since(from)/perBatch)
	}
	slices.Sort(times)
	return times[len(times)/2]
}
