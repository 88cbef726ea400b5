package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"headrace/gateway/config"
	"headrace/providers/api"
	"headrace/providers/static"
	"headrace/router"
	"headrace/router/endpoint"
)

// liveReport is what check --live found.
type liveReport struct {
	Accounts []liveAccount `json:"accounts"`
	Hosts    []liveHost    `json:"hosts"`
	Skipped  []liveSkipped `json:"skipped"`
	Warnings []string      `json:"warnings"`

	exposed map[string][]string // ids of strangers' machines, by how they are reached
}

// liveAccount is one source of hosts.
type liveAccount struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Says   string `json:"says"`
	Hosts  int    `json:"hosts"`
	Calls  int64  `json:"api_calls"`
	status api.Status
}

// liveHost is one host and whether requests would go there.
type liveHost struct {
	ID        endpoint.ID `json:"id"`
	Models    []string    `json:"models"`
	GPU       string      `json:"gpu,omitempty"`
	Price     string      `json:"price"`
	Source    string      `json:"price_source,omitempty"`
	State     string      `json:"state"`
	Routable  bool        `json:"routable"`
	Why       string      `json:"why"`
	Trust     string      `json:"trust"`
	Encrypted bool        `json:"encrypted"`
	Region    string      `json:"region,omitempty"`
	Dialect   string      `json:"dialect"`
}

type liveSkipped struct {
	Account string `json:"account"`
	api.Skipped
}

// liveTimes bound how long an account is listened to: until nothing has changed for quiet, at most for all.
type liveTimes struct{ all, quiet time.Duration }

// checkLive asks every provider what it offers now, without sending a request to any model.
func checkLive(ctx context.Context, cfg *config.Config, out io.Writer, output string, times liveTimes) error {
	ctx, cancel := context.WithTimeout(ctx, times.all)
	defer cancel()
	quiet := slog.New(slog.DiscardHandler)
	sources := newClouds(cfg, nil, quiet).all()
	if len(cfg.Providers.Static) > 0 {
		sources = append(sources, account{"static", "static", static.New(cfg.StaticEndpoints(time.Now()), static.Options{Log: quiet}), nil})
	}
	type found struct {
		account
		eps []endpoint.Endpoint
		ok  bool
	}
	results := make(chan found)
	for _, a := range sources {
		go func() {
			eps, ok := hear(ctx, a, times.quiet)
			results <- found{a, eps, ok}
		}()
	}
	rep := &liveReport{Accounts: []liveAccount{}, Hosts: []liveHost{}, Skipped: []liveSkipped{}, Warnings: []string{}, exposed: map[string][]string{}}
	for range sources {
		r := <-results
		rep.add(r.account, r.eps, r.ok)
	}
	slices.SortFunc(rep.Accounts, func(a, b liveAccount) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(rep.Hosts, func(a, b liveHost) int { return strings.Compare(string(a.ID), string(b.ID)) })
	rep.warn()
	if err := rep.print(out, output); err != nil {
		return err
	}
	return rep.verdict()
}

// hear runs one source until it has said all, and returns what it said last.
func hear(ctx context.Context, a account, quiet time.Duration) (eps []endpoint.Endpoint, ok bool) {
	ctx, cancel := context.WithCancel(ctx)
	out, done := make(chan []endpoint.Endpoint), make(chan struct{})
	go func() {
		defer close(done)
		_ = a.Run(ctx, out) // ends with ctx
	}()
	defer func() { cancel(); <-done }()
	var still *time.Timer
	var stillC <-chan time.Time
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case eps = <-out:
			ok = true
			if still != nil {
				still.Stop()
			}
			still = time.NewTimer(quiet)
			stillC = still.C
		case <-look.C: // a refused key is not worth waiting for
			if !ok && a.status != nil && a.status().Failing >= enough(a.name) {
				return nil, false
			}
		case <-stillC:
			if !slices.ContainsFunc(eps, func(ep endpoint.Endpoint) bool { return ep.State == endpoint.Starting && ep.Provider == "vast" }) {
				return eps, ok
			}
			stillC = nil // instances that are being looked at: they have the rest of the time
		case <-ctx.Done():
			return eps, ok
		}
	}
}

// enough is after how many failed polls nothing is waited for. RunPod's adapter asks once for each of its polls, and again 1 and 2 s
// later; Vast.ai's have asked three times by then.
func enough(account string) int {
	if account == "runpod" {
		return 3
	}
	return 1
}

func (r *liveReport) add(a account, eps []endpoint.Endpoint, ok bool) {
	acc := liveAccount{Name: a.name, OK: ok, Hosts: len(eps)}
	if a.status != nil {
		acc.status = a.status()
		for _, c := range acc.status.Calls {
			acc.Calls += c.Calls
		}
		for _, s := range acc.status.Skipped {
			r.Skipped = append(r.Skipped, liveSkipped{a.name, s})
		}
		if skew := acc.status.ClockSkew.Abs(); skew > time.Minute {
			r.Warnings = append(r.Warnings, fmt.Sprintf("%s: its clock and this machine's differ by %s", a.name, skew.Round(time.Second)))
		}
	}
	switch {
	case ok && len(eps) == 0:
		acc.Says = "answers, and has nothing that can be used"
	case ok:
		acc.Says = "answers"
	case acc.status.LastError != "":
		acc.Says = acc.status.LastError
	default:
		acc.Says = "has not answered in time"
	}
	r.Accounts = append(r.Accounts, acc)
	for i := range eps {
		ep := &eps[i]
		r.Hosts = append(r.Hosts, liveHostOf(ep))
		if ep.Provider != "static" && !ep.Encrypted() && ep.Trust < endpoint.TrustSecure {
			r.exposed[way(ep)] = append(r.exposed[way(ep)], string(ep.ID))
		}
	}
}

// warn says which hosts are strangers' machines that are reached without TLS that proves anything.
func (r *liveReport) warn() {
	for how, ids := range r.exposed {
		slices.Sort(ids)
		list := strings.Join(ids[:min(len(ids), 10)], ", ")
		if more := len(ids) - 10; more > 0 {
			list += fmt.Sprintf(" and %d more", more)
		}
		r.Warnings = append(r.Warnings, fmt.Sprintf("strangers' machines are reached by %s: their owners, and anybody on the way, can read the prompts sent to %s. "+
			"models.NAME.require: {encrypted: true, trust: datacenter} keeps a model's prompts from such hosts", how, list))
	}
	slices.Sort(r.Warnings)
}

// way says how requests travel to a host.
func way(ep *endpoint.Endpoint) string {
	switch {
	case !strings.HasPrefix(ep.BaseURL, "https://"):
		return "plain HTTP"
	case ep.TLS.InsecureSkipVerify:
		return "TLS with any certificate"
	default:
		return "TLS"
	}
}

func liveHostOf(ep *endpoint.Endpoint) liveHost {
	h := liveHost{
		ID: ep.ID, Models: []string{}, GPU: ep.Hardware.GPU, Price: priceText(&ep.Price), Source: ep.Price.Source, State: ep.State.String(),
		Routable: router.Usable(ep) && len(ep.Served) > 0, Why: ep.StateReason, Trust: ep.Trust.String(), Encrypted: ep.Encrypted(), Region: ep.Region,
		Dialect: ep.Dialect.String(),
	}
	if n := ep.Hardware.GPUCount; n > 1 && h.GPU != "" {
		h.GPU = fmt.Sprintf("%dx %s", n, h.GPU)
	}
	for _, m := range ep.Served {
		if m.Unnamed {
			h.Models = append(h.Models, m.Name+" (its own name: the model's is learned from its first answer)")
		} else {
			h.Models = append(h.Models, m.Name)
		}
	}
	switch {
	case h.Routable && h.Why != "":
		h.Why = "requests go there; " + h.Why
	case h.Routable:
		h.Why = "requests go there"
	case h.Why == "" && len(ep.Served) == 0:
		h.Why = "it has not told which models it serves"
	case h.Why == "":
		h.Why = "it is " + h.State
	}
	return h
}

// verdict is the exit code: 1 when an account did not answer, or no host can be used.
func (r *liveReport) verdict() error {
	for _, a := range r.Accounts {
		if !a.OK {
			return &exitError{1, fmt.Errorf("the account %q does not answer as it should", a.Name)}
		}
	}
	if !slices.ContainsFunc(r.Hosts, func(h liveHost) bool { return h.Routable }) {
		return &exitError{1, errors.New("no host can be used now")}
	}
	return nil
}

func (r *liveReport) print(out io.Writer, output string) error {
	if output == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	var b strings.Builder
	for _, a := range r.Accounts {
		fmt.Fprintf(&b, "%s: %s", a.Name, a.Says)
		if a.OK {
			fmt.Fprintf(&b, " (%d hosts, %d API calls)", a.Hosts, a.Calls)
		}
		b.WriteByte('\n')
	}
	if len(r.Hosts) > 0 {
		t := table.NewWriter()
		t.SetStyle(table.StyleLight)
		t.AppendHeader(table.Row{"host", "models", "gpu", "price", "state", "use", "trust", "region", "why"})
		t.SetColumnConfigs([]table.ColumnConfig{
			{Name: "models", WidthMax: 36, WidthMaxEnforcer: text.WrapHard}, {Name: "why", WidthMax: 44, WidthMaxEnforcer: text.WrapSoft}, {Name: "price", WidthMax: 24},
		})
		for _, h := range r.Hosts {
			use := "no"
			if h.Routable {
				use = "yes"
			}
			trust := h.Trust
			if h.Encrypted {
				trust += ", TLS"
			}
			t.AppendRow(table.Row{h.ID, strings.Join(h.Models, "\n"), h.GPU, h.Price, h.State, use, trust, h.Region, h.Why})
		}
		b.WriteString(t.Render() + "\n")
	}
	if len(r.Skipped) > 0 {
		b.WriteString("Left out:\n")
		for _, s := range r.Skipped {
			fmt.Fprintf(&b, "  %s %s %s: %s\n", s.Account, s.ID, s.Name, s.Why)
		}
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(&b, "Warning: %s.\n", w)
	}
	_, err := io.WriteString(out, b.String())
	return err
}
