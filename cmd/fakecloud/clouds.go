package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/pflag"

	"headrace/providers/fakecloud/script"
)

// example is the script of the help; without its events it is the fleet of --runpod and --vast.
//
//go:embed example.yaml
var example string

// hostFlags are those of plain hosts, which mean nothing to clouds.
var hostFlags = []string{"hosts", "class", "model", "port", "fault", "header-faults", "api-key", "max-model-len", "tls", "ragged", "legacy"}

// wantsClouds tells whether whole clouds are asked for, and what is wrong with that.
func (f *flags) wantsClouds(set *pflag.FlagSet) (bool, error) {
	if !f.runpod && !f.vast && f.script == "" {
		return false, nil
	}
	if f.script != "" && (f.runpod || f.vast) {
		return true, errors.New("--script says itself which clouds there are: leave --runpod and --vast out")
	}
	for _, name := range hostFlags {
		if set.Changed(name) {
			return true, fmt.Errorf("--%s is for plain hosts: write the clouds' fleet in a --script", name)
		}
	}
	if set.Changed("time-scale") && !(f.scale > 0) {
		return true, fmt.Errorf("--time-scale %v: want more than 0", f.scale)
	}
	return true, nil
}

// read returns the script that the flags ask for.
func (f *flags) read(set *pflag.FlagSet) (*script.Script, error) {
	var s *script.Script
	if f.script != "" {
		text, err := os.ReadFile(f.script)
		if err != nil {
			return nil, err
		}
		if s, err = script.Parse(f.script, text); err != nil {
			return nil, err
		}
	} else {
		var err error
		if s, err = script.Parse("example.yaml", []byte(example)); err != nil {
			panic("BUG: " + err.Error())
		}
		s.Events, s.Vast.BidWar, s.TimeScale = nil, nil, nil
		if !f.runpod {
			s.RunPod = nil
		}
		if !f.vast {
			s.Vast = nil
		}
	}
	if set.Changed("time-scale") {
		s.TimeScale, s.EngineScale = &f.scale, &f.scale
	}
	if set.Changed("seed") || s.Seed == 0 {
		s.Seed = f.seed
	}
	return s, nil
}

func runClouds(ctx context.Context, s *script.Script, out, info io.Writer) error {
	clouds, err := s.Start(context.WithoutCancel(ctx)) // ended by Stop
	if err != nil {
		return err
	}
	defer clouds.Stop()
	fmt.Fprintf(info, "%s\nseed %d\n\n", fleetTable(clouds), s.Seed)
	var env strings.Builder
	for _, v := range clouds.Env() {
		fmt.Fprintf(&env, "%s=%s\n", v.Name, v.Value)
	}
	if _, err := io.WriteString(out, env.String()); err != nil {
		return err
	}
	began := time.Now()
	clouds.Run(ctx, func(n script.News) {
		fmt.Fprintf(info, "%7.1fs  %s %s\n", time.Since(began).Seconds(), n.ID, n.Text)
	})
	return nil
}

func fleetTable(clouds *script.Clouds) string {
	w := table.NewWriter()
	w.SetStyle(table.StyleLight)
	w.AppendHeader(table.Row{"Host", "Name", "What", "Model", "$/h"})
	w.SetColumnConfigs([]table.ColumnConfig{{Number: 5, Align: text.AlignRight, AlignHeader: text.AlignRight}})
	for _, l := range clouds.Fleet() {
		w.AppendRow(table.Row{l.ID, l.Name, l.What, l.Model, l.Price})
	}
	return w.Render()
}

// indent puts two spaces before each line.
func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n  ")
}
