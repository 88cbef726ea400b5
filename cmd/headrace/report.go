package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"headrace/gateway/config"
	"headrace/gateway/ledger/books"
)

// reportOptions are the flags of report.
type reportOptions struct {
	config       configFlags
	output       string
	by, from     []string
	since, until string
	request      string
	bills        bool
}

func reportCommand() *cobra.Command {
	var o reportOptions
	c := &cobra.Command{
		Use:   "report",
		Short: "Say what requests used, cost and wasted, by key, model, host and more",
		Long: `Sum the ledger up: requests, tokens, dollars and what of them was wasted, of the last 24 hours or of --since to --until, whole
hours of UTC. --by tells lines apart by ` + dimWords() + `, or several of them.

Two costs, never mixed (docs/costs.md): "marginal" is what requests were expected to cost in addition to what is paid anyway, which
is what the router keeps low; "allocated" is their share of the bills: what they used of hosts, and of the hours in which those did
nothing. What nobody has used has a line of its own, (idle).

The table says below what its figures have in them and what not; with -o csv that goes to standard error, and JSON has it by name.

A running gateway is asked (--admin). --from reads others, and files, which no gateway need have open: several of them add up, as
those of replicas do. Where no gateway answers and no --from is given, the config's own ledger file is read.

Exit codes: 0 all is well, 1 nothing can be read, 2 the command line or the config is wrong.`,
		Example: `  headrace report
  headrace report --by model,provider --since 7d
  headrace report --by key,day --since 2026-11-01 --until 2026-12-01 -o csv > november.csv
  headrace report --from /var/lib/headrace/ledger.db --by host
  headrace report --from http://gw-0:9090,http://gw-1:9090
  headrace report --bills -o csv
  headrace report --request req_2vjvuxn2hcd6wq3a`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.report(cmd) },
	}
	f := c.Flags()
	f.StringVarP(&o.config.file, "config", "c", "", "YAML file that names the admin address and the ledger (default: headrace.yaml in the working directory, if there is one)")
	f.StringVar(&o.config.overrides.Admin, "admin", "", "address of the gateway's admin API (default: the config's, or 127.0.0.1:9090)")
	f.StringSliceVar(&o.by, "by", []string{"model", "provider"}, "what tells lines apart: "+dimWords()+"; several parted by commas")
	f.StringVar(&o.since, "since", "24h", "a while ago (24h, 7d), a day (2026-11-28) or a moment (2026-11-28T10:00) of UTC")
	f.StringVar(&o.until, "until", "now", "likewise")
	f.StringSliceVar(&o.from, "from", nil, "admin URLs and ledger files to add up")
	f.StringVar(&o.request, "request", "", "tell of this one request instead, all that is kept of it, as JSON")
	f.BoolVar(&o.bills, "bills", false, "tell of the newest bill of each account instead, against what the ledger has of the same hosts and time")
	f.StringVarP(&o.output, "output", "o", "table", "table, csv or json")
	for name, words := range map[string][]string{"by": dims(), "output": {"table", "csv", "json"}} {
		if err := c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic("BUG: " + err.Error())
		}
	}
	c.ValidArgsFunction = cobra.NoFileCompletions
	return c
}

func dims() (words []string) {
	for _, d := range books.Dims() {
		words = append(words, string(d))
	}
	return words
}

func dimWords() string {
	ds := dims()
	return strings.Join(ds[:len(ds)-1], ", ") + " or " + ds[len(ds)-1]
}

func (o *reportOptions) report(cmd *cobra.Command) error {
	if !slices.Contains([]string{"table", "csv", "json"}, o.output) {
		return &exitError{2, fmt.Errorf("--output %q: want table, csv or json", o.output)}
	}
	by, err := books.ParseDims(o.by)
	if err != nil {
		return &exitError{2, fmt.Errorf("--by: %w", err)}
	}
	now := time.Now()
	since, err := books.ParseTime(o.since, now, now)
	if err != nil {
		return &exitError{2, fmt.Errorf("--since: %w", err)}
	}
	until, err := books.ParseTime(o.until, now, now)
	if err != nil {
		return &exitError{2, fmt.Errorf("--until: %w", err)}
	}
	if !since.Before(until) {
		return &exitError{2, errors.New("--since is not before --until")}
	}
	if o.bills && (cmd.Flags().Changed("by") || o.request != "") {
		return &exitError{2, errors.New("--bills has one line an account: leave --by and --request out")}
	}
	if o.request != "" {
		return o.one(cmd.Context(), cmd.OutOrStdout())
	}
	p, list, err := o.periods(cmd.Context(), since, until)
	if err != nil {
		return err
	}
	r := p.Report(by, list)
	if o.bills {
		return reportBills(cmd.OutOrStdout(), o.output, r.Bills)
	}
	switch out := cmd.OutOrStdout(); o.output {
	case "json":
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	case "csv":
		if notes := strings.TrimLeft(reportNotes(&r), "\n"); notes != "" { // they belong to no line
			_, _ = io.WriteString(cmd.ErrOrStderr(), notes) // the figures matter
		}
		return reportCSV(out, &r)
	default:
		_, err := io.WriteString(out, reportText(&r))
		return err
	}
}

// one prints what a running gateway has of one request.
func (o *reportOptions) one(ctx context.Context, out io.Writer) error {
	api, err := o.config.adminAPI()
	if err != nil {
		return err
	}
	var answer json.RawMessage
	if err := api.get(ctx, "/admin/v1/spend/requests/"+url.PathEscape(o.request), nil, &answer); err != nil {
		return err
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(answer)
}

// periods reads every ledger that is asked for and adds them up.
func (o *reportOptions) periods(ctx context.Context, since, until time.Time) (books.Period, *books.ListPrice, error) {
	var list *books.ListPrice
	cfg, cfgErr := o.loadConfig()
	if cfgErr == nil {
		list = listPrice(cfg)
	}
	if len(o.from) == 0 {
		api, err := o.config.adminAPI()
		if err != nil {
			return books.Period{}, nil, err
		}
		p, err := remote(ctx, api, since, until)
		if err == nil || o.config.overrides.Admin != "" || cfgErr != nil || cfg.Ledger.Path == config.Off {
			return p, list, err
		}
		if _, serr := os.Stat(cfg.Ledger.Path); serr != nil {
			return p, list, err
		}
		p, err = local(cfg.Ledger.Path, since, until)
		return p, list, err
	}
	var ps []books.Period
	for _, from := range o.from {
		var p books.Period
		var err error
		if strings.HasPrefix(from, "http://") || strings.HasPrefix(from, "https://") {
			p, err = remote(ctx, adminAt(strings.TrimRight(from, "/")), since, until)
			p.Replicas = []string{from}
		} else {
			p, err = local(from, since, until)
		}
		if err != nil {
			return books.Period{}, nil, err
		}
		for i, other := range ps {
			if books.Same(&p, &other) {
				return books.Period{}, nil, &exitError{2, fmt.Errorf("--from: %s and %s are one ledger, whose requests would count twice: name it once", o.from[i], from)}
			}
		}
		ps = append(ps, p)
	}
	return books.Merge(ps...), list, nil
}

// loadConfig reads the config, whose hosts need not be there.
func (o *reportOptions) loadConfig() (*config.Config, error) {
	file := o.config.file
	if file == "" {
		if _, err := os.Stat(defaultFile); err == nil {
			file = defaultFile
		}
	}
	return config.Load(file, o.config.overrides, os.LookupEnv)
}

func remote(ctx context.Context, api *adminAPI, since, until time.Time) (p books.Period, err error) {
	// With fractions: an until that is rounded up to the next second would take the hour that begins at it along.
	q := url.Values{"since": {since.UTC().Format(time.RFC3339Nano)}, "until": {until.UTC().Format(time.RFC3339Nano)}}
	if err = api.get(ctx, "/admin/v1/spend/period", q, &p); err != nil {
		return p, err
	}
	return p, nil
}

func local(path string, since, until time.Time) (books.Period, error) {
	if _, err := os.Stat(path); err != nil {
		return books.Period{}, &exitError{1, fmt.Errorf("there is no ledger at %s: %w", path, err)}
	}
	p, err := books.Read(path, since, until)
	if err != nil {
		return p, &exitError{1, err}
	}
	return p, nil
}

// reportCSV writes one record a line, figures in full.
func reportCSV(out io.Writer, r *books.Report) error {
	w := csv.NewWriter(out)
	var head []string
	for _, d := range r.By {
		head = append(head, string(d))
	}
	for _, f := range r.Total.Figures() {
		head = append(head, f.Name)
	}
	if err := w.Write(head); err != nil {
		return err
	}
	for i := range r.Lines {
		l := &r.Lines[i]
		var rec []string
		for _, g := range l.Group {
			rec = append(rec, unformed(g))
		}
		for _, f := range l.Figures() {
			rec = append(rec, fieldOf(f.Value))
		}
		if err := w.Write(rec); err != nil {
			return err
		}
	}
	w.Flush()
	return w.Error()
}

// unformed is a name that spreadsheets do not take for a formula.
func unformed(name string) string {
	if name != "-" && strings.ContainsRune("=+-@\t\r", rune((name + " ")[0])) {
		return "'" + name
	}
	return name
}

func fieldOf(value any) string {
	switch v := value.(type) {
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		return exactly(v)
	}
	return ""
}

func exactly(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
