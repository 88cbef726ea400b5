package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"headrace/gateway/state/redistest"
)

// headrace returns the binary to test: $HEADRACE_E2E_BINARY, or one built from this tree.
func headrace(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("HEADRACE_E2E_BINARY"); path != "" {
		return path
	}
	touch(t, filepath.Join("..", "..", ".."))
	path := filepath.Join(t.TempDir(), "headrace")
	if out, err := exec.CommandContext(t.Context(), "go", "build", raceFlag, "-o", path, "headrace/cmd/headrace").CombinedOutput(); err != nil {
		t.Fatalf("build headrace: %v\n%s", err, out)
	}
	return path
}

// touch looks at every source file of the module, so that go test does not take an old result from its cache after one of
// them changed: it knows the files a test opened, and not those of a build that the test started.
func touch(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || d.Name() == "bin" || strings.HasPrefix(d.Name(), ".") && path != root):
			return fs.SkipDir
		case !d.IsDir():
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// gateway is a running headrace.
type gateway struct {
	url    string // of the OpenAI surface, with /v1
	cmd    *exec.Cmd
	exited chan struct{} // closed when err is set
	err    error         // of the process, once exited is closed
	log    *logBuffer
}

// serve starts path with the config that render makes for the two addresses, and waits until /readyz is 200. The test's end
// stops it and fails when it did not stop cleanly.
func serve(t *testing.T, path string, render func(listen, admin string) string) *gateway {
	t.Helper()
	listen, admin := redistest.Address(t), redistest.Address(t)
	config := filepath.Join(t.TempDir(), "headrace.yaml")
	text := render(listen, admin)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	g := &gateway{
		url:    "http://" + listen + "/v1",
		cmd:    exec.Command(path, "serve", "--config", config), //nolint:noctx // stopped by SIGTERM below, as an operator would
		exited: make(chan struct{}),
		log:    new(logBuffer),
	}
	g.cmd.Stdout, g.cmd.Stderr = g.log, g.log
	g.cmd.Env = append(os.Environ(), "GORACE=halt_on_error=1", "HEADRACE_STATE_DIR=off")
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(g.exited)
		g.err = g.cmd.Wait()
	}()
	t.Cleanup(func() { g.stop(t) })

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for last := errors.New("not asked yet"); ; {
		select {
		case <-g.exited:
			t.Fatalf("headrace ended before it was ready: %v\nconfig:\n%s\nlog:\n%s", g.err, text, g.log)
		case <-ctx.Done():
			t.Fatalf("headrace is not ready: %v\nconfig:\n%s\nlog:\n%s", last, text, g.log)
		case <-tick.C:
			if last = ready(ctx, "http://"+admin+"/readyz"); last == nil {
				return g
			}
		}
	}
}

func ready(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return nil
}

// stop drains the gateway and shows its log when it, or the test, failed.
func (g *gateway) stop(t *testing.T) {
	t.Helper()
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	limit := time.NewTimer(15 * time.Second)
	defer limit.Stop()
	select {
	case <-g.exited:
	case <-limit.C:
		t.Error("headrace did not end within 15 s of SIGTERM")
		_ = g.cmd.Process.Kill()
		<-g.exited
	}
	if g.err != nil {
		t.Errorf("headrace ended with %v", g.err)
	}
	for _, bad := range []string{"panic:", "DATA RACE", "BUG: ", hostKey} {
		if strings.Contains(g.log.String(), bad) {
			t.Errorf("%q in the log", bad)
		}
	}
	if t.Failed() {
		t.Logf("log, without the requests:\n%s", g.log.without(`"msg":"request"`))
	}
}

// logBuffer keeps what a process prints.
type logBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// without returns the lines that do not hold s.
func (b *logBuffer) without(s string) string {
	var kept strings.Builder
	for l := range strings.Lines(b.String()) {
		if !strings.Contains(l, s) {
			kept.WriteString(l)
		}
	}
	return kept.String()
}
