//go:build !linux

package dirwatch

import (
	"fmt"
	"sync"

	"github.com/fsnotify/fsnotify"
)

// Watcher watches directories. Its methods may be called from any goroutine.
type Watcher struct {
	notify *fsnotify.Watcher
	events chan Event
	closed chan struct{}
	done   chan struct{}
	once   sync.Once
}

// New returns a Watcher of nothing yet, which is to be closed. It fails where the system grants no more.
func New() (*Watcher, error) {
	n, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch directories: %w", err)
	}
	w := &Watcher{notify: n, events: make(chan Event), closed: make(chan struct{}), done: make(chan struct{})}
	go w.read()
	return w, nil
}

// Events is where changes come, each once. It is never closed.
func (w *Watcher) Events() <-chan Event { return w.events }

// Add watches a directory, and what is now at its path where that was another one before; again is harmless. The error is that of the
// system: the directory is absent, or it grants no more.
func (w *Watcher) Add(dir string) error { return w.notify.Add(dir) }

// Remove ends the watch of a directory, if there is one.
func (w *Watcher) Remove(dir string) { _ = w.notify.Remove(dir) } // fails where there is none

// List returns the directories that are watched.
func (w *Watcher) List() []string { return w.notify.WatchList() }

// Close ends all watches, and returns when nothing runs any more.
func (w *Watcher) Close() {
	w.once.Do(func() {
		close(w.closed)
		_ = w.notify.Close()
	})
	<-w.done
}

// read takes events in until Close.
func (w *Watcher) read() {
	defer close(w.done)
	for {
		var e Event
		select {
		case n, ok := <-w.notify.Events:
			if !ok {
				return
			}
			if n.Op == fsnotify.Chmod {
				continue
			}
			e.Path = n.Name
		case _, ok := <-w.notify.Errors: // such as an overflow
			if !ok {
				return
			}
			e.Lost = true
		}
		select {
		case w.events <- e:
		case <-w.closed:
			return
		}
	}
}
