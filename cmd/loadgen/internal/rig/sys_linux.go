package rig

import (
	"fmt"
	"syscall"
)

// ownGroup puts a child into its own process group, so that a Ctrl-C at the terminal reaches only the
// load generator, which then stops its children in order; should it be killed instead, they go with it.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

// signalGroup signals the process group led by pid, which must be one that this package made.
func signalGroup(pid int, sig syscall.Signal) { _ = syscall.Kill(-pid, sig) }

// RaiseFileLimit sets the limit of open files to the hard limit, for this process and, since the Go
// runtime keeps an explicitly set limit across exec, for those it starts. It returns the limit.
func RaiseFileLimit() (uint64, error) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("limit of open files: %w", err)
	}
	l.Cur = l.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("raise the limit of open files to %d: %w", l.Max, err)
	}
	return l.Cur, nil
}
