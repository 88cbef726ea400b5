//go:build unix

package main

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"headrace/gateway/config"
	"headrace/providers/fakecloud"
)

// handOver opens a socket as systemd does and returns its address and a descriptor of its own, which whoever inherits it closes.
func handOver(t *testing.T, network, address string) (string, int) {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	f, err := ln.(interface {
		syscall.Conn
	}).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	if err := f.Control(func(p uintptr) { fd, err = syscall.Dup(int(p)) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ln.Addr().String(), fd
}

func listenEnv(pid int, fds string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := map[string]string{"LISTEN_PID": strconv.Itoa(pid), "LISTEN_FDS": fds}[name]
		return v, ok
	}
}

// TestInheritedSocket serves on a socket that was open before the gateway was there, and leaves it open.
func TestInheritedSocket(t *testing.T) {
	address, fd := handOver(t, "tcp", "127.0.0.1:0")
	early, err := net.Dial("tcp", address) // waits in the kernel until somebody is there
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	given, err := inherited(listenEnv(7, "1"), 7, fd)
	if err != nil {
		t.Fatal(err)
	}
	h := startHost(t, fakecloud.HostConfig{Models: []string{"m"}})
	yaml := strings.Replace(fmt.Sprintf(appYAML, h.URL()+"/v1"), `"127.0.0.1:0"`, strconv.Quote(address), 1)
	r := startApp(t, t.TempDir(), yaml, nil, given...)
	if got := r.app.listeners[0].Addr().String(); got != address {
		t.Fatalf("it listens on %s", got)
	}
	if _, err := io.WriteString(early, "GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(early); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200") {
		t.Fatalf("%v: %s", err, answer)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	later, err := net.Dial("tcp", address) // the next gateway's
	if err != nil {
		t.Fatalf("the socket is closed to callers between two gateways: %v", err)
	}
	later.Close()
}

func TestInheritedNone(t *testing.T) {
	for name, tc := range map[string]struct {
		env  func(string) (string, bool)
		want string
	}{
		"nothing":            {noEnv, ""},
		"another process'":   {listenEnv(8, "1"), ""},
		"no number":          {listenEnv(7, "x"), `LISTEN_FDS="x"`},
		"no number at all":   {listenEnv(7, ""), `LISTEN_FDS=""`},
		"none for us":        {listenEnv(7, "0"), ""},
		"a closed one":       {listenEnv(7, "1"), "socket 0 of systemd"},
		"more than there is": {listenEnv(7, "99"), `LISTEN_FDS="99"`},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := inherited(tc.env, 7, 1<<20) // nothing is open there
			if len(s) > 0 || (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, %v; want an error about %q", s, err, tc.want)
			}
		})
	}
	_, fd := handOver(t, "unix", t.TempDir()+"/s")
	if _, err := inherited(listenEnv(7, "1"), 7, fd); err == nil || !strings.Contains(err.Error(), "not TCP") {
		t.Errorf("a Unix socket: %v", err)
	}
}

// TestInheritedAddresses: which socket serves which address of the config.
func TestInheritedAddresses(t *testing.T) {
	for name, tc := range map[string]struct {
		socket string
		config func(port string) string
		taken  bool
	}{
		"the same":              {"127.0.0.1:0", func(p string) string { return "127.0.0.1:" + p }, true},
		"every interface":       {"0.0.0.0:0", func(p string) string { return ":" + p }, true},
		"every interface again": {"[::]:0", func(p string) string { return "0.0.0.0:" + p }, true},
		"another port":          {"127.0.0.1:0", func(string) string { return "127.0.0.1:0" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", tc.socket)
			if err != nil {
				t.Skip(err)
			}
			defer ln.Close()
			_, port, _ := net.SplitHostPort(ln.Addr().String())
			s := sockets{ln}
			got, err := s.listen(tc.config(port))
			if err != nil {
				t.Fatal(err)
			}
			defer got.Close()
			if (got == ln) != tc.taken || (s.left() == nil) != tc.taken {
				t.Errorf("taken %v, left %v", got == ln, s.left())
			}
		})
	}
}

// TestInheritedLeftOver: a socket that the config does not have would take connections that nobody answers.
func TestInheritedLeftOver(t *testing.T) {
	address, fd := handOver(t, "tcp", "127.0.0.1:0")
	given, err := inherited(listenEnv(7, "1"), 7, fd)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Parse("a.yaml", fmt.Appendf(nil, appYAML, "http://127.0.0.1:1"), config.Overrides{}, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newApp(cfg, io.Discard, given...); err == nil || !strings.Contains(err.Error(), address) {
		t.Errorf("newApp: %v, want an error that names %s", err, address)
	}
}
