package config

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

func (c *Config) checkAddresses() []Problem {
	var problems []Problem
	type binding struct{ path, host string }
	taken := make(map[string][]binding) // by port
	address := func(path, addr string) (ok, loopback bool) {
		host, port, m := splitAddress(addr)
		if m != nil {
			problems = append(problems, c.problem(path, c.shown(path, addr)+m.what, m.hint))
			return false, false
		}
		if port != "0" {
			other := slices.IndexFunc(taken[port], func(b binding) bool { return overlap(host, b.host) })
			if other >= 0 {
				problems = append(problems, c.problem(path, c.shown(path, addr)+"is taken by "+taken[port][other].path, "give each listener a port of its own"))
			}
			taken[port] = append(taken[port], binding{path, host})
		}
		return true, isLoopback(host)
	}
	open := func(path, key string, loopback bool) {
		if loopback || c.closed(key) || c.origin["allow_unauthenticated"].bad {
			return
		}
		problems = append(problems, c.problem(path, "can be reached from other machines, and nobody is asked for a key", "listen on 127.0.0.1, "+howToClose(key)))
	}
	for i := range c.Listen {
		path := c.listenerPath(i)
		if at := path + ".address"; c.given(at) {
			path = at
		} else if from := c.origin[path]; c.given(path) && !from.short {
			continue // a section without its address: reported as missing
		}
		if c.origin[path].bad {
			continue
		}
		if ok, loopback := address(path, c.Listen[i].Address); ok {
			open(path, "listen", loopback)
		}
	}
	if c.given("listen") && len(c.Listen) == 0 {
		problems = append(problems, c.problem("listen", "is an empty list", "name an address, or delete the line for 127.0.0.1:8080"))
	}
	switch {
	case c.Admin == "off":
	case c.origin["admin"].bad:
	default:
		if ok, loopback := address("admin", c.Admin); ok {
			open("admin", "admin", loopback)
		}
	}
	return problems
}

// howToClose says what else than loopback it takes for the addresses of "listen" or of "admin".
func howToClose(key string) string {
	if key == "admin" {
		return `give a key under "keys" the right "admin: true", or write "allow_unauthenticated: true" if that is meant; "admin: off" switches it off`
	}
	return `name "keys", write "require_key: true" to make them later, or "allow_unauthenticated: true" if that is meant`
}

// closed tells whether the addresses of "listen" or of "admin" may be reached from other machines.
func (c *Config) closed(key string) bool {
	if key == "admin" {
		return c.AllowUnauthenticated || slices.ContainsFunc(c.Keys, func(k Key) bool { return k.Admin && !k.Disabled })
	}
	return c.AllowUnauthenticated || c.RequireKey || len(c.Keys) > 0
}

// CheckBound finds what is wrong with c for a process that listens already, and goes on doing so wherever c says that it should: public are the
// addresses of "listen", admin that of "admin", nil for none. The error is a *Problems.
func (c *Config) CheckBound(public []net.Addr, admin net.Addr) error {
	var problems []Problem
	open := func(key string, addr net.Addr) {
		if c.closed(key) || loopbackOnly(addr) {
			return
		}
		problems = append(problems, c.problem(key, "leaves "+addr.String()+" open to other machines, which is in use until the next start, and nobody would be asked for a key",
			howToClose(key)+"; a new address takes a restart"))
	}
	for _, addr := range public {
		open("listen", addr)
	}
	if admin != nil {
		open("admin", admin)
	}
	return asError(problems)
}

// loopbackOnly tells whether nobody but this machine can reach an address that is listened on.
func loopbackOnly(addr net.Addr) bool {
	if addr.Network() == "unix" {
		return true
	}
	host, _, err := net.SplitHostPort(addr.String())
	return err == nil && isLoopback(host)
}

// splitAddress takes "host:port" apart; the host is in lower case and may be empty.
func splitAddress(s string) (host, port string, m *mistake) {
	const form = `write host:port, such as "127.0.0.1:8080"`
	if strings.Contains(s, "://") {
		return "", "", &mistake{"is a URL where host:port is due", "leave out the scheme; for HTTPS add tls: {cert: …, key: …}"}
	}
	if _, err := strconv.ParseUint(s, 10, 16); err == nil {
		return "", "", &mistake{"is a port without a host", form}
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		if strings.Count(s, ":") > 1 {
			return "", "", &mistake{"is not host:port", `put an IPv6 address in brackets, such as "[::1]:8080"`}
		}
		return "", "", &mistake{"is not host:port", form}
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", "", &mistake{"has no port from 0 to 65535", form}
	}
	bad := func(r rune) bool {
		return r != '.' && r != '-' && r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}
	if _, err := netip.ParseAddr(host); err != nil && strings.ContainsFunc(host, bad) {
		return "", "", &mistake{"has no host name or IP address in front of the port", form}
	}
	return strings.ToLower(host), port, nil
}

// overlap says whether one port cannot be listened on under both hosts.
func overlap(a, b string) bool {
	if a == b {
		return true
	}
	all := func(host, other string) bool {
		ip, err := netip.ParseAddr(other)
		return host == "" || host == "::" || host == "0.0.0.0" && (err != nil || ip.Is4())
	}
	return all(a, b) || all(b, a)
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}
