// Command fakecloud runs fake GPU hosts that answer as vLLM does, alone or rented at a fake RunPod and a fake Vast.ai,
// for trying Headrace out and for tests in other languages.
package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/script"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "fakecloud:", err)
		os.Exit(1) //nolint:gocritic // stop only restores the default signal handling
	}
}

// flags are those of the command.
type flags struct {
	hosts   int
	classes []string
	models  []string
	port    int
	scale   float64
	seed    uint64
	faults  []string
	header  bool
	key     string
	context int
	tls     string
	ragged  bool
	legacy  bool

	runpod, vast bool
	script       string
}

func root() *cobra.Command {
	var f flags
	c := &cobra.Command{
		Use:   "fakecloud",
		Short: "Fake GPU hosts that answer as vLLM does, and the clouds that rent them out",
		Long: `Run fake GPU hosts on loopback until SIGINT or SIGTERM. Each answers OpenAI's API as vLLM does, at the
speed of its hardware times --time-scale, and breaks as --fault says.

A fault is KIND[,after=TOKENS][,delay=DURATION][,times=REQUESTS][,p=PROBABILITY][,path=/PREFIX], in front of
it HOST: to mean one host only, by its name or its number from 1. Kinds:

` + wrap(kinds(), 100) + `

The table of hosts goes to standard error, a config for headrace to standard output:

  fakecloud > headrace.yaml &
  until [ -s headrace.yaml ]; do sleep 1; done
  headrace serve -c headrace.yaml

With --runpod, --vast or --script it runs those clouds instead, with their APIs: a small fleet, or that of the
script. The fleet goes to standard error, and what happens to it; the environment in which headrace and the
vendors' own clients find the clouds to standard output:

  fakecloud --runpod --vast > clouds.env &
  until [ -s clouds.env ]; do sleep 1; done
  set -a; . ./clouds.env; headrace serve

A script is YAML:

` + indent(example) + `

Its durations are those of life. time_scale divides those of the clouds (boots, cold starts, bid wars, when
events come); runpod and vast may have their own. What can be written of hosts, where it is left out above:
endpoints have workers_max and a handler (v24, v23, v23_lists, v23_native, sglang, fake_stream); pods have
key, usd_per_hour, community, spot and tcp; instances have id, key, region, booting and trust (community,
verified, datacenter); vast has serverless endpoints with name, class, models, ready and workers_max; both
clouds have key and rate_limits. An event has at, with "for" it is undone after that time, and one of:

` + text.WrapSoft(script.Words(), 100),
		Example: `  fakecloud --hosts 2 --class a100-mixtral,h100-mixtral --port 9101
  fakecloud --time-scale 50 --seed 7 --fault 1:reset_stream,after=20,p=0.1 --fault 2:throttle,times=5
  fakecloud --time-scale 0 --header-faults   # no waiting; requests ask for faults: x-fake-fault: stall,after=3
  fakecloud --script fleet.yaml > clouds.env`,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("seed") {
				f.seed = rand.Uint64N(1_000_000)
			}
			clouds, err := f.wantsClouds(cmd.Flags())
			if err != nil {
				return err
			}
			if clouds {
				s, err := f.read(cmd.Flags())
				if err != nil {
					return err
				}
				return runClouds(cmd.Context(), s, cmd.OutOrStdout(), cmd.ErrOrStderr())
			}
			return run(cmd.Context(), &f, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fs := c.Flags()
	fs.IntVarP(&f.hosts, "hosts", "n", 4, "number of hosts")
	fs.StringSliceVar(&f.classes, "class", nil, "classes of hosts, which come in turn (default all: "+strings.Join(classNames(), ", ")+")")
	fs.StringSliceVar(&f.models, "model", nil, `models that every host serves (default its class's); one with "reason" in its name thinks first`)
	fs.IntVarP(&f.port, "port", "p", 0, "port of the first host, the others take those behind it (default free ports)")
	fs.Float64Var(&f.scale, "time-scale", 1, "how many times faster than in life; 0 waits for nothing")
	fs.Uint64Var(&f.seed, "seed", 0, "seed of prices, speeds and faults (default a random one, which is printed)")
	fs.StringArrayVar(&f.faults, "fault", nil, "fault of all hosts or of one; may be given many times")
	fs.BoolVar(&f.header, "header-faults", false, "let requests ask for faults by the header x-fake-fault")
	fs.StringVar(&f.key, "api-key", "", "bearer that hosts ask for (default none)")
	fs.IntVar(&f.context, "max-model-len", 0, "tokens of prompt and answer together (default 131072)")
	fs.StringVar(&f.tls, "tls", "", "serve https; the CA of each host is written to this directory")
	fs.BoolVar(&f.ragged, "ragged", false, "cut streams into writes at any byte")
	fs.BoolVar(&f.legacy, "legacy", false, "answer as old vLLM versions did: flat errors, vllm:gpu_cache_usage_perc")
	fs.BoolVar(&f.runpod, "runpod", false, "run a fake RunPod with a small fleet")
	fs.BoolVar(&f.vast, "vast", false, "run a fake Vast.ai with a small fleet")
	fs.StringVar(&f.script, "script", "", "run the clouds, fleet and events of this file")
	_ = c.RegisterFlagCompletionFunc("class", cobra.FixedCompletions(classNames(), cobra.ShellCompDirectiveNoFileComp))
	return c
}

func classNames() (names []string) {
	for _, c := range fakecloud.Classes {
		names = append(names, c.Name)
	}
	return names
}

func kinds() (names []string) {
	for _, k := range fakecloud.Kinds() {
		names = append(names, k.String())
	}
	return names
}

// wrap joins words to lines of at most width characters.
func wrap(words []string, width int) string {
	var b strings.Builder
	line := 0
	for i, w := range words {
		switch {
		case i == 0:
			b.WriteString("  ")
			line = 2
		case line+1+len(w) > width:
			b.WriteString("\n  ")
			line = 2
		default:
			b.WriteByte(' ')
			line++
		}
		b.WriteString(w)
		line += len(w)
	}
	return b.String()
}

// cloud checks the flags and says what is to be started.
func (f *flags) cloud() (cfg fakecloud.CloudConfig, err error) {
	if f.hosts < 1 || f.hosts > 1000 {
		return cfg, fmt.Errorf("--hosts %d: want 1 to 1000", f.hosts)
	}
	if f.port < 0 || f.port != 0 && f.port+f.hosts-1 > 65535 {
		return cfg, fmt.Errorf("--port %d: no room for %d hosts", f.port, f.hosts)
	}
	if !(f.scale >= 0) {
		return cfg, fmt.Errorf("--time-scale %v: want 0 or more", f.scale)
	}
	var classes []fakecloud.Class
	for _, name := range f.classes {
		c, ok := fakecloud.ClassNamed(name)
		if !ok {
			return cfg, fmt.Errorf("--class %s: want one of %s", name, strings.Join(classNames(), ", "))
		}
		classes = append(classes, c)
	}
	return fakecloud.CloudConfig{
		Hosts: fakecloud.Draw(f.seed, f.hosts, classes...),
		Port:  f.port,
		CADir: f.tls,
		Base: fakecloud.HostConfig{
			Models: f.models, TimeScale: f.scale, APIKey: f.key, MaxModelLen: f.context, TLS: f.tls != "", Legacy: f.legacy,
			AllowHeaderFaults: f.header, Chunking: fakecloud.Chunking{Ragged: f.ragged},
		},
	}, nil
}

// plan reads the faults and says which are whose, by the host's place.
func (f *flags) plan(specs []fakecloud.Spec) (map[int][]fakecloud.Fault, error) {
	plan := map[int][]fakecloud.Fault{}
	for _, text := range f.faults {
		whose, what, one := strings.Cut(text, ":")
		if !one {
			what = text
		}
		fault, err := fakecloud.ParseFault(what)
		if err != nil {
			return nil, fmt.Errorf("--fault %s: %w", text, err)
		}
		found := false
		for i, s := range specs {
			if !one || s.Name == whose || strconv.Itoa(i+1) == whose {
				plan[i] = append(plan[i], fault)
				found = true
			}
		}
		if !found {
			return nil, fmt.Errorf("--fault %s: there is no host %s", text, whose)
		}
	}
	return plan, nil
}

func run(ctx context.Context, f *flags, out, info io.Writer) error {
	cfg, err := f.cloud()
	if err != nil {
		return err
	}
	plan, err := f.plan(cfg.Hosts)
	if err != nil {
		return err
	}
	if f.tls != "" {
		if err := os.MkdirAll(f.tls, 0o750); err != nil {
			return err
		}
	}
	cloud, err := fakecloud.StartCloud(context.WithoutCancel(ctx), cfg) // ended by Stop, which lets requests finish
	if err != nil {
		return err
	}
	defer cloud.Stop()
	for i, h := range cloud.Hosts() {
		if err := h.SetFaults(plan[i]...); err != nil {
			return err
		}
	}
	fmt.Fprintf(info, "%s\nseed %d, time scale %v\n\n", hostTable(cloud), f.seed, f.scale)
	if _, err := io.WriteString(out, cloud.YAML()); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func hostTable(cloud *fakecloud.Cloud) string {
	w := table.NewWriter()
	w.SetStyle(table.StyleLight)
	w.AppendHeader(table.Row{"#", "Name", "URL", "GPU", "Model", "$/h", "Tok/s", "TTFT"})
	for i, h := range cloud.Hosts() {
		c := h.Config()
		gpu := c.Class.GPU
		if c.Class.GPUCount > 1 {
			gpu = fmt.Sprintf("%d x %s", c.Class.GPUCount, gpu)
		}
		w.AppendRow(table.Row{
			i + 1, c.Name, h.URL(), gpu, strings.Join(c.Models, "\n"), fmt.Sprintf("%.3f", c.USDPerHour), fmt.Sprintf("%.1f", c.TPS), c.TTFT.Round(time.Millisecond),
		})
	}
	return w.Render()
}
