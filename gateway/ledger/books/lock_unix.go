//go:build unix

package books

import (
	"errors"
	"os"
	"syscall"
)

// lock takes the file for this process alone, until what it returns is closed, or the process ends. The error is ErrTaken while another
// has it. Readers need no lock.
func lock(path string) (*os.File, error) {
	fd, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(fd.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil { //nolint:gosec // a handful
		_ = fd.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrTaken
		}
		return nil, err
	}
	return fd, nil
}
