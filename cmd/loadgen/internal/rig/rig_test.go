//go:build linux

package rig_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.yaml.in/yaml/v3"

	"headrace/cmd/loadgen/internal/rig"
)

// TestMain lets the test binary stand in for the programs that a rig starts.
func TestMain(m *testing.M) {
	if len(os.Args) < 3 {
		os.Exit(m.Run())
	}
	switch os.Args[1] {
	case "listen", "stubborn": // until a signal, which stubborn ignores; with a child of its own
		if os.Args[1] == "stubborn" {
			signal.Ignore(syscall.SIGTERM)
		}
		child := exec.Command(os.Args[0], "wait", "-")
		in, err := child.StdinPipe() // held open: the child ends with us at the latest
		if err == nil {
			err = child.Start()
		}
		l, lerr := net.Listen("tcp", os.Args[2])
		if err := errors.Join(err, lerr); err != nil {
			panic(err)
		}
		for {
			c, err := l.Accept()
			if err != nil {
				panic(err)
			}
			_, _ = c.Write([]byte(strconv.Itoa(child.Process.Pid) + "\n" + strings.Join(os.Environ(), "\n")))
			_ = c.Close()
			_ = in
		}
	case "wait":
		signal.Ignore(syscall.SIGTERM)
		_, _ = os.Stdin.Read(make([]byte, 1))
	case "fail":
		os.Stderr.WriteString("no such thing: " + os.Args[2])
		os.Exit(7)
	default:
		os.Exit(m.Run())
	}
}

func program(t *testing.T, mode string) rig.Program {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := rig.Command("it='" + exe + "' " + mode + " {listen}")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func newRig(t *testing.T) *rig.Rig {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir())
	r, err := rig.New(t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	return r
}

// ask connects to a program and returns what it says.
func ask(ctx context.Context, p *rig.Process) (string, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", p.Place.Listen)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	b := make([]byte, 64<<10)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// runs says whether a process exists and is no zombie.
func runs(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(b), ") Z ")
}

func TestStartAndStop(t *testing.T) {
	t.Setenv("RUNPOD_API_KEY", "must not be seen")
	for _, mode := range []string{"listen", "stubborn"} {
		t.Run(mode, func(t *testing.T) {
			r := newRig(t)
			p, err := r.Start(program(t, mode), "", "127.0.0.1:1")
			if err != nil {
				t.Fatal(err)
			}
			var said string
			took, err := r.AwaitReady(t.Context(), p, func(ctx context.Context) (err error) {
				said, err = ask(ctx, p)
				return err
			})
			if err != nil || took <= 0 {
				t.Fatalf("ready after %v, %v", took, err)
			}
			child, env, _ := strings.Cut(said, "\n")
			pid, err := strconv.Atoi(child)
			if err != nil || !runs(p.PID) || !runs(pid) {
				t.Fatalf("said %q; %d and its child run: %v %v", said, p.PID, runs(p.PID), runs(pid))
			}
			if strings.Contains(env, "must not be seen") || !strings.Contains(env, "PATH=") {
				t.Errorf("environment:\n%s", env)
			}
			r.Stop(p)
			if runs(p.PID) {
				t.Errorf("%d still runs", p.PID)
			}
			waitGone(t, pid)
			r.Stop(p) // once more does nothing
		})
	}
}

// waitGone waits until a process that is no child of ours has ended; the test's time limit bounds it.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	for runs(pid) {
		if err := p.Signal(syscall.Signal(0)); err != nil {
			return
		}
	}
}

func TestCloseStopsAll(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	r, err := rig.New(t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	var all []*rig.Process
	for range 3 {
		p, err := r.Start(program(t, "listen"), "", "")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range all {
		if runs(p.PID) || seen[p.Place.Listen] || seen[p.Place.Dir] {
			t.Errorf("%+v", p)
		}
		seen[p.Place.Listen], seen[p.Place.Dir] = true, true
	}
}

func TestAwaitReadyFails(t *testing.T) {
	r := newRig(t)
	p, err := r.Start(program(t, "fail"), "", "")
	if err != nil {
		t.Fatal(err)
	}
	never := errors.New("not yet")
	_, err = r.AwaitReady(t.Context(), p, func(context.Context) error { return never })
	if err == nil || !strings.Contains(err.Error(), "no such thing") || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("a program that ended gave %v", err)
	}
	if size, err := p.OutputSize(); err != nil || size == 0 {
		t.Errorf("%d bytes of output, %v", size, err)
	}
	p, err = r.Start(program(t, "listen"), "", "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = r.AwaitReady(ctx, p, func(context.Context) error { cancel(); return never })
	if !errors.Is(err, context.Canceled) || !errors.Is(err, never) {
		t.Errorf("canceled: %v", err)
	}
}

func TestCommand(t *testing.T) {
	place := rig.Place{Dir: "/d", Listen: "127.0.0.1:1", Upstream: "127.0.0.1:2"}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no sh")
	}
	p, err := rig.Command(`a=sh -c 'x "y" z' {listen} http://{upstream}/v1 "{dir}/a b" ''`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.Command(place)
	want := []string{sh, "-c", `x "y" z`, "127.0.0.1:1", "http://127.0.0.1:2/v1", "/d/a b", ""}
	if err != nil || p.Name != "a" || strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%s: %q, %v; want %q", p.Name, got, err, want)
	}
	for name, bad := range map[string]string{
		"no name":         "=sh {listen}",
		"no command":      "a=",
		"no =":            "sh {listen}",
		"no listen":       "a=sh x",
		"open quote":      "a=sh 'x {listen}",
		"no such program": "a=/nonexistent/x {listen}",
	} {
		if p, err := rig.Command(bad); err == nil {
			t.Errorf("%s: %q gave %+v", name, bad, p)
		}
	}
}

func TestHeadraceConfig(t *testing.T) {
	for _, access := range []bool{false, true} {
		place := rig.Place{Dir: t.TempDir(), Listen: "127.0.0.1:8080", Upstream: "127.0.0.1:9100"}
		args, err := rig.Headrace("h", "/bin/headrace", "mock-model", access).Command(place)
		if err != nil || len(args) != 4 || args[1] != "serve" || args[2] != "--config" {
			t.Fatalf("%q, %v", args, err)
		}
		b, err := os.ReadFile(args[3])
		if err != nil {
			t.Fatal(err)
		}
		var c struct {
			Listen, Admin string
			Providers     struct {
				Static []struct {
					Name    string
					BaseURL string `yaml:"base_url"`
					Models  []string
					Price   map[string]float64
				}
			}
			Log struct {
				Level  string
				Access bool
			}
		}
		if err := yaml.Unmarshal(b, &c); err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		if c.Listen != place.Listen || c.Admin != "off" || c.Log.Access != access || len(c.Providers.Static) != 1 {
			t.Fatalf("%+v", c)
		}
		if s := c.Providers.Static[0]; s.BaseURL != "http://127.0.0.1:9100/v1" || s.Models[0] != "mock-model" || s.Price["usd_per_hour"] != 1 {
			t.Errorf("%+v", s)
		}
	}
}

// TestNginxConf keeps the copy for use by hand the same as what is measured.
func TestNginxConf(t *testing.T) {
	b, err := os.ReadFile("../../../../deploy/bench/nginx.conf")
	if err != nil {
		t.Fatal(err)
	}
	if want := rig.NginxConf("127.0.0.1:9110", "127.0.0.1:9100"); string(b) != want {
		t.Errorf("deploy/bench/nginx.conf differs from what is measured:\n%s", want)
	}
	nginx, err := rig.FindNginx()
	if errors.Is(err, rig.ErrNoNginx) {
		t.Skip("nginx is not installed")
	}
	if err != nil {
		t.Fatal(err)
	}
	place := rig.Place{Dir: t.TempDir(), Listen: "127.0.0.1:9110", Upstream: "127.0.0.1:9100"}
	args, err := rig.Nginx(nginx).Command(place)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(args[0], append(args[1:], "-t")...).CombinedOutput(); err != nil {
		t.Errorf("nginx refuses its configuration: %v\n%s", err, out)
	}
}

func TestRaiseFileLimit(t *testing.T) {
	n, err := rig.RaiseFileLimit()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-c", "ulimit -n").Output()
	if err != nil {
		t.Skip(err)
	}
	if got := strings.TrimSpace(string(out)); got != strconv.FormatUint(n, 10) {
		t.Errorf("a child may open %s files, want %d", got, n)
	}
}
