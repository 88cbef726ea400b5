package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// stores opens each kind of Store. Those of one call share their documents, as two processes would.
func stores(t *testing.T) map[string]func(*testing.T) (a, b Store) {
	t.Helper()
	return map[string]func(*testing.T) (a, b Store){
		"memory": func(*testing.T) (Store, Store) {
			m := NewMemory()
			return m, m
		},
		"files": func(t *testing.T) (Store, Store) {
			t.Helper()
			dir := filepath.Join(t.TempDir(), "state")
			return NewFiles(dir, nil), NewFiles(dir, nil)
		},
		"redis": func(t *testing.T) (Store, Store) {
			t.Helper()
			s := startRedis(t)
			return s.run().Docs(DocsOptions{}), s.run().Docs(DocsOptions{})
		},
	}
}

// run opens a Redis that runs until the test ends.
func (s *server) run() *Redis {
	s.t.Helper()
	r := s.open(nil)
	runs(s.t, r)
	return r
}

// runs has r run until the test ends, and closes it then.
func runs(t *testing.T, r *Redis) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; _ = r.Close() })
	await(t, "the stream of events", r.Hears)
}

// await waits until something is so.
// patience is how long a test waits for what is to happen at all, however busy the machine.
const patience = time.Minute

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	limit, look := time.NewTimer(patience), time.NewTicker(2*time.Millisecond)
	defer limit.Stop()
	defer look.Stop()
	for !is() {
		select {
		case <-look.C:
		case <-limit.C:
			t.Fatalf("after %v: not yet %s", patience, what)
		}
	}
}

// TestStore holds every Store to what the interface says.
func TestStore(t *testing.T) {
	for kind, open := range stores(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			a, b := open(t)
			ctx := t.Context()
			is := func(what string, s Store, want map[string]string) {
				t.Helper()
				docs, err := s.Load(ctx, "key")
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				got := map[string]string{}
				for name, d := range docs {
					if got[name] = string(d.Body); d.Version == 0 || d.Version >= 1<<53 {
						t.Errorf("%s: %s has version %d", what, name, d.Version)
					}
				}
				if !maps.Equal(got, want) {
					t.Errorf("%s: %q, want %q", what, got, want)
				}
			}
			put := func(s Store, name string, old Version, body string) Version {
				t.Helper()
				v, err := s.Put(ctx, "key", name, old, []byte(body))
				if err != nil {
					t.Fatalf("put %q: %v", name, err)
				}
				return v
			}
			conflict := func(what string, err error) {
				t.Helper()
				if !errors.Is(err, ErrConflict) {
					t.Errorf("%s: %v, want a conflict", what, err)
				}
			}
			is("empty", a, map[string]string{})
			changes, stop := b.Watch("key")
			defer stop()
			others, stopOthers := b.Watch("other")
			defer stopOthers()
			drain := func() { // what a Store says without any reason
				for {
					select {
					case <-changes:
					case <-others:
					case <-time.After(50 * time.Millisecond):
						return
					}
				}
			}
			told := func(what string) {
				t.Helper()
				select {
				case <-changes:
				case <-time.After(patience):
					t.Errorf("%s: nobody was told", what)
				}
				select {
				case <-others:
					t.Errorf("%s: those were told who watch another kind", what)
				default:
				}
			}
			drain()

			one := put(a, "one", 0, `{"a":1}`)
			told("put")
			is("put", b, map[string]string{"one": `{"a":1}`})
			_, err := b.Put(ctx, "key", "one", 0, nil)
			conflict("it must not exist", err)
			_, err = b.Put(ctx, "key", "none", one, nil)
			conflict("it must exist", err)
			two := put(b, "one", one, "two\nlines:\x00\xff")
			told("put again")
			if two <= one {
				t.Errorf("version %d after %d", two, one)
			}
			is("put again", a, map[string]string{"one": "two\nlines:\x00\xff"})
			_, err = a.Put(ctx, "key", "one", one, []byte("late"))
			conflict("too late", err)
			conflict("delete too late", a.Delete(ctx, "key", "one", one))
			conflict("delete what is not there", a.Delete(ctx, "key", "none", 0))
			conflict("delete what is not there any more", a.Delete(ctx, "key", "none", two))
			is("nothing changed", a, map[string]string{"one": "two\nlines:\x00\xff"})
			if err := a.Delete(ctx, "key", "one", two); err != nil {
				t.Error(err)
			}
			drain()
			is("deleted", b, map[string]string{})
			_, err = b.Put(ctx, "key", "one", two, nil)
			conflict("it was deleted", err)
			if again := put(b, "one", 0, ""); again == one || again == two {
				t.Errorf("version %d was another's", again)
			}
			is("anew", a, map[string]string{"one": ""})

			odd := []string{"..", ".", ".lock", "a/b", "../x", "%41", "A b\n", "Größe", "x.new-1", strings.Repeat("\xff", 80), "A"}
			want := map[string]string{"one": ""}
			for i, name := range odd {
				put(a, name, 0, strconv.Itoa(i))
				want[name] = strconv.Itoa(i)
			}
			is("odd names", b, want)
			if docs, err := a.Load(ctx, "other"); err != nil || len(docs) > 0 {
				t.Errorf("another kind: %v, %v", docs, err)
			}
			for what, err := range map[string]error{
				"no name":      second(a.Put(ctx, "key", "", 0, nil)),
				"long name":    second(a.Put(ctx, "key", strings.Repeat("x", 81), 0, nil)),
				"large":        second(a.Put(ctx, "key", "large", 0, make([]byte, MaxBody+1))),
				"bad kind":     second(a.Put(ctx, "../key", "x", 0, nil)),
				"bad kind too": second(a.Load(ctx, "")),
				"delete":       a.Delete(ctx, "a b", "x", 1),
			} {
				if err == nil || errors.Is(err, ErrConflict) {
					t.Errorf("%s: %v", what, err)
				}
			}
			gone, cancel := context.WithCancel(ctx)
			cancel()
			if _, err := a.Put(gone, "key", "late", 0, nil); !errors.Is(err, context.Canceled) {
				t.Errorf("of one who has left: %v", err)
			}
			is("at the end", b, want)
		})
	}
}

func second[T any](_ T, err error) error { return err }

// TestStoreRace has many writers count in one document, through two openings of the Store: no step is lost, whoever wins.
func TestStoreRace(t *testing.T) {
	for kind, open := range stores(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			a, b := open(t)
			const writers, steps = 6, 15
			var wg sync.WaitGroup
			for w := range writers {
				s := a
				if w%2 == 1 {
					s = b
				}
				wg.Go(func() {
					for range steps {
						for {
							docs, err := s.Load(t.Context(), "count")
							if err != nil {
								t.Error(err)
								return
							}
							d := docs["n"]
							n, _ := strconv.Atoi(string(d.Body))
							_, err = s.Put(t.Context(), "count", "n", d.Version, []byte(strconv.Itoa(n+1)))
							if err == nil {
								break
							}
							if !errors.Is(err, ErrConflict) {
								t.Error(err)
								return
							}
						}
					}
				})
			}
			wg.Wait()
			docs, err := b.Load(t.Context(), "count")
			if err != nil || string(docs["n"].Body) != strconv.Itoa(writers*steps) {
				t.Errorf("counted to %q (%v), want %d", docs["n"].Body, err, writers*steps)
			}
		})
	}
}

// TestFilesModes keeps others from reading, and touches nothing before something is written.
func TestFilesModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	f := NewFiles(dir, nil)
	if _, err := f.Load(t.Context(), "key"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(dir)); !os.IsNotExist(err) {
		t.Errorf("reading has made it: %v", err)
	}
	if _, err := f.Put(t.Context(), "key", "k", 0, []byte("x")); err != nil {
		t.Fatal(err)
	}
	files := 0
	err := filepath.WalkDir(filepath.Dir(dir), func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %s", path, info.Mode())
		}
		if !e.IsDir() {
			files++
		}
		return err
	})
	if err != nil || files != 2 {
		t.Errorf("%d files (%v), want the document and its lock", files, err)
	}
}

// TestFilesUnwritable keeps documents in memory where the directory cannot be made, and says so once.
func TestFilesUnwritable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	f := NewFiles(filepath.Join(file, "state"), slog.New(slog.NewTextHandler(&log, nil)))
	changes, stop := f.Watch("key")
	defer stop()
	v, err := f.Put(t.Context(), "key", "k", 0, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Put(t.Context(), "key", "l", 0, []byte("y")); err != nil {
		t.Error(err)
	}
	if err := f.Delete(t.Context(), "key", "k", v); err != nil {
		t.Error(err)
	}
	if docs, err := f.Load(t.Context(), "key"); err != nil || len(docs) != 1 || string(docs["l"].Body) != "y" {
		t.Errorf("kept %v, %v", docs, err)
	}
	select {
	case <-changes:
	case <-time.After(patience):
		t.Error("nobody was told")
	}
	if n := strings.Count(log.String(), "cannot be written"); n != 1 {
		t.Errorf("said %d times:\n%s", n, log.String())
	}
}

// TestFilesTrouble has one trouble that passes befall the first change of a process: it is told, and the process goes on with the directory,
// where it sees what others change.
func TestFilesTrouble(t *testing.T) {
	dir := t.TempDir()
	other, f := NewFiles(dir, nil), NewFiles(dir, nil)
	v, err := other.Put(t.Context(), "key", "k", 0, []byte("valid"))
	if err != nil {
		t.Fatal(err)
	}
	lock := filepath.Join(dir, "docs", "key", lockFile)
	if err := errors.Join(os.Remove(lock), os.Mkdir(lock, 0o700)); err != nil { // fails as a full disk or table of files does
		t.Fatal(err)
	}
	if _, err := f.Put(t.Context(), "key", "l", 0, []byte("x")); err == nil || f.InMemory() {
		t.Errorf("reported %v; in memory: %t", err, f.InMemory())
	}
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Put(t.Context(), "key", "k", v, []byte("revoked")); err != nil {
		t.Fatal(err)
	}
	if docs, err := f.Load(t.Context(), "key"); err != nil || string(docs["k"].Body) != "revoked" {
		t.Errorf("read %s, %v", docs["k"].Body, err)
	}
	if _, err := f.Put(t.Context(), "key", "l", 0, []byte("x")); err != nil {
		t.Error(err)
	}
	if docs, err := NewFiles(dir, nil).Load(t.Context(), "key"); err != nil || len(docs) != 2 {
		t.Errorf("after a restart: %v, %v", docs, err)
	}
}

// TestFilesDamaged leaves out what is no document, and lets it be written anew.
func TestFilesDamaged(t *testing.T) {
	dir := t.TempDir()
	f := NewFiles(dir, nil)
	if _, err := f.Put(t.Context(), "key", "good", 0, []byte("x")); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"empty": "", "text": "hello\n", "half": "headrace document 1 17", "zero": "headrace document 1 0\nx"} {
		if err := os.WriteFile(filepath.Join(dir, "docs", "key", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	docs, err := f.Load(t.Context(), "key")
	if err != nil || !slices.Equal(slices.Collect(maps.Keys(docs)), []string{"good"}) {
		t.Errorf("loaded %v, %v", docs, err)
	}
	if _, err := f.Put(t.Context(), "key", "half", 0, []byte("y")); err != nil {
		t.Error(err)
	}
	if docs, err := f.Load(t.Context(), "key"); err != nil || string(docs["half"].Body) != "y" {
		t.Errorf("loaded %v, %v", docs, err)
	}
}

// TestFilesNames turns any name into one of a file and back.
func TestFilesNames(t *testing.T) {
	seed := rand.Uint64()
	dice := rand.New(rand.NewPCG(seed, 0))
	for range 20000 {
		b := make([]byte, 1+dice.IntN(maxName))
		for i := range b {
			if b[i] = byte(dice.Uint32()); dice.IntN(2) == 0 {
				b[i] = `.%/\ab:*0`[dice.IntN(9)]
			}
		}
		file := fileName(string(b))
		back, ok := docName(file)
		if !ok || back != string(b) || len(file) > 255 || strings.ContainsAny(file, `/\:*`) || strings.HasPrefix(file, ".") {
			t.Fatalf("%q became %q, and that %q, %v (seed %d)", b, file, back, ok, seed)
		}
	}
	for _, file := range []string{"%", "%4", "%zz", ".lock", ".new-1", "%41", "a%2e"} {
		if name, ok := docName(file); ok {
			t.Errorf("%q is taken for %q", file, name)
		}
	}
}

// TestBus carries events to all others, in the order in which each sends them.
func TestBus(t *testing.T) {
	s := startRedis(t)
	replicas := []*Redis{s.run(), s.run(), s.run()}
	type event struct{ to, from, payload string }
	got := make(chan event, 1000)
	for _, r := range replicas {
		t.Cleanup(r.Subscribe("stats", func(from string, payload []byte) { got <- event{r.ID(), from, string(payload)} }))
	}
	stopped := replicas[0].Subscribe("stats", func(string, []byte) { t.Error("taken by one who had stopped") })
	stopped()
	const each = 20
	var wg sync.WaitGroup
	for _, r := range replicas {
		wg.Go(func() {
			for i := range each {
				if err := r.Publish(t.Context(), "stats", fmt.Appendf(nil, "%d a\nb", i)); err != nil {
					t.Error(err)
				}
				if err := r.Publish(t.Context(), "other", nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	next := map[[2]string]int{}
	for range each * len(replicas) * (len(replicas) - 1) {
		select {
		case e := <-got:
			way := [2]string{e.from, e.to}
			if want := fmt.Sprintf("%d a\nb", next[way]); e.payload != want || e.from == e.to {
				t.Errorf("%s got %q from %s, want %q", e.to, e.payload, e.from, want)
			}
			next[way]++
		case <-time.After(patience):
			t.Fatalf("events are missing: %v", next)
		}
	}
	await(t, "three replicas counted by each", func() bool {
		return !slices.ContainsFunc(replicas, func(r *Redis) bool { return r.Replicas() != 3 })
	})
}

// TestApart keeps those apart who share a server and nothing else: by database, or by prefix.
func TestApart(t *testing.T) {
	s := startRedis(t)
	url := s.URL()
	open := func(url, prefix string) *Redis {
		t.Helper()
		r, err := Open(Options{URL: url, Prefix: prefix, Timeout: patience / 3})
		if err != nil {
			t.Fatal(err)
		}
		runs(t, r)
		return r
	}
	all := []*Redis{open(url, ""), open(url+"?db=1", ""), open(url, "staging:")}
	for _, r := range all {
		t.Cleanup(r.Subscribe("word", func(from string, _ []byte) { t.Errorf("%s hears %s", r.ID(), from) }))
		if _, err := r.Docs(DocsOptions{}).Put(t.Context(), "key", "k", 0, []byte(r.ID())); err != nil {
			t.Error(err)
		}
		if err := r.Publish(t.Context(), "word", nil); err != nil {
			t.Error(err)
		}
	}
	for _, r := range all {
		if docs, err := r.Docs(DocsOptions{}).Load(t.Context(), "key"); err != nil || string(docs["k"].Body) != r.ID() {
			t.Errorf("%v, %v", docs, err)
		}
		if err := r.Publish(t.Context(), "word", nil); err != nil { // after those above, on the same way
			t.Error(err)
		}
		if n := r.Replicas(); n != 1 {
			t.Errorf("it counts %d", n)
		}
	}
}

// TestPermissions needs no more of Redis than docs/replicas.md says.
func TestPermissions(t *testing.T) {
	s := startRedis(t)
	admin := s.open(nil)
	if err := admin.client.Do(t.Context(), "ACL", "SETUSER", "headrace", "on", ">s3cret", "~headrace:*", "&headrace:*",
		"+@read", "+@write", "+@pubsub", "+@scripting", "+@connection", "+time", "-@dangerous").Err(); err != nil {
		t.Fatal(err)
	}
	url := "unix://headrace:s3cret@" + s.Socket()
	a, b := openURL(t, url), openURL(t, url)
	useAll(t, "with few permissions", a, b)
	if n := a.Stats().Errors + b.Stats().Errors; n > 0 {
		t.Errorf("%d errors", n)
	}
	if _, err := a.Once(t.Context(), "k", time.Second, func(context.Context) ([]byte, error) { return nil, errors.New("boom") }); err == nil {
		t.Error("no error")
	}
	denied, err := admin.client.Do(t.Context(), "ACL", "LOG").Slice()
	if err != nil || len(denied) > 0 {
		t.Errorf("denied: %v, %v", denied, err)
	}
}

// TestLeftovers has a killed writer's half of a file removed by the next process, and nobody else's.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	leave := func(name string, age time.Duration) string {
		t.Helper()
		path := filepath.Join(dir, "docs", "keys", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("headrace docu"), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		return path
	}
	old, young, other := leave(".new-123", 2*leftFor), leave(".new-456", leftFor/2), leave(".nfs123", 2*leftFor)
	f := NewFiles(dir, nil)
	if _, err := f.Put(t.Context(), "keys", "a", 0, []byte("x")); err != nil {
		t.Fatal(err)
	}
	for path, stays := range map[string]bool{old: false, young: true, other: true} {
		if _, err := os.Stat(path); (err == nil) != stays {
			t.Errorf("%s: %v", path, err)
		}
	}
	if docs, err := f.Load(t.Context(), "keys"); err != nil || len(docs) != 1 {
		t.Errorf("%v, %v", docs, err)
	}
}
