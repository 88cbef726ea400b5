package gateway

import (
	"net"
	"testing"
)

// TestNetOf: whose an address is who has no key.
func TestNetOf(t *testing.T) {
	for of, want := range map[string]string{
		"192.0.2.7":           "192.0.2.7",
		"::ffff:192.0.2.7":    "192.0.2.7",
		"2001:db8:1:2:3:4::5": "2001:db8:1:2::",
		"2001:db8:1:2::9":     "2001:db8:1:2::",
		"::1":                 "::",
		"none":                "invalid IP",
	} {
		if got := netOf(net.ParseIP(of)).String(); got != want {
			t.Errorf("%s is %s's, want %s", of, got, want)
		}
	}
}
