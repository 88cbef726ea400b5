package state

import (
	"bytes"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDocsComeBack has a Redis that has lost its data get it back from those who have read it, with the same versions, and nothing that was
// deleted.
func TestDocsComeBack(t *testing.T) {
	s := startRedis(t)
	dirs := []string{filepath.Join(t.TempDir(), "a"), ""}
	open := func(dir string) *Docs { return s.open(nil).Docs(DocsOptions{Dir: dir, Passing: []string{"passing"}}) }
	a, b := open(dirs[0]), open(dirs[1])
	load := func(what string, d *Docs, kind string) map[string]Doc {
		t.Helper()
		docs, err := d.Load(t.Context(), kind)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return docs
	}
	same := func(what string, got, want map[string]Doc) {
		t.Helper()
		if !maps.EqualFunc(got, want, func(a, b Doc) bool { return a.Version == b.Version && bytes.Equal(a.Body, b.Body) }) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	want := map[string]Doc{}
	for name, body := range map[string]string{"one": "1", "two": "\x00:\xff", "gone": "x"} {
		v, err := a.Put(t.Context(), "key", name, 0, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		want[name] = Doc{v, []byte(body)}
	}
	if _, err := a.Put(t.Context(), "passing", "p", 0, []byte("x")); err != nil {
		t.Fatal(err)
	}
	only, err := a.Put(t.Context(), "last", "x", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	same("read by a", load("a", a, "key"), want)
	load("a", a, "last")
	load("a", a, "passing")
	if err := b.Delete(t.Context(), "key", "gone", want["gone"].Version); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(t.Context(), "last", "x", only); err != nil {
		t.Fatal(err)
	}
	delete(want, "gone")
	same("read by b", load("b", b, "key"), want)
	same("read again by a", load("a", a, "key"), want)
	same("the last one was deleted", load("a", a, "last"), nil)

	s.Stop()
	if _, err := a.Load(t.Context(), "key"); err == nil {
		t.Error("read without Redis, by one who knows what it was")
	}
	s.Start() // empty
	same("given back by b", load("b", b, "key"), want)
	same("for a", load("a", a, "key"), want)
	same("what was deleted stays so", load("a", a, "last"), nil)
	if _, err := a.Put(t.Context(), "key", "one", want["one"].Version, []byte("new")); err != nil {
		t.Errorf("changed by one who knew it: %v", err)
	}
	want = load("a", a, "key")

	s.Stop()
	var log bytes.Buffer
	late := s.open(nil)
	late.opt.Log = slog.New(slog.NewTextHandler(&log, nil))
	c := late.Docs(DocsOptions{Dir: dirs[0]})
	same("at a start without Redis", load("c", c, "key"), want)
	if !strings.Contains(log.String(), "as they were read last") {
		t.Errorf("the log says %q", log.String())
	}
	for _, kind := range []string{"passing", "other", "last"} {
		if docs, err := c.Load(t.Context(), kind); err == nil && len(docs) > 0 {
			t.Errorf("%s: %v", kind, docs)
		}
	}
	s.Start()
	same("given back by c", load("c", c, "key"), want)
	same("for b", load("b", b, "key"), want)

	elsewhere, err := Open(Options{URL: s.URL() + "?db=1", Timeout: patience / 3})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = elsewhere.Close() }()
	same("another database", load("elsewhere", elsewhere.Docs(DocsOptions{Dir: dirs[0]}), "key"), nil)
	err = filepath.WalkDir(dirs[0], func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := e.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestDocsClock: the time is Redis's, and an error while that does not answer.
func TestDocsClock(t *testing.T) {
	s := startRedis(t)
	d := s.open(nil).Docs(DocsOptions{})
	before := time.Now()
	at, err := d.Now(t.Context(), "thing")
	if after := time.Now(); err != nil || at.Before(before.Add(-time.Second)) || at.After(after.Add(time.Second)) {
		t.Errorf("%s, between %s and %s here: %v", at, before, after, err)
	}
	s.Stop()
	if at, err := d.Now(t.Context(), "thing"); err == nil {
		t.Errorf("it is %s by a Redis that is gone", at)
	}
}
