package dirwatch_test

import (
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"slices"
	"testing"
	"time"

	"headrace/gateway/dirwatch"
)

const patience = 30 * time.Second

func newWatcher(t *testing.T) *dirwatch.Watcher {
	t.Helper()
	w, err := dirwatch.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// expect waits for the event of a path; others are passed over.
func expect(t *testing.T, w *dirwatch.Watcher, path string) {
	t.Helper()
	for late := time.After(patience); ; {
		select {
		case e := <-w.Events():
			if e.Path == path {
				return
			}
		case <-late:
			t.Fatalf("no event of %s", path)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestEvents tells of files that are made, written, renamed and removed, and of the end of the directory.
func TestEvents(t *testing.T) {
	t.Parallel()
	w, dir := newWatcher(t), filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := w.Add(dir); err != nil {
		t.Fatal(err)
	}
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, step := range []struct {
		do   func() error
		path string
	}{
		{func() error { return os.WriteFile(a, []byte("1"), 0o600) }, a},
		{func() error { return os.Truncate(a, 0) }, a},
		{func() error { return os.Rename(a, b) }, b},
		{func() error { return os.Remove(b) }, b},
		{func() error { return os.Remove(dir) }, dir},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		expect(t, w, step.path)
	}
}

// TestAddAgain watches what is at a path now: a directory that was made anew, or that has come in the place of one that was moved away.
func TestAddAgain(t *testing.T) {
	t.Parallel()
	w, top := newWatcher(t), t.TempDir()
	dir, away := filepath.Join(top, "d"), filepath.Join(top, "away")
	if err := w.Add(dir); err == nil {
		t.Error("a directory that is not there is watched")
	}
	for _, end := range []func() error{
		func() error { return os.RemoveAll(dir) },
		func() error { return os.Rename(dir, away) },
		func() error { return nil },
	} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := w.Add(dir); err != nil {
				t.Fatal(err)
			}
		}
		if got := w.List(); !slices.Equal(got, []string{dir}) {
			t.Errorf("%q are watched, want %q", got, dir)
		}
		write(t, filepath.Join(dir, "x"), "")
		expect(t, w, filepath.Join(dir, "x"))
		if err := end(); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(away, "y"), "") // whose watch ended when another was added in its place
	w.Remove(dir)
	write(t, filepath.Join(dir, "z"), "")
	w.Remove(dir)
	if got := w.List(); len(got) > 0 {
		t.Errorf("%q are watched after Remove", got)
	}
	if err := w.Add(top); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(top, "last"), "")
	for late := time.After(patience); ; {
		select {
		case e := <-w.Events():
			switch filepath.Base(e.Path) {
			case "y", "z":
				t.Errorf("an event of %s, which is not watched", e.Path)
			case "last":
				return
			}
		case <-late:
			t.Fatal("no event")
		}
	}
}

// TestTwoNames watches a directory by two paths, and goes on by one of them.
func TestTwoNames(t *testing.T) {
	t.Parallel()
	w, top := newWatcher(t), t.TempDir()
	dir, link := filepath.Join(top, "d"), filepath.Join(top, "link")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, link); err != nil {
		t.Skip(err)
	}
	for _, d := range []string{dir, link} {
		if err := w.Add(d); err != nil {
			t.Fatal(err)
		}
	}
	w.Remove(link)
	write(t, filepath.Join(dir, "x"), "")
	expect(t, w, filepath.Join(dir, "x"))
}

// TestClose ends a watcher whose events nobody takes, and may be called twice.
func TestClose(t *testing.T) {
	t.Parallel()
	w, dir := newWatcher(t), t.TempDir()
	if err := w.Add(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		write(t, filepath.Join(dir, name), name)
	}
	w.Close()
	w.Close()
	if err := w.Add(dir); err == nil {
		t.Error("a closed watcher watches")
	}
}

// TestStack holds what a watcher's goroutine takes of stack to little, for it counts in what the runtime gives each new one.
func TestStack(t *testing.T) { // not parallel: other tests' goroutines would count
	if runtime.GOOS != "linux" {
		t.Skip("the other systems' reader is fsnotify's")
	}
	const watchers = 32
	stacks := func() uint64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/stacks:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	dir := t.TempDir()
	before := stacks()
	var ws []*dirwatch.Watcher
	for range watchers {
		w := newWatcher(t)
		if err := w.Add(dir); err != nil {
			t.Fatal(err)
		}
		ws = append(ws, w)
	}
	write(t, filepath.Join(dir, "x"), "x")
	for _, w := range ws {
		expect(t, w, filepath.Join(dir, "x"))
	}
	each := (max(stacks(), before) - before) / watchers
	t.Logf("%d bytes of stack for each watcher", each)
	if each > 16<<10 {
		t.Errorf("%d bytes of stack for each watcher, want a few KiB", each)
	}
}
