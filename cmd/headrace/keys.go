package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"headrace/gateway/admission"
	"headrace/gateway/config"
	"headrace/telemetry"
)

// keysOf returns the keys of the config as the gate knows them.
func keysOf(c *config.Config) []admission.Key {
	keys := make([]admission.Key, 0, len(c.Keys))
	for i := range c.Keys {
		k := &c.Keys[i]
		hash, ok := admission.ParseHash(k.SHA256)
		if !ok {
			hash = admission.HashOf(k.Key.Reveal())
		}
		keys = append(keys, admission.Key{
			Name: k.Name, Hash: hash, Note: k.Note, Expires: k.ExpiresAt, Off: k.Disabled,
			Models: k.Models, Policies: k.Policies, Experiments: k.Experiments, Trust: k.Trust, Regions: k.Regions, Passthrough: k.Passthrough,
			RPM: int64(k.RPM), TPM: int64(k.TPM), Concurrency: int64(k.Concurrency),
			Budget:   admission.Budget{USDPerDay: k.Budget.USDPerDay, USDPerMonth: k.Budget.USDPerMonth, USDTotal: k.Budget.USDTotal, Soft: k.Budget.Soft},
			Priority: k.Priority, Weight: k.Weight, Admin: k.Admin,
		})
	}
	return keys
}

func (a *app) keyOptions(c *config.Config) admission.Options {
	o := admission.Options{Log: a.log, Store: a.store, Strict: c.State.BudgetOnLoss == "refuse"}
	if a.redis != nil {
		o.Shared = a.redis
	}
	return o
}

// keyFigures tells what became of requests by their keys.
func (a *app) keyFigures() telemetry.Keys {
	var k telemetry.Keys
	a.keys.Refusals(func(reason string, n int64) {
		k.Refused = append(k.Refused, telemetry.KeyRefusals{Reason: reason, N: n})
	})
	k.Warned = a.keys.Warned()
	k.Answered, k.Alone = a.keys.Waits()
	return k
}

// keysKnown is how long a start waits for the store's keys at most.
const keysKnown = 2 * time.Second

func (a *app) startKeys(ctx context.Context) {
	c, cancel := context.WithTimeout(ctx, keysKnown)
	defer cancel()
	a.keys.Start(c)
}

// keysOptions are the flags of keys and of what stands below it.
type keysOptions struct {
	config configFlags
	output string
	all    bool
	grace  time.Duration
	spec   keyFlags
}

// keyFlags are the flags that say what a key allows.
type keyFlags struct {
	note, expires, trust, priority         string
	models, policies, experiments, regions []string
	rpm, tpm, concurrency                  int64
	day, month, total, soft, weight        float64
	passthrough, admin, disabled           bool
}

func (k *keyFlags) add(f *pflag.FlagSet) {
	f.StringVar(&k.note, "note", "", "your own words")
	f.StringVar(&k.expires, "expires", "", "when it stops to work: 2027-06-30, 2027-06-30T18:00:00Z, or a time from now such as 90d or 12h; \"never\"")
	f.StringSliceVar(&k.models, "models", nil, "models it may name, parted by commas, exact or with * at the end (default, and *: all)")
	f.StringSliceVar(&k.policies, "policies", nil, "policies it may ask for (default: all)")
	f.StringSliceVar(&k.experiments, "experiments", nil, "experiments whose arm it may choose (default: none)")
	f.StringVar(&k.trust, "trust", "", "community, verified, datacenter or secure: least trust of its hosts (default: any)")
	f.StringSliceVar(&k.regions, "regions", nil, "regions of its hosts, such as EU,US-KS-2 (default: anywhere)")
	f.Int64Var(&k.rpm, "rpm", 0, "requests a minute (0: no limit, as for all below)")
	f.Int64Var(&k.tpm, "tpm", 0, "tokens a minute, of prompts and answers together")
	f.Int64Var(&k.concurrency, "concurrency", 0, "requests at once")
	f.Float64Var(&k.day, "usd-per-day", 0, "budget a day (UTC), US dollars")
	f.Float64Var(&k.month, "usd-per-month", 0, "budget a month (UTC), US dollars")
	f.Float64Var(&k.total, "usd-total", 0, "budget in all, US dollars")
	f.Float64Var(&k.soft, "soft", admission.DefaultSoft, "share of a budget beyond which the log warns")
	f.StringVar(&k.priority, "priority", "", "interactive or batch (default: interactive)")
	f.Float64Var(&k.weight, "weight", 1, "share against other keys while requests wait for a host")
	f.BoolVar(&k.passthrough, "passthrough", false, "may use paths that are passed on unread")
	f.BoolVar(&k.admin, "admin-right", false, "opens the admin API, which asks for such a key from then on")
	f.BoolVar(&k.disabled, "disabled", false, "is switched off for the time being")
}

// changed is what the command line says of a key, as the admin API takes it.
func (k *keyFlags) changed(f *pflag.FlagSet, now time.Time) (map[string]any, error) {
	out, budget := map[string]any{}, map[string]any{}
	expires, err := expiry(k.expires, now)
	if err != nil {
		return nil, err
	}
	for _, v := range []struct {
		flag, field string
		value       any
		into        map[string]any
	}{
		{"note", "note", k.note, out},
		{"expires", "expires", expires, out},
		{"models", "models", k.models, out},
		{"policies", "policies", k.policies, out},
		{"experiments", "experiments", k.experiments, out},
		{"trust", "trust", k.trust, out},
		{"regions", "regions", k.regions, out},
		{"rpm", "rpm", k.rpm, out},
		{"tpm", "tpm", k.tpm, out},
		{"concurrency", "concurrency", k.concurrency, out},
		{"usd-per-day", "usd_per_day", k.day, budget},
		{"usd-per-month", "usd_per_month", k.month, budget},
		{"usd-total", "usd_total", k.total, budget},
		{"soft", "soft", k.soft, budget},
		{"priority", "priority", k.priority, out},
		{"weight", "weight", k.weight, out},
		{"passthrough", "passthrough", k.passthrough, out},
		{"admin-right", "admin", k.admin, out},
		{"disabled", "disabled", k.disabled, out},
	} {
		if f.Changed(v.flag) {
			v.into[v.field] = v.value
		}
	}
	if len(budget) > 0 {
		out["budget"] = budget
	}
	return out, nil
}

// expiry reads --expires, which may be a time from now.
func expiry(s string, now time.Time) (string, error) {
	if s == "" || s == "never" {
		return "", nil
	}
	if _, ok := admission.ParseExpiry(s); ok {
		return s, nil
	}
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		d, err = time.ParseDuration(days + "h")
		d *= 24
	}
	if err != nil || d <= 0 {
		return "", &exitError{2, fmt.Errorf("--expires %q: want a date (2027-06-30), a time (2027-06-30T18:00:00Z), a time from now (90d, 12h) or never", s)}
	}
	return now.Add(d).UTC().Format(time.RFC3339), nil
}

func keysCommand() *cobra.Command {
	var o keysOptions
	c := &cobra.Command{
		Use:   "keys",
		Short: "Make, list, rotate and revoke callers' keys",
		Long: `Make, list, rotate and revoke the keys by which callers are known to a running gateway, through its admin API. A key is shown
once, when it is made: the gateway keeps its hash only. Changes take effect on all replicas within a second.

Keys that stand in the config are listed as well, and changed there. Keys are named by their name, their ID, or the first
11 characters of the key. Where the admin API asks for a key, HEADRACE_ADMIN_KEY has it.

Exit codes: 0 all is well, 1 no gateway answers or it has no such key, 2 the command line or the config is wrong.`,
		Example: `  headrace keys create search --models 'llama-*' --rpm 600 --usd-per-day 20
  headrace keys
  headrace keys rotate search --grace 1h
  headrace keys revoke search`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.ask(cmd, http.MethodGet, "", nil, o.listText)
		},
	}
	list := &cobra.Command{
		Use: "list", Short: "List the keys, and what they have spent", Example: "  headrace keys list\n  headrace keys list --all -o json", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.ask(cmd, http.MethodGet, "", nil, o.listText)
		},
	}
	list.Flags().BoolVar(&o.all, "all", false, "those that are revoked too")
	create := &cobra.Command{
		Use: "create NAME", Short: "Make a key, and show it once", Args: cobra.ExactArgs(1),
		Example: "  headrace keys create search --models 'llama-*' --rpm 600 --tpm 200000 --usd-per-day 20\n  KEY=$(headrace keys create nightly --priority batch -o json | jq -r .secret)",
		RunE: func(cmd *cobra.Command, args []string) error {
			body, err := o.spec.changed(cmd.Flags(), time.Now())
			if err != nil {
				return err
			}
			body["name"] = args[0]
			return o.ask(cmd, http.MethodPost, "", body, madeText)
		},
	}
	o.spec.add(create.Flags())
	update := &cobra.Command{
		Use: "update NAME", Short: "Change what a key allows", Args: cobra.ExactArgs(1),
		Example: "  headrace keys update search --rpm 1200\n  headrace keys update search --disabled",
		RunE: func(cmd *cobra.Command, args []string) error {
			body, err := o.spec.changed(cmd.Flags(), time.Now())
			if err != nil {
				return err
			}
			if len(body) == 0 {
				return &exitError{2, errors.New("nothing to change: name what is to be different, such as --rpm 1200")}
			}
			return o.ask(cmd, http.MethodPatch, "/"+url.PathEscape(args[0]), body, oneText)
		},
	}
	o.spec.add(update.Flags())
	show := &cobra.Command{
		Use: "show NAME", Short: "Show what a key allows and has used", Args: cobra.ExactArgs(1), Example: "  headrace keys show search",
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.ask(cmd, http.MethodGet, "/"+url.PathEscape(args[0]), nil, oneText)
		},
	}
	rotate := &cobra.Command{
		Use: "rotate NAME", Short: "Give a key another secret, and show it once", Args: cobra.ExactArgs(1),
		Example: "  headrace keys rotate search\n  headrace keys rotate search --grace 0",
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.ask(cmd, http.MethodPost, "/"+url.PathEscape(args[0])+"/rotate", map[string]string{"grace": o.grace.String()}, madeText)
		},
	}
	rotate.Flags().DurationVar(&o.grace, "grace", 24*time.Hour, "how long the old secret is good beside the new one")
	revoke := &cobra.Command{
		Use: "revoke NAME", Short: "End a key for good", Args: cobra.ExactArgs(1), Example: "  headrace keys revoke search",
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.ask(cmd, http.MethodPost, "/"+url.PathEscape(args[0])+"/revoke", nil, oneText)
		},
	}
	fresh := &cobra.Command{
		Use: "new", Short: "Print a key and its hash for a config, asking no gateway", Args: cobra.NoArgs, Example: "  headrace keys new\n  headrace keys new -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.checkOutput(); err != nil {
				return err
			}
			key, hash := admission.NewKey()
			if o.output == "json" {
				return printJSON(cmd.OutOrStdout(), map[string]string{"key": key, "sha256": hash.String()})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "key:    %s\nsha256: %s\n", key, hash)
			return err
		},
	}
	f := c.PersistentFlags()
	f.StringVarP(&o.config.file, "config", "c", "", "YAML file that names the admin address (default: headrace.yaml in the working directory, if there is one)")
	f.StringVar(&o.config.overrides.Admin, "admin", "", "address of the gateway's admin API (default: the config's, or 127.0.0.1:9090)")
	f.StringVarP(&o.output, "output", "o", "table", "table or json")
	complete := func(c *cobra.Command, words map[string][]string) {
		for name, list := range words {
			if err := c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp)); err != nil {
				panic("BUG: " + err.Error())
			}
		}
	}
	complete(c, map[string][]string{"output": {"table", "json"}})
	rights := map[string][]string{"trust": {"community", "verified", "datacenter", "secure"}, "priority": {"interactive", "batch"}, "policies": policyWords()}
	complete(create, rights)
	complete(update, rights)
	for _, sub := range []*cobra.Command{list, create, update, show, rotate, revoke, fresh} {
		sub.ValidArgsFunction = cobra.NoFileCompletions
		c.AddCommand(sub)
	}
	return c
}

func (o *keysOptions) checkOutput() error {
	if o.output != "table" && o.output != "json" {
		return &exitError{2, fmt.Errorf("--output %q: want table or json", o.output)}
	}
	return nil
}

func printJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// ask asks the gateway, and prints its answer: as it came, or as text makes it.
func (o *keysOptions) ask(cmd *cobra.Command, method, path string, body any, text func(answer []byte) (string, error)) error {
	if err := o.checkOutput(); err != nil {
		return err
	}
	if path != "" && strings.Trim(path, "/") == "" {
		return &exitError{2, errors.New("the key's name is empty")}
	}
	api, err := o.config.adminAPI()
	if err != nil {
		return err
	}
	var answer json.RawMessage
	if err := api.call(cmd.Context(), method, "/admin/v1/keys"+path, body, &answer); err != nil {
		return err
	}
	if o.output == "json" {
		return printJSON(cmd.OutOrStdout(), answer)
	}
	s, err := text(answer)
	if err != nil {
		return &exitError{1, fmt.Errorf("what answers at %s is not the admin API of this version: %w", api.address, err)}
	}
	_, err = io.WriteString(cmd.OutOrStdout(), s)
	return err
}

func (o *keysOptions) listText(answer []byte) (string, error) {
	var list struct {
		Keys     []admission.View `json:"keys"`
		Required bool             `json:"required"`
	}
	if err := json.Unmarshal(answer, &list); err != nil {
		return "", err
	}
	t := plainTable()
	t.AppendHeader(table.Row{"key", "id", "from", "state", "models", "limits", "today", "month", "budget left"})
	shown, revoked := 0, 0
	for i := range list.Keys {
		v := &list.Keys[i]
		if v.State == "revoked" && !o.all {
			revoked++
			continue
		}
		shown++
		left := unknownText
		if v.BudgetLeft != nil {
			left = fmt.Sprintf("$%.2f", *v.BudgetLeft)
		}
		models := "all"
		if len(v.Models) > 0 {
			models = strings.Join(v.Models, " ")
		}
		t.AppendRow(table.Row{v.Name, v.ID, v.Source, v.State, models, limitsText(&v.Key), fmt.Sprintf("$%.4f", v.SpentToday), fmt.Sprintf("$%.4f", v.SpentMonth), left})
	}
	var b strings.Builder
	if shown > 0 {
		b.WriteString(t.Render() + "\n")
	}
	switch {
	case shown == 0 && !list.Required:
		b.WriteString("There are no keys, and callers need none. headrace keys create NAME makes the first; from then on everybody needs one.\n")
	case shown == 0:
		b.WriteString("There are no keys, so nobody is let in. headrace keys create NAME makes one.\n")
	}
	if revoked > 0 {
		fmt.Fprintf(&b, "%s not shown: --all shows those that are revoked.\n", count(int64(revoked), "key"))
	}
	return b.String(), nil
}

// limitsText is what a key is limited to, in a cell of a table.
func limitsText(k *admission.Key) string {
	var parts []string
	for _, l := range []struct {
		n    int64
		what string
	}{{k.RPM, "rpm"}, {k.TPM, "tpm"}, {k.Concurrency, "at once"}} {
		if l.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", l.n, l.what))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

type keyAnswer struct {
	Key    admission.View `json:"key"`
	Secret string         `json:"secret"`
}

func madeText(answer []byte) (string, error) {
	var a keyAnswer
	if err := json.Unmarshal(answer, &a); err != nil {
		return "", err
	}
	s := a.Secret + "\n\nThis is the key " + a.Key.Name + ". It is shown this once: only its hash is kept.\n"
	if !a.Key.OldEnds.IsZero() {
		s += "The one before is good until " + a.Key.OldEnds.Format(time.RFC3339) + ".\n"
	}
	return s, nil
}

func oneText(answer []byte) (string, error) {
	var a keyAnswer
	if err := json.Unmarshal(answer, &a); err != nil {
		return "", err
	}
	v := &a.Key
	t := plainTable()
	row := func(what string, value any) { t.AppendRow(table.Row{what, value}) }
	list := func(what string, items []string, none string) {
		if len(items) == 0 {
			row(what, none)
			return
		}
		row(what, strings.Join(items, ", "))
	}
	when := func(what string, at time.Time) {
		if !at.IsZero() {
			row(what, at.Format(time.RFC3339))
		}
	}
	t.AppendHeader(table.Row{"key " + v.Name, v.State})
	row("id", v.ID)
	if v.Source == admission.FromStore {
		row("begins with", admission.Prefix+v.ID)
	}
	row("from", v.Source)
	if v.Note != "" {
		row("note", v.Note)
	}
	when("created", v.Created)
	when("rotated", v.Rotated)
	when("old secret ends", v.OldEnds)
	when("expires", v.Expires)
	when("revoked", v.Revoked)
	list("models", v.Models, "all")
	list("policies", v.Policies, "all")
	list("experiments", v.Experiments, "none")
	if v.Trust != "" {
		row("trust", v.Trust)
	}
	list("regions", v.Regions, "anywhere")
	for _, right := range []struct {
		name string
		has  bool
	}{{"passthrough", v.Passthrough}, {"admin", v.Admin}} {
		if right.has {
			row(right.name, "yes")
		}
	}
	row("limits", limitsText(&v.Key))
	if v.RequestsLeft != nil {
		row("requests left", *v.RequestsLeft)
	}
	if v.TokensLeft != nil {
		row("tokens left", *v.TokensLeft)
	}
	row("in flight", v.Running)
	for _, b := range []struct {
		what         string
		spent, limit float64
	}{{"today", v.SpentToday, v.Budget.USDPerDay}, {"this month", v.SpentMonth, v.Budget.USDPerMonth}, {"in all", v.SpentTotal, v.Budget.USDTotal}} {
		s := fmt.Sprintf("$%.6f", b.spent)
		if b.limit > 0 {
			s += fmt.Sprintf(" of $%.2f", b.limit)
		}
		row("spent "+b.what, s)
	}
	return t.Render() + "\n", nil
}
