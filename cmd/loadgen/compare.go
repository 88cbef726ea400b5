package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"headrace/cmd/loadgen/internal/compare"
	"headrace/cmd/loadgen/internal/h1"
	"headrace/cmd/loadgen/internal/load"
	"headrace/cmd/loadgen/internal/rig"
)

// compareOptions are the flags of loadgen compare.
type compareOptions struct {
	shared
	headrace   string
	commands   []string
	nginx      string
	mockListen string
	quick      bool
	enforce    bool
	judge      []string
	rounds     int
	only       []string
	docs       string
	save       string
}

func newCompare() *cobra.Command {
	o := &compareOptions{}
	c := &cobra.Command{
		Use:   "compare --headrace PATH | --proxy-cmd NAME=COMMAND ...",
		Short: "Measure proxies against nginx and print the acceptance table",
		Long: "compare starts the mock upstream, nginx and the proxies on free loopback ports, runs every scenario in\n" +
			"interleaved rounds, stops them again, and prints one Markdown table: the figures, their ratios to nginx\n" +
			"in the same round, and what must be kept. Exit code 3 says that --enforce found a bound missed.",
		Example: `  loadgen compare --headrace ./headrace
  loadgen compare --headrace ./headrace --quick --enforce
  loadgen compare --proxy-cmd 'gw=./gw -addr {listen} -upstream {upstream}' --save result.json
  loadgen compare --headrace ./headrace --mock-listen 127.0.0.1:9100 \
    --target peer=http://127.0.0.1:9300/v1/chat/completions,/run/peer.pid`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return o.run(c) },
	}
	o.registerRequest(c)
	f := c.Flags()
	f.StringArrayVar(&o.targets, "target", nil, "`NAME=URL[,PID]` of a peer that runs already and forwards to --mock-listen; repeatable")
	f.BoolVar(&o.usage, "usage", true, "streams ask for the usage chunk")
	f.StringVar(&o.headrace, "headrace", "", "`PATH` of the gateway: columns headrace and headrace+log (with an access log)")
	f.StringArrayVar(&o.commands, "proxy-cmd", nil, "`NAME=COMMAND` of another proxy, with {listen}, {upstream} and {dir} filled in; repeatable")
	f.StringVar(&o.nginx, "nginx", "", "`PATH` of nginx, or none (default: where packages put it)")
	f.StringVar(&o.mockListen, "mock-listen", "", "loopback `HOST:PORT` of the mock upstream (default: a free port; targets that run already need to know it)")
	f.BoolVar(&o.quick, "quick", false, "under 40 s: shows that everything works, measures little")
	f.BoolVar(&o.enforce, "enforce", false, "exit with code 3 when a must is missed")
	f.StringSliceVar(&o.judge, "judge", nil, "columns that --enforce looks at (default: headrace, else the first proxy)")
	f.IntVar(&o.rounds, "rounds", 0, "rounds of each scenario (0: as it is best for each)")
	f.StringSliceVar(&o.only, "only", nil, "scenarios: "+strings.Join(compare.Scenarios(), ", ")+" (default: all)")
	f.StringVar(&o.docs, "update-docs", "", "`FILE` in which the table replaces what stands between the markers of the judged column")
	f.StringVar(&o.save, "save", "", "`FILE` for the report as JSON, every run included")
	return c
}

func (o *compareOptions) run(c *cobra.Command) error {
	opts, err := o.options(c)
	if err != nil {
		return checked(err)
	}
	rep, err := compare.Run(c.Context(), opts)
	if err != nil {
		return err
	}
	if err := o.write(c, rep); err != nil {
		return err
	}
	if !o.enforce {
		return nil
	}
	var short []string
	for _, name := range o.judge {
		short = append(short, rep.Shortfalls(name)...)
	}
	if len(short) > 0 {
		return fmt.Errorf("%w:\n  %s", errMissed, strings.Join(short, "\n  "))
	}
	return nil
}

// options turns the flags into what is to be compared.
func (o *compareOptions) options(c *cobra.Command) (compare.Options, error) {
	opts := compare.Options{
		MockListen: o.mockListen, Quick: o.quick, Rounds: o.rounds, Only: o.only,
		Log: func(format string, args ...any) { c.PrintErrf(format+"\n", args...) },
	}
	if err := checkOutput(o.output); err != nil {
		return opts, err
	}
	self, err := os.Executable()
	if err != nil {
		return opts, err
	}
	opts.Mock = []string{self, "mock", "--model", o.set.Model}
	if o.mockListen != "" {
		if err := h1.CheckLoopback(o.mockListen); err != nil {
			return opts, fmt.Errorf("--mock-listen: %w", err)
		}
	}
	if opts.Request, err = o.request(); err != nil {
		return opts, err
	}
	if opts.Nginx, err = o.findNginx(); err != nil {
		return opts, err
	}
	if opts.Proxies, err = o.proxies(); err != nil {
		return opts, err
	}
	for _, text := range o.targets {
		t, err := load.ParseTarget(text, opts.Request)
		if err != nil {
			return opts, err
		}
		opts.Targets = append(opts.Targets, t)
	}
	if len(opts.Proxies)+len(opts.Targets) == 0 {
		return opts, errors.New("nothing to compare with nginx: want --headrace, --proxy-cmd or --target")
	}
	return opts, o.checkJudged(opts)
}

// findNginx fails only where figures without ratios are no use.
func (o *compareOptions) findNginx() (string, error) {
	switch o.nginx {
	case "none":
		if o.enforce {
			return "", errors.New("--enforce needs nginx")
		}
		return "", nil
	case "":
		return rig.FindNginx()
	}
	path, err := exec.LookPath(o.nginx)
	if err != nil {
		return "", fmt.Errorf("--nginx: %w", err)
	}
	return filepath.Abs(path)
}

func (o *compareOptions) proxies() ([]compare.Proxy, error) {
	var all []compare.Proxy
	if o.headrace != "" {
		path, err := exec.LookPath(o.headrace)
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err != nil {
			return nil, fmt.Errorf("--headrace: %w", err)
		}
		all = append(all,
			compare.Proxy{Program: rig.Headrace("headrace", path, o.set.Model, false)},
			compare.Proxy{Program: rig.Headrace("headrace+log", path, o.set.Model, true), Logs: true})
	}
	for _, text := range o.commands {
		p, err := rig.Command(text)
		if err != nil {
			return nil, err
		}
		all = append(all, compare.Proxy{Program: p})
	}
	return all, nil
}

// checkJudged settles which columns count, and that their table can be written where it should.
func (o *compareOptions) checkJudged(opts compare.Options) error {
	if len(o.judge) == 0 {
		if len(opts.Proxies) > 0 {
			o.judge = []string{opts.Proxies[0].Name}
		} else {
			o.judge = []string{opts.Targets[0].Name}
		}
	}
	if o.docs == "" {
		return nil
	}
	if o.quick || len(o.only) > 0 || opts.Nginx == "" {
		return errors.New("--update-docs wants a whole comparison, with nginx and without --quick or --only")
	}
	return compare.CheckDocs(o.docs, o.judge[0])
}

// write prints the report and puts it where else it is wanted.
func (o *compareOptions) write(c *cobra.Command, rep *compare.Report) error {
	out := c.OutOrStdout()
	if o.output == "json" {
		if err := writeJSON(out, rep); err != nil {
			return err
		}
	} else if _, err := fmt.Fprintln(out, rep.Markdown()); err != nil {
		return err
	}
	if o.save != "" {
		f, err := os.Create(o.save)
		if err != nil {
			return err
		}
		if err := errors.Join(writeJSON(f, rep), f.Close()); err != nil {
			return err
		}
	}
	if o.docs == "" {
		return nil
	}
	if len(rep.Problems) > 0 {
		return fmt.Errorf("%s stays as it is: the run had problems", o.docs)
	}
	return compare.UpdateDocs(o.docs, o.judge[0], rep.Markdown())
}
