package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"headrace/gateway/config"
	"headrace/router/endpoint"
)

func checkCommand() *cobra.Command {
	var f configFlags
	var ready, live bool
	var output string
	times := liveTimes{all: 30 * time.Second, quiet: 2 * time.Second}
	c := &cobra.Command{
		Use:   "check",
		Short: "Check the config, or a running gateway",
		Long: `Check the config and list the hosts it names; every problem is reported at once with its place in
the file. With --ready ask the running gateway's /readyz instead, as a container's health check does.

With --live ask the providers what the keys can see: endpoints, instances, models, price, state, and why each host is or is not
used. No worker is woken and no model is asked for tokens.

Exit codes: 0 all is well, 1 the gateway is not ready, an account does not answer or no host can be used, 2 the config or the
command line is wrong.`,
		Example: "  headrace check --config headrace.yaml\n  headrace check -c headrace.yaml -o json\n  RUNPOD_API_KEY=… VAST_API_KEY=… headrace check --live\n  headrace check --ready",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return &exitError{2, fmt.Errorf("--output %q: want table or json", output)}
			}
			cfg, err := f.load(cmd)
			if ready {
				return checkReady(cmd.Context(), &f, cfg, cmd.OutOrStdout())
			}
			if err != nil {
				return err
			}
			if live {
				return checkLive(cmd.Context(), cfg, cmd.OutOrStdout(), output, times)
			}
			return printConfig(cmd.OutOrStdout(), cfg, output)
		},
	}
	f.add(c)
	c.Flags().BoolVar(&ready, "ready", false, "ask the running gateway whether it is ready")
	c.Flags().BoolVar(&live, "live", false, "ask the providers what there is to use now, and say why each host is or is not used")
	c.Flags().DurationVar(&times.all, "wait", times.all, "with --live: how long to wait for answers")
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return c
}

// healthWithin is shorter than the 3 s that container engines give a health check, which so gets an answer in words.
const healthWithin = 2 * time.Second

// checkReady asks the gateway that runs with this config. One without hosts of its own (zero config), and one that goes on
// with the config before a bad one, still have an admin address.
func checkReady(ctx context.Context, f *configFlags, cfg *config.Config, out io.Writer) error {
	addr := "127.0.0.1:9090"
	switch env := os.Getenv(config.EnvAdmin); {
	case cfg != nil:
		addr = cfg.Admin
	case f.overrides.Admin != "":
		addr = f.overrides.Admin
	case env != "":
		addr = env
	}
	base, err := adminURL(addr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, healthWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/readyz", nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req) // ctx has the time
	if err != nil {
		return &exitError{1, fmt.Errorf("not ready: nothing answers at %s", addr)}
	}
	defer func() { _ = res.Body.Close() }()
	var body struct {
		Status string `json:"status"`
	}
	_ = json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&body) // the status code says it all
	if res.StatusCode != http.StatusOK {
		return &exitError{1, fmt.Errorf("not ready: %s", body.Status)}
	}
	_, err = fmt.Fprintln(out, "ready")
	return err
}

// hostRow is one host as `check` shows it.
type hostRow struct {
	ID     endpoint.ID `json:"id"`
	URL    string      `json:"url"`
	Models []string    `json:"models"`
	Price  string      `json:"price"`
	Tenure string      `json:"tenure"`
	Key    bool        `json:"has_api_key"`
}

func printConfig(out io.Writer, cfg *config.Config, output string) error {
	rows := []hostRow{}
	for _, ep := range cfg.StaticEndpoints(time.Now()) {
		r := hostRow{ID: ep.ID, URL: ep.BaseURL, Models: []string{}, Price: priceText(&ep.Price), Tenure: ep.Tenure.String(), Key: ep.APIKey != ""}
		for _, m := range ep.Served {
			r.Models = append(r.Models, m.Name)
		}
		rows = append(rows, r)
	}
	if output == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(map[string]any{"ok": true, "admin": cfg.Admin, "hosts": rows, "warnings": append([]string{}, warnings(cfg)...)})
	}
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.AppendHeader(table.Row{"host", "url", "models", "price", "tenure"})
	for _, r := range rows {
		models := strings.Join(r.Models, ", ")
		if models == "" {
			models = "(asked at start)"
		}
		t.AppendRow(table.Row{r.ID, r.URL, models, r.Price, r.Tenure})
	}
	for _, l := range cfg.Listen {
		scheme := "http"
		if l.TLS != nil {
			scheme = "https"
		}
		if _, err := fmt.Fprintf(out, "The config is good. Base URL for applications: %s://%s/v1\n", scheme, l.Address); err != nil {
			return err
		}
	}
	for _, w := range warnings(cfg) {
		if _, err := fmt.Fprintln(out, "Warning: "+w+"."); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(out, t.Render())
	return err
}

func priceText(p *endpoint.Price) string {
	switch p.Basis {
	case endpoint.PerHour:
		return fmt.Sprintf("$%.4g/h", p.USDPerHour)
	case endpoint.PerWorkerSecond:
		return fmt.Sprintf("$%.4g/h a worker", p.USDPerWorkerSecond*3600)
	case endpoint.PerToken:
		return fmt.Sprintf("$%.4g in, $%.4g out per Mtok", p.USDPerMTokIn, p.USDPerMTokOut)
	case endpoint.BasisUnknown:
	}
	return "unknown"
}

func schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the config file, for editors",
		Long: `Print the JSON Schema of the config file. With the YAML language server, editors complete and
check the file after this line at its top:

  # yaml-language-server: $schema=headrace.schema.json`,
		Example: "  headrace schema > headrace.schema.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(config.Schema())
			return err
		},
	}
}
