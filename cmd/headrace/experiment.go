package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"headrace/gateway/experiments"
	"headrace/router/experiment"
	"headrace/router/experiment/report"
	"headrace/router/experiment/stats"
)

// experimentOptions are the flags of experiment and its subcommands.
type experimentOptions struct {
	config configFlags
	output string
	arm    string
	html   string
}

func experimentCommand() *cobra.Command {
	var o experimentOptions
	c := &cobra.Command{
		Use:   "experiment",
		Short: "See how experiments stand, and decide them",
		Long: `See how the experiments of a running gateway stand, and decide them, through its admin API. What is tried, on whom and within which
margins stands in the config (section experiments, docs/experiments.md); steps are taken, and harm is ended, without anybody's help.
Commands reach all replicas within a second.

Exit codes: 0 all is well, 1 no gateway answers, it has no such experiment or the command makes no sense in its state, 2 the command
line or the config is wrong.`,
		Example: `  headrace experiment
  headrace experiment show awq-canary
  headrace experiment report awq-canary --html awq-canary.html
  headrace experiment abort awq-canary`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.list(cmd) },
	}
	f := c.PersistentFlags()
	f.StringVarP(&o.config.file, "config", "c", "", "YAML file that names the admin address (default: headrace.yaml in the working directory, if there is one)")
	f.StringVar(&o.config.overrides.Admin, "admin", "", "address of the gateway's admin API (default: the config's, or 127.0.0.1:9090)")
	f.StringVarP(&o.output, "output", "o", "table", "table or json")
	if err := c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic("BUG: " + err.Error())
	}
	list := &cobra.Command{
		Use: "list", Short: "List the experiments and what their arms get", Example: "  headrace experiment list\n  headrace experiment list -o json", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.list(cmd) },
	}
	show := &cobra.Command{
		Use: "show NAME", Short: "Show what an experiment has found so far", Example: "  headrace experiment show awq-canary", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.one(cmd, http.MethodGet, args[0], "", nil) },
	}
	rep := &cobra.Command{
		Use: "report NAME", Short: "Tell all there is of an experiment, as text, JSON or a page with pictures", Args: cobra.ExactArgs(1),
		Long: `Tell all there is of an experiment: shares and units over time, each figure with its always-valid interval, hosts, money, decisions. With
--html write it as a page that needs nothing else.`,
		Example: "  headrace experiment report awq-canary\n  headrace experiment report awq-canary --html awq-canary.html\n  headrace experiment report awq-canary -o json",
		RunE:    func(cmd *cobra.Command, args []string) error { return o.report(cmd, args[0]) },
	}
	rep.Flags().StringVar(&o.html, "html", "", "file to write the page to")
	c.AddCommand(list, show, rep, experimentPowerCommand())
	for _, d := range []struct {
		command experiment.Command
		short   string
		long    string
	}{
		{experiment.Start, "Start an experiment before its time, or anew", "Start an experiment before its time, or anew when it has ended: from its first step, with nothing seen, and other units first."},
		{experiment.Pause, "Keep the shares as they are", "Keep the shares as they are until resume. Harm that is proven ends the experiment all the same."},
		{experiment.Resume, "Go on after a pause", "Go on after a pause, or after it was inconclusive; the step begins anew."},
		{experiment.Promote, "Give everything to an arm", "Give everything to an arm, whatever was seen, for as long as the experiment stays in the config."},
		{experiment.Abort, "Give everything to the control", "Give everything to the control at once, at all replicas. Requests that run end where they are."},
	} {
		sub := &cobra.Command{
			Use: string(d.command) + " NAME", Short: d.short, Long: d.long, Example: "  headrace experiment " + string(d.command) + " awq-canary", Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				body := map[string]string{}
				if o.arm != "" {
					body["arm"] = o.arm
				}
				return o.one(cmd, http.MethodPost, args[0], "/"+string(d.command), body)
			},
		}
		if d.command == experiment.Promote {
			sub.Flags().StringVar(&o.arm, "arm", "", "which arm (default: the only one that is left)")
		}
		c.AddCommand(sub)
	}
	for _, sub := range c.Commands() {
		sub.ValidArgsFunction = cobra.NoFileCompletions
		sub.Args = orExit2(sub.Args)
	}
	c.Args = orExit2(c.Args)
	return c
}

// orExit2 has what args refuses be a mistake of the command line's, and tells how it is written.
func orExit2(args cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if err := args(cmd, given); err != nil {
			return &exitError{2, fmt.Errorf("%w; write %s", err, strings.TrimSuffix(cmd.UseLine(), " [flags]"))}
		}
		return nil
	}
}

func (o *experimentOptions) api() (*adminAPI, error) {
	if o.output != "table" && o.output != "json" {
		return nil, &exitError{2, fmt.Errorf("--output %q: want table or json", o.output)}
	}
	return o.config.adminAPI()
}

// path is where the admin API has the experiment.
func experimentPath(name, below string) (string, error) {
	if strings.Trim(name, "/") == "" {
		return "", &exitError{2, errors.New("the experiment's name is empty")}
	}
	return "/admin/v1/experiments/" + url.PathEscape(name) + below, nil
}

func (o *experimentOptions) list(cmd *cobra.Command) error {
	a, err := o.api()
	if err != nil {
		return err
	}
	var answer struct {
		Experiments []experiments.View `json:"experiments"`
	}
	if err := a.call(cmd.Context(), http.MethodGet, "/admin/v1/experiments", nil, &answer); err != nil {
		return err
	}
	if o.output == "json" {
		return printJSON(cmd.OutOrStdout(), &answer)
	}
	if len(answer.Experiments) == 0 {
		_, err := io.WriteString(cmd.OutOrStdout(), "The config has no experiments. docs/experiments.md tells how to write one in eight lines.\n")
		return err
	}
	t := plainTable()
	t.AppendHeader(table.Row{"experiment", "model", "state", "step", "arm", "hosts", "share", "units", "requests", "failed", "elsewhere"})
	for i := range answer.Experiments {
		v := &answer.Experiments[i]
		for k := range v.Arms {
			head := table.Row{"", "", "", ""}
			if k == 0 {
				head = table.Row{v.Name, v.Model, stateWord(v), stepText(v)}
			}
			t.AppendRow(append(head, armRow(v, k)...))
		}
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), t.Render())
	return err
}

// stateWord is the state as people read it.
func stateWord(v *experiments.View) string {
	s := strings.ReplaceAll(string(v.State), "_", " ")
	if v.Passed && v.State == experiment.Running {
		s += ", passed"
	}
	return s
}

func stepText(v *experiments.View) string {
	switch {
	case len(v.Steps) == 0:
		return "no steps"
	case v.Step == 0:
		return fmt.Sprintf("none of %d", len(v.Steps))
	}
	return fmt.Sprintf("%d of %d", v.Step, len(v.Steps))
}

// armRow is an arm's name and figures.
func armRow(v *experiments.View, k int) table.Row {
	a := v.Arms[k]
	name := a.Name
	switch {
	case a.Control && name != "control":
		name += " (control)"
	case a.Dropped:
		name += " (ended)"
	}
	hosts := unknownText
	if a.Hosts != nil {
		hosts = strconv.Itoa(*a.Hosts)
	}
	row := table.Row{name, hosts, shareText(a.Share)}
	if v.Verdict == nil || k >= len(v.Verdict.Arms) {
		return append(row, unknownText, unknownText, unknownText, unknownText)
	}
	s := &v.Verdict.Arms[k]
	return append(row, s.Units, s.Requests, s.Failed, s.OutOfArm)
}

func shareText(share float64) string { return fmt.Sprintf("%.4g %%", 100*share) }

// one asks for an experiment, or changes it, and prints how it stands.
func (o *experimentOptions) one(cmd *cobra.Command, method, name, below string, body any) error {
	a, err := o.api()
	if err != nil {
		return err
	}
	path, err := experimentPath(name, below)
	if err != nil {
		return err
	}
	var answer struct {
		Experiment experiments.View `json:"experiment"`
		Shadow     *report.Shadow   `json:"shadow"`
	}
	if err := a.call(cmd.Context(), method, path, body, &answer); err != nil {
		return err
	}
	if o.output == "json" {
		return printJSON(cmd.OutOrStdout(), &answer)
	}
	_, err = io.WriteString(cmd.OutOrStdout(), experimentText(&answer.Experiment, time.Now())+shadowText(answer.Shadow))
	return err
}

// shadowText says what came of the copies of requests.
func shadowText(c *report.Shadow) string {
	if c == nil {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\nCopies to %s at this gateway: %d made, %d failed, %d not made for want of an idle host; %d tokens, $%.4f.\n", c.Arm, c.Copied, c.Failed, c.NoRoom, c.Output, c.USD)
	for _, l := range []struct {
		n, of int64
		what  string
	}{
		{c.SameFinish, c.Finished, "ended for the control's reason"},
		{c.SameText, c.Compared, "said the same at temperature 0"},
		{c.ValidJSON, c.JSON, "were JSON as they ought to be"},
	} {
		if l.of > 0 {
			fmt.Fprintf(&b, "  %d of %d %s\n", l.n, l.of, l.what)
		}
	}
	return b.String()
}

const decisionsShown = 8

// experimentText says how an experiment stands.
func experimentText(v *experiments.View, now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s on %s: %s, step %s, assigned by %s", v.Name, v.Model, stateWord(v), stepText(v), strings.Join(v.AssignBy, ", else "))
	if v.Traffic < 1 {
		fmt.Fprintf(&b, ", %s of units", shareText(v.Traffic))
	}
	if v.StartedAt != nil {
		fmt.Fprintf(&b, ", started %s ago", ageText(now.Sub(*v.StartedAt)))
	}
	b.WriteString("\n\n")
	t := plainTable()
	t.AppendHeader(table.Row{"arm", "hosts", "share", "units", "requests", "failed", "elsewhere"})
	for k := range v.Arms {
		t.AppendRow(armRow(v, k))
	}
	b.WriteString(t.Render() + "\n")
	if v.Verdict != nil {
		t := plainTable()
		t.AppendHeader(table.Row{"arm", "figure", "control", "arm has", "difference", "margin", "finding"})
		for k := range v.Verdict.Arms {
			a := &v.Verdict.Arms[k]
			for i := range a.Estimates {
				e := &a.Estimates[i]
				if e.Guard {
					t.AppendRow(table.Row{a.Name, e.Metric.String(), figureText(e.Metric, e.Control), figureText(e.Metric, e.Arm), differenceText(e), e.Metric.Amount(float64(e.Margin)), string(e.Finding)})
				}
			}
		}
		if t.Length() > 0 {
			b.WriteString("\n" + t.Render() + "\n")
		}
		for k := range v.Verdict.Arms {
			if a := &v.Verdict.Arms[k]; a.Reason != "" {
				fmt.Fprintf(&b, "\n%s: %s.\n", a.Name, strings.TrimSuffix(a.Reason, "."))
			}
		}
	}
	if v.Waits != "" {
		fmt.Fprintf(&b, "\nThe next step waits for %s.\n", v.Waits)
	}
	for _, s := range []string{v.Problem, v.Advice} {
		if s != "" {
			fmt.Fprintf(&b, "\n%s\n", s)
		}
	}
	if n := len(v.Decisions); n > 0 {
		b.WriteString("\nDecisions, the newest first:\n")
		for i := n - 1; i >= max(0, n-decisionsShown); i-- {
			d := &v.Decisions[i]
			what := d.What
			if d.Arm != "" {
				what += " (" + d.Arm + ")"
			}
			fmt.Fprintf(&b, "  %s  %s by %s: %s\n", d.At.Local().Format(time.DateTime), what, d.By, d.Why)
		}
	}
	return b.String()
}

func ageText(d time.Duration) string {
	if d >= time.Hour {
		return d.Round(time.Minute).String()
	}
	return d.Round(time.Second).String()
}

// figureText is a figure of requests in its own unit.
func figureText(m stats.Metric, f stats.Figure) string {
	v := float64(f)
	switch {
	case math.IsNaN(v):
		return unknownText
	case m == stats.TTFT:
		return time.Duration(v * float64(time.Second)).Round(time.Millisecond).String()
	case m == stats.TPS:
		return fmt.Sprintf("%.1f/s", v)
	case m == stats.USD:
		return fmt.Sprintf("$%.4g", v)
	case m == stats.Score:
		return fmt.Sprintf("%.3g", v)
	}
	return shareText(v)
}

// differenceText is the estimate with its interval.
func differenceText(e *stats.Estimate) string {
	if math.IsNaN(float64(e.Diff)) {
		return unknownText
	}
	s := e.Metric.Signed(float64(e.Diff))
	if !math.IsNaN(float64(e.Low)) {
		s += fmt.Sprintf(" (%s to %s)", e.Metric.Signed(float64(e.Low)), e.Metric.Signed(float64(e.High)))
	}
	return s
}

// report prints the report, or writes it as a page.
func (o *experimentOptions) report(cmd *cobra.Command, name string) error {
	a, err := o.api()
	if err != nil {
		return err
	}
	path, err := experimentPath(name, "/report")
	if err != nil {
		return err
	}
	var answer struct {
		Report report.Report `json:"report"`
	}
	if err := a.call(cmd.Context(), http.MethodGet, path, nil, &answer); err != nil {
		return err
	}
	if o.html != "" {
		var page bytes.Buffer
		if err := report.WriteHTML(&page, &answer.Report); err != nil {
			return &exitError{1, err}
		}
		if err := os.WriteFile(o.html, page.Bytes(), 0o600); err != nil {
			return &exitError{1, fmt.Errorf("write the page: %w", err)}
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "The report is in %s.\n", o.html)
		return err
	}
	if o.output == "json" {
		return printJSON(cmd.OutOrStdout(), &answer.Report)
	}
	return report.WriteText(cmd.OutOrStdout(), &answer.Report)
}
