// Package redistest starts real redis-servers for tests.
package redistest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// patience is how long a server may take to come up, on a busy machine.
const patience = time.Minute

// Server is a redis-server on a Unix socket, or on several ports of its own; it keeps nothing on disk. It is for one goroutine.
type Server struct {
	t    testing.TB
	path string // of the program
	dir  string
	args []string
	cmd  *exec.Cmd // nil while it is down
}

// Start starts a server, which ends with the test. args go behind those that say where it listens: a setting is two of them,
// "--maxmemory", "1mb". Where no redis-server is installed the test is skipped.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("no redis-server in PATH (Debian: apt-get install redis-server)")
	}
	dir, err := os.MkdirTemp("", "redis") //nolint:usetesting // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &Server{t: t, path: path, dir: dir, args: args}
	s.Start()
	t.Cleanup(s.Stop)
	return s
}

// URL is the server's address as state.Open and the config take it.
func (s *Server) URL() string { return "unix://" + s.Socket() }

// Socket is the path of its Unix socket.
func (s *Server) Socket() string { return filepath.Join(s.dir, "s") }

// Start starts the server again after Stop, empty and at the same address, and returns once it takes connections.
func (s *Server) Start() {
	s.t.Helper()
	s.cmd = exec.Command(s.path, append([]string{
		"--port", "0", "--unixsocket", s.Socket(), "--save", "", "--appendonly", "no", "--dir", s.dir,
	}, s.args...)...)
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		s.t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; <-time.After(5 * time.Millisecond) {
		if c, err := net.Dial("unix", s.Socket()); err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("redis-server has not come up within %v", patience)
		}
	}
}

// Stop kills the server, as a crash would: connections end, and what it held is lost. It may be called again.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // one that was stopped by SIGSTOP as well
	_ = s.cmd.Wait()
	s.cmd = nil
	_ = os.Remove(s.Socket())
}

// Signal sends the running server a signal: SIGSTOP has it hang, SIGCONT go on.
func (s *Server) Signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}
