package state

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Version tells two states of one document apart. 0 is that of one that does not exist. It grows with each Put, is never used twice for
// one name, and means nothing else; it is below 2^53, so that JSON keeps it whole.
type Version uint64

// Doc is one document. Nobody changes Body.
type Doc struct {
	Version Version
	Body    []byte
}

// Store keeps small documents that replicas share or that outlive the process, such as keys and experiments: Redis where there is one,
// else a directory, else memory. Its methods are for everything but the path of a request: callers keep what they need of it in memory,
// and load it again when Watch says so.
//
// An error that is neither ErrConflict nor about a name says that the store did not answer: what was known before stays true.
type Store interface {
	// Load returns all documents of a kind by name, none when there are none. The caller owns the map.
	Load(ctx context.Context, kind string) (map[string]Doc, error)
	// Put writes a document if it still has the version old, 0 for one that must not exist, and returns its new version. The error is
	// ErrConflict when somebody else has written or deleted it meanwhile: then load it, and decide anew.
	Put(ctx context.Context, kind, name string, old Version, body []byte) (Version, error)
	// Delete deletes a document if it still has the version old. The error is ErrConflict likewise.
	Delete(ctx context.Context, kind, name string, old Version) error
	// Watch says on changes that documents of the kind may have changed, by whomever. One word may stand for many changes, and a word may
	// come without any. stop ends it, and does not close changes.
	Watch(kind string) (changes <-chan struct{}, stop func())
}

// ErrConflict says that a document is not as it was when it was read.
var ErrConflict = errors.New("somebody else has changed it meanwhile")

// MaxBody is the size of the largest document, in bytes.
const MaxBody = 1 << 20

const maxName = 80 // bytes: three times that is still a file name

// checkDoc tells whether a document may go by these names.
func checkDoc(kind, name string, body []byte) error {
	if err := checkKind(kind); err != nil {
		return err
	}
	switch {
	case name == "" || len(name) > maxName:
		return fmt.Errorf("document %s: its name has %d bytes: 1 to %d are allowed", kind, len(name), maxName)
	case len(body) > MaxBody:
		return fmt.Errorf("document %s %q: it has %d bytes, more than %d", kind, name, len(body), MaxBody)
	}
	return nil
}

// checkKind tells whether a kind of documents or events may go by this name: it is our own, and part of keys and file names.
func checkKind(kind string) error {
	if kind == "" || len(kind) > 32 {
		return fmt.Errorf("kind %q: 1 to 32 characters are allowed", kind)
	}
	for _, c := range kind {
		if (c < 'a' || c > 'z') && c != '-' {
			return fmt.Errorf("kind %q: only a to z and - are allowed", kind)
		}
	}
	return nil
}

// newer returns the version that follows old: microseconds of the clock, so that it is new also to those who knew a document of that name
// that was deleted.
func newer(old Version, now time.Time) Version {
	return max(old+1, Version(max(now.UnixMicro(), 1))) //nolint:gosec // positive
}

// watchers are those who want to know of changes.
type watchers struct {
	mu  sync.Mutex // guards all
	all map[*watcher]struct{}
}

type watcher struct {
	kind string
	c    chan struct{}
}

func (w *watchers) add(kind string) (changes <-chan struct{}, stop func()) {
	one := &watcher{kind, make(chan struct{}, 1)}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = map[*watcher]struct{}{}
	}
	w.all[one] = struct{}{}
	return one.c, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.all, one)
	}
}

// tell says that a kind has changed, "" for all of them.
func (w *watchers) tell(kind string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for one := range w.all {
		if kind != "" && one.kind != kind {
			continue
		}
		select {
		case one.c <- struct{}{}:
		default: // it has been told, and has not looked yet
		}
	}
}
