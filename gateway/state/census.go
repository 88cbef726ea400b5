package state

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Census is who of the processes that share a directory of one machine lives. Each holds the lock of a file of its own for as long as it does; the
// system gives that back however it ends, kill -9 included. The file names the machine: a directory that was copied, or lies on a network, says
// nothing of processes elsewhere.
type Census struct{ dir string }

func newCensus(dir string) Census { return Census{filepath.Join(dir, "alive")} }

// path is a process's file, "" where there is none.
func (c Census) path(id string) string {
	if c.dir == "" || !locks || id == "" || len(id) > maxName || strings.ContainsFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9')
	}) {
		return ""
	}
	return filepath.Join(c.dir, id)
}

// Alive says that the process of that name is there, until release or its end, after which it is Dead until Bury. Names are of letters and digits, and never used twice.
func (c Census) Alive(id string) (release func(), err error) {
	path := c.path(id)
	if path == "" {
		return nil, ErrNowhere
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	ok, err := tryLock(f)
	if err == nil && !ok {
		err = fmt.Errorf("%s is another's", path)
	}
	if err == nil {
		_, err = f.WriteString(machine())
	}
	if err != nil {
		if ok {
			_ = os.Remove(path) // it says nothing
		}
		_ = f.Close()
		return nil, err
	}
	return func() {
		unlock(f)
		_ = f.Close()
	}, nil
}

// machine names the one that this process runs on, "" where it has no name.
func machine() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}

// Dead tells whether the process of that name was one of this directory's, and is no more; false where that is not known.
func (c Census) Dead(id string) bool {
	path := c.path(id)
	if path == "" {
		return false
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	if on, err := io.ReadAll(f); err != nil || len(on) == 0 || string(on) != machine() {
		return false
	}
	ok, err := tryLock(f)
	if ok && err == nil {
		unlock(f)
	}
	return ok && err == nil
}

const (
	// deadFor is after how long it is forgotten that a process was there which nobody has asked for.
	deadFor = 24 * time.Hour
	// strangeFor is after how long one is that began on another machine, or under another name of this one as each container has: of it nobody
	// here finds out whether it lives, and that it is forgotten changes no more than how soon its end is known there.
	strangeFor = 30 * 24 * time.Hour
)

// strange tells whether a file is not of a process of this machine, or of one that was killed before it could say.
func (c Census) strange(id string) bool {
	path := c.path(id)
	if path == "" {
		return false
	}
	on, err := os.ReadFile(path)
	return err == nil && string(on) != machine()
}

// Bury forgets a dead process, and those that began long ago. What is not there or lives is left alone.
func (c Census) Bury(id string) {
	files, _ := os.ReadDir(c.dir) // without it there is nothing to bury
	for _, f := range files {
		at, err := f.Info()
		if err != nil || f.Name() != id && time.Since(at.ModTime()) < deadFor {
			continue
		}
		if c.Dead(f.Name()) || time.Since(at.ModTime()) > strangeFor && c.strange(f.Name()) {
			_ = os.Remove(filepath.Join(c.dir, f.Name()))
		}
	}
}
