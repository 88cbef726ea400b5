package redistest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"testing"
)

// Port returns a port of loopback for a server that has to be told its own: nobody listens there, and nobody is given it meanwhile, since it is none
// of those that the system gives away by itself.
func Port(t testing.TB) int {
	t.Helper()
	least, end := 10_000, 32_768
	var low, high int
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if _, err := fmt.Sscan(string(b), &low, &high); err == nil && low >= 2*least {
			end = low
		}
	}
	for range 100 {
		port := least + rand.IntN(end-least) //nolint:gosec // a test's
		ln, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port))
		if err == nil {
			_ = ln.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// Address is one of loopback, with such a port.
func Address(t testing.TB) string {
	t.Helper()
	return fmt.Sprint("127.0.0.1:", Port(t))
}
