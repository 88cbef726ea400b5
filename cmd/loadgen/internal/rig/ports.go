package rig

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
)

// ports hands out loopback ports below the kernel's range for outgoing connections: one from within
// could be taken by a client between its choice and its use.
type ports struct {
	mu    sync.Mutex // guards at
	at    int
	first int
	last  int
}

// defaultEphemeral is the lower end of net.ipv4.ip_local_port_range on Linux.
const defaultEphemeral = 32768

// newPorts starts at a place that differs between processes, so that two benchmarks at once do not
// try the same ports in step.
func newPorts() ports {
	last := defaultEphemeral
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if f := strings.Fields(string(b)); len(f) == 2 {
			if n, err := strconv.Atoi(f[0]); err == nil && n > 12000 && n <= 65535 {
				last = n
			}
		}
	}
	first := last - 10000
	return ports{first: first, last: last, at: first + os.Getpid()*37%10000}
}

func (p *ports) next() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range p.last - p.first {
		if p.at++; p.at >= p.last {
			p.at = p.first
		}
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(p.at))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			return "", fmt.Errorf("free %s: %w", addr, err)
		}
		return addr, nil
	}
	return "", errors.New("no free loopback port")
}
