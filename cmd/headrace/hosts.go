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

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"headrace/router"
)

// hostsOptions are the flags of hosts and of what stands below it.
type hostsOptions struct {
	config configFlags
	output string
	move   bool
}

func hostsCommand() *cobra.Command {
	var o hostsOptions
	c := &cobra.Command{
		Use:   "hosts",
		Short: "List the hosts of a running gateway, or drain one",
		Long: `List the hosts of a running gateway with their states and what they are doing.

"hosts drain ID" keeps new requests from a host; what runs there finishes, or with --move goes on elsewhere where it can.
"hosts undrain ID" lets requests in again. A drain survives reloads and whatever the host's provider says of it, but not a
restart of the gateway, and concerns the one replica that is asked.

Exit codes: 0 all is well, 1 no gateway answers or it has no such host, 2 the command line or the config is wrong.`,
		Example: "  headrace hosts\n  headrace hosts drain vast:48738927 --move\n  headrace hosts undrain vast:48738927\n  headrace hosts -o json --admin 127.0.0.1:9090",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.ask(cmd.Context(), http.MethodGet, "", nil, cmd.OutOrStdout())
		},
	}
	drain := &cobra.Command{
		Use:     "drain ID",
		Short:   "Keep new requests from a host",
		Example: "  headrace hosts drain static:lab\n  headrace hosts drain vast:48738927 --move",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.ask(cmd.Context(), http.MethodPost, args[0], map[string]bool{"move": o.move}, cmd.OutOrStdout())
		},
	}
	drain.Flags().BoolVar(&o.move, "move", false, "have what runs there go on elsewhere, where it can")
	undrain := &cobra.Command{
		Use:     "undrain ID",
		Short:   "Let requests in to a host again",
		Example: "  headrace hosts undrain static:lab",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.ask(cmd.Context(), http.MethodDelete, args[0], nil, cmd.OutOrStdout())
		},
	}
	f := c.PersistentFlags()
	f.StringVarP(&o.config.file, "config", "c", "", "YAML file that names the admin address (default: headrace.yaml in the working directory, if there is one)")
	f.StringVar(&o.config.overrides.Admin, "admin", "", "address of the gateway's admin API (default: the config's, or 127.0.0.1:9090)")
	f.StringVarP(&o.output, "output", "o", "table", "table or json")
	if err := c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic("BUG: " + err.Error())
	}
	drain.ValidArgsFunction, undrain.ValidArgsFunction = cobra.NoFileCompletions, cobra.NoFileCompletions
	c.AddCommand(drain, undrain)
	return c
}

// ask lists the hosts, or drains or undrains one, and prints what the gateway answers.
func (o *hostsOptions) ask(ctx context.Context, method, id string, body any, out io.Writer) error {
	if o.output != "table" && o.output != "json" {
		return &exitError{2, fmt.Errorf("--output %q: want table or json", o.output)}
	}
	path := "/admin/v1/hosts"
	if method != http.MethodGet {
		if id == "" {
			return &exitError{2, errors.New("the host's ID is empty")}
		}
		path += "/" + url.PathEscape(id) + "/drain"
	}
	api, err := o.config.adminAPI()
	if err != nil {
		return err
	}
	var answer json.RawMessage
	if err := api.call(ctx, method, path, body, &answer); err != nil {
		return err
	}
	if o.output == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(answer)
	}
	var s string
	if method == http.MethodGet {
		s, err = hostsText(answer)
	} else {
		s, err = drainText(answer)
	}
	if err != nil {
		return &exitError{1, fmt.Errorf("what answers at %s is not the admin API of this version: %w", api.address, err)}
	}
	_, err = io.WriteString(out, s)
	return err
}

// plainTable returns a table without borders, whose header and footer are as they were given.
func plainTable() table.Writer {
	t := table.NewWriter()
	style := table.StyleLight
	style.Options = table.OptionsNoBordersAndSeparators
	style.Options.SeparateHeader, style.Options.SeparateFooter = true, true
	style.Format.Header, style.Format.Footer = text.FormatDefault, text.FormatDefault
	style.Box.PaddingLeft = ""
	t.SetStyle(style)
	return t
}

func hostsText(answer []byte) (string, error) {
	var list struct {
		Hosts []router.HostView `json:"hosts"`
	}
	if err := json.Unmarshal(answer, &list); err != nil {
		return "", err
	}
	if len(list.Hosts) == 0 {
		return "There are no hosts.\n", nil
	}
	t := plainTable()
	t.AppendHeader(table.Row{"host", "models", "state", "in flight", "requests", "failures", "why"})
	for i := range list.Hosts {
		h := &list.Hosts[i]
		state, why := h.State, h.StateReason
		switch {
		case h.Drained && why == "":
			state, why = state+", drained", "by its operator"
		case h.Drained:
			state += ", drained"
		case h.Breaker != "closed":
			state += ", breaker " + strings.ReplaceAll(h.Breaker, "_", " ")
		}
		t.AppendRow(table.Row{h.ID, strings.Join(h.Models, "\n"), state, h.InFlight, h.Requests, h.Failures, why})
	}
	return t.Render() + "\n", nil
}

func drainText(answer []byte) (string, error) {
	var d struct {
		ID       string `json:"id"`
		Drained  bool   `json:"drained"`
		Move     bool   `json:"move"`
		InFlight int64  `json:"in_flight"`
	}
	if err := json.Unmarshal(answer, &d); err != nil {
		return "", err
	}
	switch {
	case !d.Drained:
		return d.ID + " takes requests again, as far as its state lets it.\n", nil
	case d.InFlight == 0:
		return d.ID + " takes no new requests, and none run there.\n", nil
	case d.Move:
		return fmt.Sprintf("%s takes no new requests; %s there go on elsewhere, where they can.\n", d.ID, count(d.InFlight, "request")), nil
	}
	return fmt.Sprintf("%s takes no new requests; %s there will finish.\n", d.ID, count(d.InFlight, "request")), nil
}
