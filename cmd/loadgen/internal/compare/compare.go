// Package compare measures proxies against nginx on one machine in one go: every scenario in
// interleaved rounds, every figure as a ratio to nginx in the same round.
package compare

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"headrace/cmd/loadgen/internal/load"
	"headrace/cmd/loadgen/internal/mock"
	"headrace/cmd/loadgen/internal/rig"
)

const (
	// timeLimit bounds a whole comparison.
	timeLimit = 20 * time.Minute
	// maxRounds bounds what Options.Rounds may ask for.
	maxRounds = 50
	// settle is the pause after a start, for what a program does once it is up.
	settle = 200 * time.Millisecond
	// settleMemory is the same where growth of memory is measured: what a program opens once in its first second is no stream's.
	settleMemory = 1500 * time.Millisecond
	// spareFiles is how many descriptors a process needs beside its connections.
	spareFiles = 200
)

// Proxy is a program to be measured.
type Proxy struct {
	rig.Program
	// Logs says that it is meant to write an access log to its output; one that stays empty is a problem.
	Logs bool
}

// Options is what a comparison consists of.
type Options struct {
	Mock       []string // command line of the mock upstream, without --listen
	MockListen string   // loopback host:port for it, "" for a free port
	Nginx      string   // path of nginx, "" to go without it and without ratios
	Proxies    []Proxy
	Targets    []*load.Target // peers that run already and forward to MockListen
	Request    load.Request
	Quick      bool
	Rounds     int      // 0: as each scenario has it
	Only       []string // scenarios; none: all
	Log        func(format string, args ...any)
}

// subject is one column: the mock itself, a program, or a peer that runs already.
type subject struct {
	name   string
	prog   *Proxy       // nil for direct and peers
	target *load.Target // nil while the program does not run
	proc   *rig.Process
}

// comparison is one in progress.
type comparison struct {
	Options
	rig      *rig.Rig
	mockAddr string
	direct   *subject
	subjects []*subject // nginx first, when there is one
	samples  map[string]map[string][]sample
	problems []string
}

// Run does the comparison. It stops everything it started, also when ctx ends or something fails.
func Run(ctx context.Context, o Options) (rep *Report, err error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	plans := only(scenarios(o.Quick), o.Only)
	if err := checkFiles(plans); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	r, err := rig.New(o.Log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	s := &comparison{Options: o, rig: r, samples: map[string]map[string][]sample{}}
	env := readEnvironment(ctx, o.Nginx)
	before := readMachine()
	if err := s.startMock(ctx); err != nil {
		return nil, err
	}
	if err := s.gather(); err != nil {
		return nil, err
	}
	for _, sc := range plans {
		if o.Rounds > 0 {
			sc.rounds = o.Rounds
		}
		if err := s.scenario(ctx, sc); err != nil {
			return nil, fmt.Errorf("%s: %w", sc.name, err)
		}
	}
	s.checkLogs()
	if err := r.Close(); err != nil { // what the programs used is known once they have ended
		return nil, err
	}
	env.Seconds, env.Others = before.since()
	return s.report(env, plans), nil
}

func (o Options) validate() error {
	if o.Rounds < 0 || o.Rounds > maxRounds {
		return fmt.Errorf("%d rounds: want at most %d", o.Rounds, maxRounds)
	}
	for _, name := range o.Only {
		if !slices.Contains(Scenarios(), name) {
			return fmt.Errorf("no scenario %q: want %s", name, strings.Join(Scenarios(), ", "))
		}
	}
	seen := map[string]bool{"direct": true, "nginx": true}
	for _, name := range append(proxyNames(o.Proxies), targetNames(o.Targets)...) {
		if seen[name] {
			return fmt.Errorf("two columns named %q", name)
		}
		seen[name] = true
	}
	if len(o.Targets) > 0 && o.MockListen == "" {
		return errors.New("targets that run already need a mock at an address they know")
	}
	return nil
}

func proxyNames(all []Proxy) []string {
	names := make([]string, len(all))
	for i, p := range all {
		names[i] = p.Name
	}
	return names
}

func targetNames(all []*load.Target) []string {
	names := make([]string, len(all))
	for i, t := range all {
		names[i] = t.Name
	}
	return names
}

// checkFiles makes room for the connections; a proxy needs two descriptors for each.
func checkFiles(plans []scenario) error {
	limit, err := rig.RaiseFileLimit()
	if err != nil {
		return err
	}
	need := 0
	for _, sc := range plans {
		need = max(need, 2*sc.plan.Conns+spareFiles)
	}
	if limit < uint64(need) {
		return fmt.Errorf("%d open files allowed, %d needed: raise the hard limit (ulimit -Hn)", limit, need)
	}
	return nil
}

func (s *comparison) startMock(ctx context.Context) error {
	prog := rig.Program{Name: "mock", Command: func(p rig.Place) ([]string, error) {
		return append(slices.Clone(s.Mock), "--listen", p.Listen), nil
	}}
	p, err := s.rig.Start(prog, s.MockListen, "")
	if err != nil {
		return err
	}
	s.mockAddr = p.Place.Listen
	t, err := s.targetAt("direct", s.mockAddr, 0)
	if err != nil {
		return err
	}
	s.direct = &subject{name: t.Name, target: t}
	_, err = s.rig.AwaitReady(ctx, p, s.probe(t))
	return err
}

func (s *comparison) gather() error {
	if s.Nginx != "" {
		s.subjects = append(s.subjects, &subject{name: nginxColumn, prog: &Proxy{Program: rig.Nginx(s.Nginx)}})
	}
	for i := range s.Proxies {
		s.subjects = append(s.subjects, &subject{name: s.Proxies[i].Name, prog: &s.Proxies[i]})
	}
	for _, t := range s.Targets {
		s.subjects = append(s.subjects, &subject{name: t.Name, target: t})
	}
	if len(s.subjects) == 0 {
		return errors.New("nothing to measure")
	}
	return nil
}

func (s *comparison) targetAt(name, addr string, pid int) (*load.Target, error) {
	return load.NewTarget(name, "http://"+addr+"/v1/chat/completions", pid, s.Request)
}

// probe asks for a plain answer, whose size no scenario changes.
func (s *comparison) probe(t *load.Target) func(context.Context) error {
	return func(ctx context.Context) error { return load.Probe(ctx, t, mock.Defaults().Body) }
}

// start starts a subject's program and returns how long it took to its first answer.
func (s *comparison) start(ctx context.Context, b *subject) (time.Duration, error) {
	p, err := s.rig.Start(b.prog.Program, "", s.mockAddr)
	if err != nil {
		return 0, err
	}
	b.proc = p
	if b.target, err = s.targetAt(b.name, p.Place.Listen, p.PID); err != nil {
		return 0, err
	}
	return s.rig.AwaitReady(ctx, p, s.probe(b.target))
}

func (s *comparison) stop(b *subject) {
	s.rig.Stop(b.proc)
	b.proc, b.target = nil, nil
}

// scenario runs its rounds: within a round every subject has its turn, so that noise from outside
// falls on all alike.
func (s *comparison) scenario(ctx context.Context, sc scenario) error {
	s.Log("%s: %d rounds", sc.name, sc.rounds)
	s.samples[sc.name] = map[string][]sample{}
	takers := s.subjects
	if sc.direct {
		takers = append([]*subject{s.direct}, takers...)
	}
	for round := range sc.rounds {
		for _, b := range takers {
			one, err := s.turn(ctx, sc, b, round)
			if err != nil {
				return err
			}
			one.row.Round = round
			s.samples[sc.name][b.name] = append(s.samples[sc.name][b.name], one)
			if one.row.Errors > 0 || one.row.Requests == 0 && sc.name != Cold {
				s.problem("%s, %s, round %d: %d answers, %d errors, last: %s",
					b.name, sc.name, round+1, one.row.Requests, one.row.Errors, one.row.LastError)
			}
		}
	}
	return nil
}

// turn is one subject's part of one round.
func (s *comparison) turn(ctx context.Context, sc scenario, b *subject, round int) (sample, error) {
	var one sample
	var err error
	mockURL := "http://" + s.mockAddr
	switch {
	case sc.fresh && b.prog != nil:
		if one.start, err = s.start(ctx, b); err != nil {
			return one, err
		}
		defer s.stop(b)
		if sc.name == Cold {
			return one, nil
		}
		pause := settleMemory
		if s.Quick {
			pause = settle
		}
		if err := load.Pause(ctx, pause); err != nil {
			return one, err
		}
	case sc.name == Cold: // runs already: there is no start to be timed
		return one, ctx.Err()
	case b.target == nil:
		if _, err := s.start(ctx, b); err != nil {
			return one, err
		}
		if err := load.Pause(ctx, settle); err != nil {
			return one, err
		}
	}
	if round == 0 && !sc.fresh {
		if _, err := load.Run(ctx, b.target, sc.plan.Warm(), mockURL); err != nil {
			return one, err
		}
	}
	one.row, err = load.Run(ctx, b.target, sc.plan, mockURL)
	return one, err
}

func (s *comparison) problem(format string, args ...any) {
	p := fmt.Sprintf(format, args...)
	s.Log("PROBLEM: %s", p)
	s.problems = append(s.problems, p)
}

// checkLogs makes sure that a column with an access log had one.
func (s *comparison) checkLogs() {
	for _, b := range s.subjects {
		if b.prog == nil || !b.prog.Logs || b.proc == nil {
			continue
		}
		requests := uint64(0)
		for _, by := range s.samples {
			for _, one := range by[b.name] {
				if one.start == 0 {
					requests += one.row.Requests
				}
			}
		}
		size, err := b.proc.OutputSize()
		if err != nil || size < int64(requests) {
			s.problem("%s: an access log of %d bytes for %d requests (%v)", b.name, size, requests, err)
			continue
		}
		if requests > 0 {
			s.Log("%s logged about %d bytes for each request", b.name, size/int64(requests))
		}
	}
}
