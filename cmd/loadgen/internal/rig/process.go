// Package rig starts the programs that take part in a benchmark, each on a free loopback port with a
// directory of its own, and stops exactly those again.
package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// stopPatience is how long a program may take to end by itself.
	stopPatience = 3 * time.Second
	// startPatience is how long a program may take to give its first answer.
	startPatience = 30 * time.Second
	// probeEvery is the resolution of the start time.
	probeEvery = 500 * time.Microsecond
	// tailBytes is how much of a failed program's output is shown.
	tailBytes = 2000
)

// Program is something that can be started.
type Program struct {
	Name string
	// Command writes what the program needs into the place's directory and returns its command line.
	Command func(Place) ([]string, error)
}

// Place is where a program runs.
type Place struct {
	Dir      string // its own, empty; it is also the working directory
	Listen   string // loopback host:port to listen on
	Upstream string // loopback host:port of the mock
}

// Process is a started program.
type Process struct {
	Name    string
	Place   Place
	PID     int
	Started time.Time // just before it was started
	Output  string    // file that holds its stdout and stderr

	ended chan struct{} // closed when it has ended
	err   error         // how it ended; read after ended
}

// Rig owns the processes of one benchmark.
type Rig struct {
	root  string // directory of all others
	ports ports
	log   func(format string, args ...any)

	mu      sync.Mutex // guards running and count
	running map[*Process]struct{}
	count   int
}

// New returns a rig whose files lie in a new directory below the system's one for temporary files.
// log is told what is started and stopped.
func New(log func(format string, args ...any)) (*Rig, error) {
	root, err := os.MkdirTemp("", "loadgen-")
	if err != nil {
		return nil, err
	}
	return &Rig{root: root, ports: newPorts(), log: log, running: map[*Process]struct{}{}}, nil
}

// Close stops all processes that still run and removes their files.
func (r *Rig) Close() error {
	r.mu.Lock()
	var all []*Process
	for p := range r.running {
		all = append(all, p)
	}
	r.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range all {
		wg.Go(func() { r.Stop(p) })
	}
	wg.Wait()
	return os.RemoveAll(r.root)
}

// Start starts a program that forwards to upstream and returns at once. An empty listen picks a free port.
func (r *Rig) Start(prog Program, listen, upstream string) (*Process, error) {
	r.mu.Lock()
	r.count++
	dir := filepath.Join(r.root, fmt.Sprintf("%s-%d", fileName(prog.Name), r.count))
	r.mu.Unlock()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if listen == "" {
		var err error
		if listen, err = r.ports.next(); err != nil {
			return nil, err
		}
	}
	p := &Process{
		Name: prog.Name, Output: filepath.Join(dir, "output.log"), ended: make(chan struct{}),
		Place: Place{Dir: dir, Listen: listen, Upstream: upstream},
	}
	args, err := prog.Command(p.Place)
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", prog.Name, err)
	}
	if err := r.spawn(p, args); err != nil {
		return nil, fmt.Errorf("start %s: %w", prog.Name, err)
	}
	r.log("started %s: pid %d on %s", p.Name, p.PID, listen)
	return p, nil
}

// spawn runs the command in a process group of its own.
func (r *Rig) spawn(p *Process, args []string) error {
	out, err := os.Create(p.Output)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = p.Place.Dir, environment(p.Place.Dir)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = ownGroup()
	started := make(chan error)
	go func() {
		// The kernel ends the child with the thread that started it, so that thread must stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		p.Started = time.Now()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.PID = cmd.Process.Pid
		r.mu.Lock()
		r.running[p] = struct{}{}
		r.mu.Unlock()
		started <- nil
		p.err = cmd.Wait()
		close(p.ended)
	}()
	return <-started
}

// environment is what programs under test see: enough to run, nothing that would let a gateway find
// accounts, keys or collectors of the person who runs the benchmark.
func environment(dir string) []string {
	env := []string{"HOME=" + dir, "TMPDIR=" + dir, "LANG=C.UTF-8"}
	for _, name := range []string{"PATH", "GOMAXPROCS", "GOGC", "GOMEMLIMIT", "GODEBUG", "LD_LIBRARY_PATH"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// AwaitReady calls probe until it succeeds and returns the time from the start of the process to then.
func (r *Rig) AwaitReady(ctx context.Context, p *Process, probe func(context.Context) error) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		err := probe(ctx)
		if err == nil {
			return time.Since(p.Started), nil
		}
		select {
		case <-p.ended:
			return 0, fmt.Errorf("%s ended before its first answer: %w\n%s", p.Name, errors.Join(p.err, err), p.tail())
		case <-ctx.Done():
			return 0, fmt.Errorf("%s gave no answer: %w\n%s", p.Name, errors.Join(ctx.Err(), err), p.tail())
		case <-tick.C:
		}
	}
}

// Stop ends a process and everything it started: first it is asked to, then made to.
func (r *Rig) Stop(p *Process) {
	r.mu.Lock()
	_, running := r.running[p]
	delete(r.running, p)
	r.mu.Unlock()
	if !running {
		return
	}
	signalGroup(p.PID, syscall.SIGTERM)
	patience := time.NewTimer(stopPatience)
	defer patience.Stop()
	select {
	case <-p.ended:
	case <-patience.C:
		r.log("%s (pid %d) did not end within %v: killed", p.Name, p.PID, stopPatience)
	}
	// What is left of the group, workers without their master, goes now.
	signalGroup(p.PID, syscall.SIGKILL)
	<-p.ended
}

// tail is the end of what the process printed.
func (p *Process) tail() string {
	f, err := os.Open(p.Output)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.Size() > tailBytes {
		_, _ = f.Seek(-tailBytes, io.SeekEnd)
	}
	b, _ := io.ReadAll(f)
	return strings.TrimSpace(string(b))
}

// OutputSize is how much the process has printed, in bytes.
func (p *Process) OutputSize() (int64, error) {
	info, err := os.Stat(p.Output)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// fileName keeps a name from leaving its directory.
func fileName(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, name)
}
