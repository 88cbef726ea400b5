package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"headrace/gateway/dirwatch"
)

// Files is a Store in a directory, for the processes of one machine. A document is there whole or not at all, whatever happens while it
// is written. The directory is made at the first Put; where it cannot be written at all, Files keeps documents in memory, and says so in the
// log once. What may pass, such as a disk that is full, is the error of the change that it befell.
type Files struct {
	dir      string
	log      *slog.Logger
	busy     chan struct{} // of one: a writer of this process
	watchers watchers
	memory   atomic.Pointer[Memory] // instead of the directory, nil while that may do
	wrote    atomic.Bool            // the directory is good
	warned   atomic.Bool            // of a document that cannot be read
	damaged  sync.Map               // kinds of which the last Load has left out such a one
	swept    sync.Map               // kinds whose folder was rid of what killed writers left
	Census
}

// NewFiles returns a Store below dir, in its folder docs. It touches nothing yet. log may be nil.
func NewFiles(dir string, log *slog.Logger) *Files {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Files{dir: filepath.Join(dir, "docs"), log: log, busy: make(chan struct{}, 1), Census: newCensus(dir)}
}

// Damaged tells whether the last Load of a kind has left out a document that was damaged.
func (f *Files) Damaged(kind string) bool {
	_, ok := f.damaged.Load(kind)
	return ok
}

// InMemory tells whether memory stands for the directory, since that could not be written.
func (f *Files) InMemory() bool { return f.memory.Load() != nil }

const (
	docHead  = "headrace document 1 " // and the version; then the body begins in a line of its own
	lockFile = ".lock"
	tempFile = ".new-*"
	lockLook = 5 * time.Millisecond
	// dirLook finds changes that no event tells of: on network file systems, and of a directory that is made or comes back.
	dirLook = 2 * time.Second
)

// Load implements Store. A document that was damaged is left out, and the log says so.
func (f *Files) Load(ctx context.Context, kind string) (map[string]Doc, error) {
	if err := checkKind(kind); err != nil {
		return nil, err
	}
	if m := f.memory.Load(); m != nil {
		return m.Load(ctx, kind)
	}
	dir := filepath.Join(f.dir, kind)
	entries, err := os.ReadDir(dir)
	docs := map[string]Doc{}
	if errors.Is(err, fs.ErrNotExist) {
		return docs, ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("read documents: %w", err)
	}
	damaged := false
	for _, e := range entries {
		name, ok := docName(e.Name())
		if !ok || e.IsDir() {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		d, err := readDoc(filepath.Join(dir, e.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted this moment
		case errors.Is(err, errDamaged):
			damaged = true
			if !f.warned.Swap(true) {
				f.log.Error("a document in the state directory is damaged, and left out", "file", filepath.Join(dir, e.Name()))
			}
		case err != nil:
			return nil, fmt.Errorf("read a document: %w", err)
		default:
			docs[name] = d
		}
	}
	if damaged {
		f.damaged.Store(kind, true)
	} else {
		f.damaged.Delete(kind)
	}
	return docs, nil
}

var errDamaged = errors.New("damaged")

func readDoc(path string) (Doc, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Doc{}, err
	}
	head, body, ok := bytes.Cut(b, []byte("\n"))
	v, err := strconv.ParseUint(strings.TrimPrefix(string(head), docHead), 10, 53)
	if !ok || err != nil || v == 0 {
		return Doc{}, errDamaged
	}
	return Doc{Version(v), body}, nil
}

// Put implements Store.
func (f *Files) Put(ctx context.Context, kind, name string, old Version, body []byte) (v Version, err error) {
	if err := checkDoc(kind, name, body); err != nil {
		return 0, err
	}
	err = f.change(ctx, kind, func(dir string) error {
		path := filepath.Join(dir, fileName(name))
		is, err := readDoc(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errDamaged) {
			return err
		}
		if is.Version != old {
			return ErrConflict
		}
		v = newer(old, time.Now())
		return replace(dir, path, append(fmt.Appendf(nil, "%s%d\n", docHead, v), body...))
	}, func(m *Memory) error {
		v, err = m.Put(ctx, kind, name, old, body)
		return err
	})
	return v, err
}

// Delete implements Store.
func (f *Files) Delete(ctx context.Context, kind, name string, old Version) error {
	if err := checkDoc(kind, name, nil); err != nil {
		return err
	}
	return f.change(ctx, kind, func(dir string) error {
		path := filepath.Join(dir, fileName(name))
		is, err := readDoc(path)
		switch {
		case errors.Is(err, fs.ErrNotExist), err == nil && is.Version != old:
			return ErrConflict
		case err != nil:
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		return syncDir(dir)
	}, func(m *Memory) error { return m.Delete(ctx, kind, name, old) })
}

// change makes a change while no other process makes one of that kind: in the directory, or in the memory that stands for it.
func (f *Files) change(ctx context.Context, kind string, do func(dir string) error, instead func(*Memory) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case f.busy <- struct{}{}:
		defer func() { <-f.busy }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if m := f.memory.Load(); m != nil {
		return instead(m)
	}
	dir := filepath.Join(f.dir, kind)
	lock, err := f.lock(ctx, dir)
	if err != nil {
		if ctx.Err() != nil || f.wrote.Load() || !forGood(err) {
			return fmt.Errorf("lock the state directory: %w", err)
		}
		m, err := f.giveUp(ctx, err)
		if err != nil {
			return fmt.Errorf("lock the state directory: %w", err)
		}
		return instead(m)
	}
	defer func() { _ = lock.Close() }() // and with it the lock
	f.sweep(kind)
	if err := do(dir); err != nil {
		if errors.Is(err, ErrConflict) || f.wrote.Load() || !forGood(err) {
			return err
		}
		m, err := f.giveUp(ctx, err)
		if err != nil {
			return err
		}
		return instead(m)
	}
	f.wrote.Store(true)
	f.watchers.tell(kind)
	return nil
}

// forGood tells whether an error says that a directory is not to be written: it, or its file system, is read-only, is no directory, or knows
// no locks.
func forGood(err error) bool {
	for _, e := range []error{fs.ErrPermission, errors.ErrUnsupported, syscall.EROFS, syscall.ENOTDIR, syscall.ENOLCK} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// giveUp has memory stand for a directory that cannot be written, with all that can be read there: where some of it cannot, that would be
// forgotten, and the error why says that nothing was written. The caller is the only writer.
func (f *Files) giveUp(ctx context.Context, why error) (*Memory, error) {
	entries, err := os.ReadDir(f.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.ENOTDIR) {
		return nil, why
	}
	m := NewMemory()
	for _, e := range entries {
		if !e.IsDir() || checkKind(e.Name()) != nil {
			continue
		}
		docs, err := f.Load(ctx, e.Name())
		if err != nil {
			return nil, why
		}
		m.docs[e.Name()] = docs
	}
	f.log.Warn("the state directory cannot be written: what is created or learned ends with this process",
		"dir", filepath.Dir(f.dir), "error", why, "hint", `set state.dir to a directory that can be, or to "off"`)
	f.memory.Store(m)
	return m, nil
}

// lock makes the directory and takes its lock. Closing the file gives it back.
func (f *Files) lock(ctx context.Context, dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		ok, err := tryLock(lock)
		if ok {
			return lock, nil
		}
		if err == nil {
			err = pause(ctx, lockLook)
		}
		if err != nil {
			_ = lock.Close()
			return nil, err
		}
	}
}

// sweep rids a kind's folder of what killed writers left, once in a process.
func (f *Files) sweep(kind string) {
	if _, done := f.swept.LoadOrStore(kind, true); !done {
		sweepTemps(filepath.Join(f.dir, kind), time.Now())
	}
}

// leftFor is how old a file has to be that replace has begun to be taken for one that nobody goes on with.
const leftFor = time.Hour

// sweepTemps removes what replace has left in a directory because its process was killed amid it.
func sweepTemps(dir string, now time.Time) {
	paths, _ := filepath.Glob(filepath.Join(dir, tempFile)) // fails for bad patterns only
	for _, path := range paths {
		if at, err := os.Lstat(path); err == nil && at.Mode().IsRegular() && now.Sub(at.ModTime()) > leftFor {
			_ = os.Remove(path) // or the next process does
		}
	}
}

// replace writes a file in one go: a crash leaves the old one or the new one.
func replace(dir, path string, b []byte) (err error) {
	t, err := os.CreateTemp(dir, tempFile) // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = t.Close()
			_ = os.Remove(t.Name())
		}
	}()
	if _, err = t.Write(b); err != nil {
		return err
	}
	if err = t.Sync(); err != nil {
		return err
	}
	if err = t.Close(); err != nil {
		return err
	}
	if err = os.Rename(t.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir has a rename outlive a loss of power.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, fs.ErrInvalid) {
		return err
	}
	return nil
}

// fileName is a document's name as one of a file: what file systems, or we, take for something else is written as %XX.
func fileName(name string) string {
	var b strings.Builder
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-', c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// docName reverses fileName; ok is false for other files.
func docName(file string) (name string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(file); i++ {
		if file[i] != '%' {
			b.WriteByte(file[i])
			continue
		}
		if i+3 > len(file) {
			return "", false
		}
		c, err := strconv.ParseUint(file[i+1:i+3], 16, 8)
		if err != nil {
			return "", false
		}
		b.WriteByte(byte(c))
		i += 2
	}
	return b.String(), !strings.HasPrefix(file, ".") && fileName(b.String()) == file
}

// Watch implements Store. It looks at the directory until stop is called.
func (f *Files) Watch(kind string) (changes <-chan struct{}, stop func()) {
	c, forget := f.watchers.add(kind)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.follow(ctx, kind)
	}()
	return c, func() {
		forget()
		cancel()
		<-done
	}
}

// follow tells of changes that other processes make.
func (f *Files) follow(ctx context.Context, kind string) {
	dir := filepath.Join(f.dir, kind)
	f.sweep(kind)
	var events <-chan dirwatch.Event
	var notify *dirwatch.Watcher // none before there is something to watch: systems grant few; without one looking has to do
	defer func() {
		if notify != nil {
			notify.Close()
		}
	}()
	t := time.NewTicker(dirLook)
	defer t.Stop()
	var seen time.Time
	for first := true; ; first = false {
		if _, err := os.Stat(dir); err == nil && notify == nil {
			if n, err := dirwatch.New(); err == nil {
				notify, events = n, n.Events()
			}
		}
		if notify != nil {
			_ = notify.Add(dir) // again is harmless; absent: the next look finds it
		}
		at, err := os.Stat(dir)
		if err == nil && !at.ModTime().Equal(seen) || first { // at first: what changed before anybody looked
			f.watchers.tell(kind)
		}
		if err == nil {
			seen = at.ModTime()
		}
	wait:
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				break wait
			case e := <-events:
				if e.Lost || !strings.HasPrefix(filepath.Base(e.Path), ".") {
					f.watchers.tell(kind)
				}
			}
		}
	}
}
