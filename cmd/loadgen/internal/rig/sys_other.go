//go:build !linux

package rig

import (
	"errors"
	"os"
	"syscall"
)

func ownGroup() *syscall.SysProcAttr { return nil }

func signalGroup(pid int, sig syscall.Signal) {
	if p, err := os.FindProcess(pid); err == nil {
		_ = p.Signal(sig)
	}
}

// RaiseFileLimit is implemented on Linux only, as are the readings that a benchmark needs.
func RaiseFileLimit() (uint64, error) { return 0, errors.New("benchmarks run on Linux only") }
