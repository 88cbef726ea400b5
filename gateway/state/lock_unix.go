//go:build unix

package state

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// locks tells whether tryLock tells processes apart.
const locks = true

// tryLock takes the file's lock, which processes share; ok is false while another has it.
func tryLock(f *os.File) (ok bool, err error) {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, unix.EINTR):
			return false, err
		}
	}
}

// unlock gives a file's lock back, also where a process that is being started has the file for a moment.
func unlock(f *os.File) { _ = unix.Flock(int(f.Fd()), unix.LOCK_UN) }
