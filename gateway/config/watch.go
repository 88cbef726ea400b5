package config

import (
	"context"
	"crypto/sha256"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"headrace/gateway/dirwatch"
)

const (
	// settleTime passes between the first sign of a change and the look at the files: a save is
	// several events, and a file may be half written at the first.
	settleTime = 100 * time.Millisecond
	// pollInterval finds what no event tells: network file systems, a directory that went and came
	// back, or no inotify watches left.
	pollInterval = 15 * time.Second
)

// Watch calls changed after the content of one of paths has become another, until ctx is done, and
// returns ctx's error. changed runs in Watch's goroutine, one call at a time, and may return the
// paths to watch from then on; nil keeps them. A path that vanishes is no change until it is back.
//
// The directories are watched, not the files, along every symbolic link on the way: editors replace
// files by renaming, and Kubernetes swaps the link ..data that all keys of a ConfigMap go through.
func Watch(ctx context.Context, paths []string, changed func() []string) error {
	return watch(ctx, paths, settleTime, pollInterval, nil, changed)
}

// watch is Watch with its times; ready, if any, is called at the beginning and after each change of
// the paths, once changes of their files will be seen.
func watch(ctx context.Context, paths []string, settle, poll time.Duration, ready func(), changed func() []string) error {
	w := watcher{sums: make(map[string][sha256.Size]byte)}
	var events <-chan dirwatch.Event
	if n, err := dirwatch.New(); err == nil { // without one, polling has to do
		defer n.Close()
		w.notify, events = n, n.Events()
	}
	var settled <-chan time.Time // nil while nothing has happened
	adopt := func(paths []string) {
		w.adopt(paths)
		w.follow()
		settled = time.After(settle) // for what happened between the two
		if ready != nil {
			ready()
		}
	}
	adopt(paths)
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-events:
			if settled == nil {
				settled = time.After(settle)
			}
			continue
		case <-settled:
			settled = nil
		case <-ticker.C:
		}
		w.follow()
		if !w.look() {
			continue
		}
		if next := changed(); next != nil {
			adopt(next)
		}
	}
}

type watcher struct {
	paths  []string
	notify *dirwatch.Watcher // nil when the system grants none
	sums   map[string][sha256.Size]byte
}

// follow watches the directories that the paths lead through now, and no others.
func (w *watcher) follow() {
	if w.notify == nil {
		return
	}
	want := make(map[string]bool)
	for _, p := range w.paths {
		for _, dir := range directories(p) {
			want[dir] = true
		}
	}
	for _, dir := range w.notify.List() {
		if !want[dir] {
			w.notify.Remove(dir)
		}
	}
	for dir := range want {
		_ = w.notify.Add(dir) // again is harmless, and renews a watch whose directory was replaced; absent: polling finds it
	}
}

// look reads the files and says whether the content of one differs from when it was last read.
func (w *watcher) look() bool {
	differs := false
	for _, p := range w.paths {
		sum, ok := digest(p)
		if !ok {
			continue
		}
		if old, known := w.sums[p]; !known || old != sum {
			w.sums[p], differs = sum, true
		}
	}
	return differs
}

// adopt makes paths the ones to look at. Those that are new start as they are now; what happened to
// the others meanwhile is still a change.
func (w *watcher) adopt(paths []string) {
	w.paths = slices.Clone(paths)
	for _, p := range w.paths {
		if _, known := w.sums[p]; !known {
			if sum, ok := digest(p); ok {
				w.sums[p] = sum
			}
		}
	}
}

func digest(path string) (sum [sha256.Size]byte, ok bool) {
	src, err := os.ReadFile(path)
	return sha256.Sum256(src), err == nil
}

// maxLinks is where a chain of symbolic links counts as a loop, as in Linux.
const maxLinks = 40

// directories lists the directories in which a change can give path another content: the one the
// file is in, and each one that holds a symbolic link on the way there. Where the way is broken it
// ends with the directory in which the next step is missing.
func directories(path string) []string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	root := filepath.VolumeName(abs) + string(filepath.Separator)
	cur, rest := root, steps(strings.TrimPrefix(abs, root))
	var dirs []string
	for links := 0; len(rest) > 0; {
		step := rest[0]
		rest = rest[1:]
		if step == ".." {
			cur = filepath.Dir(cur)
			continue
		}
		full := filepath.Join(cur, step)
		info, err := os.Lstat(full)
		if err != nil {
			return append(dirs, cur)
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			if len(rest) == 0 {
				return append(dirs, cur)
			}
			cur = full
			continue
		}
		dirs = append(dirs, cur)
		target, err := os.Readlink(full)
		if links++; err != nil || links > maxLinks {
			return dirs
		}
		if filepath.IsAbs(target) {
			cur = root
		}
		rest = append(steps(target), rest...)
	}
	return dirs
}

// steps splits a path, leaving out what leads nowhere.
func steps(path string) []string {
	return slices.DeleteFunc(strings.Split(filepath.ToSlash(path), "/"), func(s string) bool { return s == "" || s == "." })
}
