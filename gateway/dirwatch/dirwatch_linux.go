package dirwatch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	changes = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MODIFY | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

	headBytes = unix.SizeofInotifyEvent
	bufBytes  = 4096 // several events; one has up to 272
)

// Watcher watches directories. Its methods may be called from any goroutine.
type Watcher struct {
	file   *os.File
	raw    syscall.RawConn
	events chan Event
	closed chan struct{}
	done   chan struct{}
	once   sync.Once

	mu   sync.Mutex // guards dirs
	dirs map[string]int32
}

// New returns a Watcher of nothing yet, which is to be closed. It fails where the system grants no more.
func New() (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch directories: %w", os.NewSyscallError("inotify_init1", err))
	}
	w := &Watcher{
		file: os.NewFile(uintptr(fd), "inotify"), events: make(chan Event), closed: make(chan struct{}), done: make(chan struct{}), //nolint:gosec // a descriptor
		dirs: map[string]int32{},
	}
	if w.raw, err = w.file.SyscallConn(); err != nil {
		_ = w.file.Close()
		return nil, fmt.Errorf("watch directories: %w", err)
	}
	go w.read()
	return w, nil
}

// Events is where changes come, each once. It is never closed.
func (w *Watcher) Events() <-chan Event { return w.events }

// Add watches a directory, and what is now at its path where that was another one before; again is harmless. The error is that of the
// system: the directory is absent, or it grants no more.
func (w *Watcher) Add(dir string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var wd int
	err := w.control("inotify_add_watch", func(fd int) (err error) {
		wd, err = unix.InotifyAddWatch(fd, dir, changes)
		return err
	})
	if err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	if old, ok := w.dirs[dir]; ok && old != int32(wd) { //nolint:gosec // the kernel's numbers have 31 bits
		w.drop(dir)
	}
	w.dirs[dir] = int32(wd) //nolint:gosec // as above
	return nil
}

// Remove ends the watch of a directory, if there is one.
func (w *Watcher) Remove(dir string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drop(dir)
}

// drop forgets a directory. The lock is held.
func (w *Watcher) drop(dir string) {
	wd, ok := w.dirs[dir]
	delete(w.dirs, dir)
	if !ok || len(w.names(wd)) > 0 {
		return
	}
	_ = w.control("inotify_rm_watch", func(fd int) error { // fails where it has gone with its directory
		_, err := unix.InotifyRmWatch(fd, uint32(wd)) //nolint:gosec // as the kernel gave it
		return err
	})
}

// names returns the paths by which a directory is watched: it may have several. The lock is held.
func (w *Watcher) names(wd int32) (dirs []string) {
	for dir, is := range w.dirs {
		if is == wd {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// List returns the directories that are watched, in order; those that are gone not any more.
func (w *Watcher) List() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.dirs))
}

// Close ends all watches, and returns when nothing runs any more.
func (w *Watcher) Close() {
	w.once.Do(func() {
		close(w.closed)
		_ = w.file.Close()
	})
	<-w.done
}

// control calls f with the descriptor, which is not closed meanwhile.
func (w *Watcher) control(name string, f func(fd int) error) error {
	var err error
	if cerr := w.raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil { //nolint:gosec // a descriptor
		return cerr
	}
	return os.NewSyscallError(name, err)
}

// read takes events in until Close.
func (w *Watcher) read() {
	defer close(w.done)
	buf := make([]byte, bufBytes)
	for {
		n, err := w.file.Read(buf)
		if err != nil && errors.Is(err, fs.ErrClosed) {
			return
		}
		if err != nil { // there is none that passes
			w.tell(Event{Lost: true})
			return
		}
		if !w.take(buf[:n]) {
			return
		}
	}
}

// take tells of the events in b; false after Close.
func (w *Watcher) take(b []byte) bool {
	for len(b) >= headBytes {
		wd, mask := int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:]) //nolint:gosec // -1 is one of its values
		end := headBytes + int(binary.NativeEndian.Uint32(b[12:]))
		if end > len(b) {
			break
		}
		name, _, _ := bytes.Cut(b[headBytes:end], []byte{0})
		b = b[end:]
		if mask&unix.IN_Q_OVERFLOW != 0 {
			if !w.tell(Event{Lost: true}) {
				return false
			}
			continue
		}
		w.mu.Lock()
		dirs := w.names(wd)
		if mask&unix.IN_IGNORED != 0 { // the watch is over
			for _, dir := range dirs {
				delete(w.dirs, dir)
			}
			dirs = nil
		}
		w.mu.Unlock()
		for _, dir := range dirs {
			if !w.tell(Event{Path: filepath.Join(dir, string(name))}) {
				return false
			}
		}
	}
	return true
}

// tell hands an event on; false after Close.
func (w *Watcher) tell(e Event) bool {
	select {
	case w.events <- e:
		return true
	case <-w.closed:
		return false
	}
}
