package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"headrace/cmd/loadgen/internal/load"
	"headrace/cmd/loadgen/internal/mock"
	"headrace/cmd/loadgen/internal/rig"
)

const defaultMock = "127.0.0.1:9100"

// shared are the flags that run, hold and cold have in common.
type shared struct {
	targets []string
	headers []string
	mock    string
	usage   bool
	output  string
	set     mock.Settings
}

func (s *shared) register(c *cobra.Command) {
	s.registerRequest(c)
	f := c.Flags()
	f.StringArrayVar(&s.targets, "target", nil, "`NAME=URL[,PID]` of a chat completions endpoint and the process behind it (number or pid file); repeatable, the first is compared against")
	f.StringVar(&s.mock, "mock", "http://"+defaultMock, "`URL` of the mock upstream, which gets the settings of each run")
	f.BoolVar(&s.usage, "usage", true, "streams ask for the usage chunk")
}

// registerRequest adds what every command that sends requests has.
func (s *shared) registerRequest(c *cobra.Command) {
	s.set = mock.Defaults()
	f := c.Flags()
	f.StringArrayVar(&s.headers, "header", nil, "`NAME: VALUE` sent with every request, for example a key; repeatable")
	f.StringVar(&s.set.Model, "model", s.set.Model, "`NAME` of the model asked for")
	f.StringVarP(&s.output, "output", "o", "table", "`FORMAT`: table or json")
}

// request builds what requests look like.
func (s *shared) request() (load.Request, error) {
	r := load.Request{Model: s.set.Model, Usage: s.usage, Header: http.Header{}}
	for _, h := range s.headers {
		name, value, err := load.ParseHeader(h)
		if err != nil {
			return r, err
		}
		r.Header.Add(name, value)
	}
	return r, nil
}

// prepare checks the flags, raises the limit of open files and returns the targets.
func (s *shared) prepare(conns ...int) ([]*load.Target, error) {
	if err := checkOutput(s.output); err != nil {
		return nil, checked(err)
	}
	req, err := s.request()
	if err != nil {
		return nil, checked(err)
	}
	if len(s.targets) == 0 {
		return nil, checked(errors.New("no --target"))
	}
	var all []*load.Target
	seen := map[string]bool{}
	for _, text := range s.targets {
		t, err := load.ParseTarget(text, req)
		if err != nil {
			return nil, checked(err)
		}
		if seen[t.Name] {
			return nil, checked(fmt.Errorf("two targets named %q", t.Name))
		}
		seen[t.Name] = true
		all = append(all, t)
	}
	limit, err := rig.RaiseFileLimit()
	if err != nil {
		return nil, err
	}
	for _, n := range conns {
		if uint64(n)+100 > limit {
			return nil, fmt.Errorf("%d open files allowed, too few for %d connections: raise the hard limit (ulimit -Hn)", limit, n)
		}
	}
	return all, nil
}

func checkOutput(format string) error {
	if format != "table" && format != "json" {
		return fmt.Errorf("output %q: want table or json", format)
	}
	return nil
}

// planFlags are the flags that shape a run.
func planFlags(c *cobra.Command, p *load.Plan, s *shared) {
	f := c.Flags()
	f.DurationVarP(&p.Duration, "duration", "d", p.Duration, "time of one run")
	f.DurationVar(&p.Ramp, "ramp", p.Ramp, "time over which connections start")
	f.IntVarP(&p.Requests, "requests", "n", load.MaxRequests, "requests of one run at most")
	f.DurationVar(&s.set.Gap, "gap", s.set.Gap, "time between the content chunks of a stream")
	f.DurationVar(&s.set.Delay, "delay", 0, "time the mock takes before it answers")
}

func writeJSON(w io.Writer, v any) error {
	return json.NewEncoder(w).Encode(v)
}

// micros renders a time in microseconds without false precision.
func micros(v float64) string {
	if v >= 10 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

const defaultDuration = 3 * time.Second
