package config

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// watching runs watch until the test ends and returns the channel that tells of changes: of each
// once the next one will be seen. The settling time is short so that tests are.
func watching(t *testing.T, paths []string, poll time.Duration, changed func() []string) <-chan struct{} {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	seen, done := make(chan struct{}, 64), make(chan error, 1)
	go func() {
		done <- watch(ctx, paths, 5*time.Millisecond, poll, func() { seen <- struct{}{} }, func() []string {
			if changed == nil {
				return paths
			}
			return changed()
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("watch returned %v", err)
		}
	})
	expect(t, seen)
	return seen
}

const never = 24 * time.Hour

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func do(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// expect waits for a change; the deadline only turns a hang into a failure.
func expect(t *testing.T, seen <-chan struct{}) {
	t.Helper()
	select {
	case <-seen:
	case <-time.After(time.Minute):
		t.Fatal("the change was not seen")
	}
}

func TestWatchSeesHowFilesAreSaved(t *testing.T) {
	for name, save := range map[string]func(t *testing.T, dir, path, content string){
		"written in place": func(t *testing.T, _, path, content string) { put(t, path, content) },
		"renamed over": func(t *testing.T, dir, path, content string) {
			put(t, filepath.Join(dir, ".tmp"), content)
			do(t, os.Rename(filepath.Join(dir, ".tmp"), path))
		},
		"old one moved away first": func(t *testing.T, _, path, content string) {
			do(t, os.Rename(path, path+"~"))
			put(t, path, content)
		},
		"deleted first": func(t *testing.T, _, path, content string) {
			do(t, os.Remove(path))
			put(t, path, content)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "headrace.yaml")
			put(t, path, "0")
			seen := watching(t, []string{path}, never, nil)
			for i := 1; i <= 3; i++ {
				save(t, dir, path, fmt.Sprint(i))
				expect(t, seen)
			}
		})
	}
}

// TestWatchSeesKubernetes plays the kubelet: a volume's files are links through ..data, and an
// update swaps that link and removes the old directory.
func TestWatchSeesKubernetes(t *testing.T) {
	dir := t.TempDir()
	version := func(n int) string {
		v := fmt.Sprintf("..version_%d", n)
		do(t, os.Mkdir(filepath.Join(dir, v), 0o700))
		put(t, filepath.Join(dir, v, "headrace.yaml"), fmt.Sprint(n))
		do(t, os.Symlink(v, filepath.Join(dir, "..data_tmp")), os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
		return filepath.Join(dir, v)
	}
	old := version(0)
	path := filepath.Join(dir, "headrace.yaml")
	do(t, os.Symlink("..data/headrace.yaml", path))
	seen := watching(t, []string{path}, never, nil)
	for n := 1; n <= 3; n++ {
		next := version(n)
		do(t, os.RemoveAll(old))
		old = next
		expect(t, seen)
	}
}

func TestWatchFollowsLinks(t *testing.T) {
	dir := t.TempDir()
	do(t, os.Mkdir(filepath.Join(dir, "a"), 0o700), os.Mkdir(filepath.Join(dir, "b"), 0o700), os.Mkdir(filepath.Join(dir, "conf"), 0o700))
	put(t, filepath.Join(dir, "a", "f"), "a")
	put(t, filepath.Join(dir, "b", "f"), "b")
	do(t, os.Symlink("../a", filepath.Join(dir, "conf", "current")))
	seen := watching(t, []string{filepath.Join(dir, "conf", "current", "f")}, never, nil)

	put(t, filepath.Join(dir, "a", "f"), "a2") // where the link leads
	expect(t, seen)
	do(t, os.Symlink("../b", filepath.Join(dir, "conf", "new")), os.Rename(filepath.Join(dir, "conf", "new"), filepath.Join(dir, "conf", "current")))
	expect(t, seen)
	put(t, filepath.Join(dir, "b", "f"), "b2") // where it leads now
	expect(t, seen)
}

func TestWatchTakesNewPaths(t *testing.T) {
	dir := t.TempDir()
	other := t.TempDir()
	path, cert := filepath.Join(dir, "headrace.yaml"), filepath.Join(other, "server.pem")
	put(t, path, "0")
	put(t, cert, "0")
	seen := watching(t, []string{path}, never, func() []string { return []string{path, cert} })
	put(t, path, "1")
	expect(t, seen)
	put(t, cert, "1")
	expect(t, seen)
}

// TestWatchIsQuiet touches, rewrites alike, removes and surrounds the file. The change at the end
// must be the first one seen: events come in order.
func TestWatchIsQuiet(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "headrace.yaml")
	put(t, path, "same")
	var contents []string
	seen := watching(t, []string{path}, never, func() []string {
		src, _ := os.ReadFile(path)
		contents = append(contents, string(src)) // ordered by seen
		return []string{path}
	})
	put(t, path+".new", "same") // renamed, since a look may meet a file that is being written
	do(t, os.Rename(path+".new", path))
	put(t, filepath.Join(dir, "another"), "x")
	do(t, os.Chmod(path, 0o644), os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)), os.Remove(path))
	put(t, path+".new", "same")
	do(t, os.Rename(path+".new", path))
	put(t, path+".new", "other")
	do(t, os.Rename(path+".new", path))
	expect(t, seen)
	if !slices.Equal(contents, []string{"other"}) {
		t.Errorf("told of contents %q", contents)
	}
}

// TestWatchPolls gives a file whose directory does not exist yet in a place that gives no event.
func TestWatchPolls(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "b", "headrace.yaml")
	seen := watching(t, []string{path}, 10*time.Millisecond, nil)
	do(t, os.MkdirAll(filepath.Dir(path), 0o700))
	put(t, path, "1")
	expect(t, seen)
}

func TestDirectories(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	do(t, err, os.Mkdir(filepath.Join(dir, "d"), 0o700), os.Mkdir(filepath.Join(dir, "e"), 0o700))
	put(t, filepath.Join(dir, "d", "f"), "")
	do(t, os.Symlink("f", filepath.Join(dir, "d", "near")),
		os.Symlink("../d/near", filepath.Join(dir, "e", "far")),
		os.Symlink(filepath.Join(dir, "d"), filepath.Join(dir, "abs")),
		os.Symlink("loop", filepath.Join(dir, "loop")))
	d, e := filepath.Join(dir, "d"), filepath.Join(dir, "e")
	for path, want := range map[string][]string{
		"d/f": {d}, "d/near": {d, d}, "e/far": {e, d, d}, "abs/f": {dir, d}, "abs/none": {dir, d}, "none/f": {dir},
	} {
		if got := directories(filepath.Join(dir, path)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if got := directories(filepath.Join(dir, "loop")); len(got) != maxLinks+1 {
		t.Errorf("a loop takes %d steps", len(got))
	}
}

func TestAdoptedPathsStartAsTheyAre(t *testing.T) {
	dir := t.TempDir()
	a, b, absent := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "absent")
	put(t, a, "0")
	put(t, b, "0")
	w := watcher{sums: map[string][sha256.Size]byte{}}
	w.adopt([]string{a})
	if w.look() {
		t.Error("an adopted path counts as changed")
	}
	put(t, a, "1")
	w.adopt([]string{a, b, absent})
	if !w.look() {
		t.Error("adopting more paths hides a change of an old one")
	}
	if w.look() {
		t.Error("one change is seen twice")
	}
	put(t, absent, "0")
	if !w.look() {
		t.Error("a path that was absent and came is no change")
	}
	do(t, os.Remove(b))
	if w.look() {
		t.Error("a path that went is a change")
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Watch(ctx, []string{t.TempDir()}, func() []string { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("Watch returned %v", err)
	}
}
