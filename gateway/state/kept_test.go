package state

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestKept: what is kept is there for the next process of the directory and the same Redis, also while that is away, and for no other.
func TestKept(t *testing.T) {
	dir := t.TempDir()
	docs := func(url, dir string) *Docs {
		r, err := Open(Options{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return r.Docs(DocsOptions{Dir: dir})
	}
	const url = "redis://127.0.0.1:1" // nobody is there
	a := docs(url, dir)
	if all, err := a.Kept("thing"); err != nil || len(all) > 0 {
		t.Errorf("at first %v, %v", all, err)
	}
	for _, body := range []string{"one", "two"} {
		for _, name := range []string{"n", "../n"} {
			if err := a.Keep("thing", name, []byte(body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := a.Keep("thing", "n", nil); err != nil {
		t.Error(err)
	}
	if err := a.Keep("thing", "never", nil); err != nil {
		t.Error(err)
	}
	if all, err := docs(url, dir).Kept("thing"); err != nil || len(all) != 1 || string(all["../n"]) != "two" {
		t.Errorf("the next process has %q, %v", all, err)
	}
	for what, d := range map[string]*Docs{"another Redis": docs("redis://127.0.0.1:2", dir), "another directory": docs(url, t.TempDir()), "none": docs(url, "")} {
		if all, err := d.Kept("thing"); err != nil || len(all) > 0 {
			t.Errorf("%s has %q, %v", what, all, err)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := docs(url, "").Keep("thing", "n", []byte("x")); !errors.Is(err, ErrNowhere) {
		t.Errorf("without a directory: %v", err)
	}
	if err := docs(url, filepath.Join(file, "state")).Keep("thing", "n", []byte("x")); err == nil {
		t.Error("it is kept in a directory that cannot be")
	}
}

// census has this process be there as another one of a directory.
const census = "HEADRACE_TEST_CENSUS"

// TestCensus: that a process has ended is known of one that was killed, and of no other.
func TestCensus(t *testing.T) {
	if !locks {
		t.Skip("files have no locks here")
	}
	if dir := os.Getenv(census); dir != "" { // the other process
		if _, err := newCensus(dir).Alive("other"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "there"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, os.Stdin) // until it is killed
		return
	}
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCensus$", "-test.timeout=1m") //nolint:gosec // this very test
	cmd.Env = append(os.Environ(), census+"="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close() }()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the other process", func() bool { _, err := os.Stat(filepath.Join(dir, "there")); return err == nil })
	c := newCensus(dir)
	release, err := c.Alive("me")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"other", "me", "nobody", "", "../alive/other", "."} {
		if c.Dead(id) {
			t.Errorf("%q is dead, while all live", id)
		}
		c.Bury(id) // of the living nobody is buried
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if !c.Dead("other") || c.Dead("me") || newCensus(t.TempDir()).Dead("other") {
		t.Errorf("killed: dead %v, who lives %v, in another directory %v", c.Dead("other"), c.Dead("me"), newCensus(t.TempDir()).Dead("other"))
	}
	if err := os.WriteFile(filepath.Join(dir, "alive", "elsewhere"), []byte("another machine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c.Dead("elsewhere") {
		t.Error("of a process of another machine it is known that it has ended")
	}
	if c.Bury("other"); c.Dead("other") {
		t.Error("it was buried, and is known")
	}
	if release(); !c.Dead("me") {
		t.Error("who has ended is not dead")
	}
	long := time.Now().Add(-2 * deadFor)
	if err := os.Chtimes(filepath.Join(dir, "alive", "me"), long, long); err != nil {
		t.Fatal(err)
	}
	if c.Bury("other"); c.Dead("me") {
		t.Error("whoever ended long ago is remembered for good")
	}
	for name, tc := range map[string]struct {
		on   string
		old  time.Duration
		kept bool
	}{
		"strange":     {"another machine", strangeFor + time.Hour, false},
		"strangenew":  {"another machine", strangeFor - time.Hour, true},
		"killedearly": {"", strangeFor + time.Hour, false},
	} {
		path := filepath.Join(dir, "alive", name)
		if err := os.WriteFile(path, []byte(tc.on), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-tc.old)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		c.Bury("nobody")
		if _, err := os.Stat(path); (err == nil) != tc.kept {
			t.Errorf("%s: kept %v, %v", name, !tc.kept, err)
		}
	}
	for what, c := range map[string]Census{"no directory": {}, "below a file": newCensus(filepath.Join(dir, "there"))} {
		if _, err := c.Alive("me"); err == nil {
			t.Errorf("%s: nobody is told that a process is there", what)
		}
	}
}

// TestCopyIsTold: that documents are as an earlier process read them is said once, however often they are asked for.
func TestCopyIsTold(t *testing.T) {
	s := startRedis(t)
	dir := t.TempDir()
	first := s.open(nil).Docs(DocsOptions{Dir: dir})
	if _, err := first.Put(t.Context(), "thing", "n", 0, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if docs, err := first.Load(t.Context(), "thing"); err != nil || len(docs) != 1 {
		t.Fatal(docs, err)
	}
	s.Stop()
	var log bytes.Buffer
	r, err := Open(Options{URL: s.URL(), Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	next := r.Docs(DocsOptions{Dir: dir})
	for range 3 {
		if docs, err := next.Load(t.Context(), "thing"); err != nil || len(docs) != 1 {
			t.Errorf("while Redis is away %v, %v", docs, err)
		}
	}
	if n := strings.Count(log.String(), "by an earlier process"); n != 1 {
		t.Errorf("it is said %d times:\n%s", n, &log)
	}
}
