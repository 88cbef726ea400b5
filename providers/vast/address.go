package vast

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// address is where a port of a container is reached. It is a value with an age and no identity: it changes with restarts,
// and may be another tenant's tomorrow.
type address struct {
	ip    netip.Addr
	port  int // of the machine
	inner int // of the container
}

// key names the place for comparing.
func (a address) key() netip.AddrPort { return netip.AddrPortFrom(a.ip, uint16(a.port)) } //nolint:gosec // checked when read

// url fills in the pattern "http://{ip}:{port}".
func (a address) url(pattern string) string {
	ip := a.ip.String()
	if a.ip.Is6() {
		ip = "[" + ip + "]"
	}
	return strings.NewReplacer("{ip}", ip, "{port}", strconv.Itoa(a.port)).Replace(pattern)
}

// publicIP reads public_ipaddr, which may have blanks, a line break or brackets around it.
func (r *row) publicIP() (netip.Addr, bool) {
	for _, f := range strings.FieldsFunc(string(r.IP), func(c rune) bool { return c <= ' ' || c == ',' }) {
		ip, err := netip.ParseAddr(strings.Trim(f, "[]"))
		if err == nil && !ip.IsUnspecified() && ip.Zone() == "" {
			return ip.Unmap(), true
		}
	}
	return netip.Addr{}, false
}

// others are ports of Vast.ai's images on which no model is served: SSH, portal, model UI, Jupyter, Ray.
var others = []int{22, 1111, 7860, 8080, 8265}

const maxAddresses = 8 // asked of one instance that does not say where its model is

// addresses returns where the instance's model may be, likeliest first: at the operator's port alone if there is one, else at
// the one that answered before, 8000, those its settings ask for, and the rest. Vast.ai's own side ports come last.
func (r *row) addresses(ports portMap, want, last int) []address {
	ip, ok := r.publicIP()
	if !ok {
		return nil
	}
	asked := r.askedPorts()
	rank := func(inner int) int {
		switch {
		case inner == last:
			return 0
		case inner == 8000:
			return 1
		case slices.Contains(asked, inner) && !slices.Contains(others, inner):
			return 2
		case !slices.Contains(others, inner):
			return 3
		}
		return 4
	}
	var out []address
	for _, m := range ports.tcp {
		inner, bound := m.inner, m.bound
		if want != 0 && inner != want || inner == 22 && want != 22 {
			continue
		}
		out = append(out, address{ip, pickBinding(bound, ip), inner})
	}
	slices.SortFunc(out, func(a, b address) int { return cmp.Or(rank(a.inner)-rank(b.inner), a.inner-b.inner) })
	return out
}

// pickBinding prefers what is bound for the address's own family: docker lists 0.0.0.0 and its twin "::", whose port may differ.
func pickBinding(bound []binding, ip netip.Addr) int {
	best, bestRank := bound[0].port, 3
	for _, b := range bound {
		rank := 1
		h, err := netip.ParseAddr(b.hostIP)
		switch {
		case err != nil: // "" is any address
			rank = 1
		case h.IsUnspecified() && h.Is4() == ip.Is4():
			rank = 0
		case h.Is4() != ip.Is4():
			rank = 2
		}
		if rank < bestRank {
			best, bestRank = b.port, rank
		}
	}
	return best
}

// askedPorts are the container's ports that the instance's settings name: "-p 8000:8000" in its environment, --port in its arguments.
func (r *row) askedPorts() []int {
	var out []int
	add := func(s string) {
		if n, err := strconv.Atoi(s); err == nil {
			out = append(out, n)
		}
	}
	for _, p := range r.Env {
		f := strings.Fields(p[0])
		for i := 0; i+1 < len(f); i++ {
			if f[i] != "-p" {
				continue
			}
			spec, proto, _ := strings.Cut(f[i+1], "/")
			if proto == "" || proto == "tcp" {
				add(spec[strings.LastIndexByte(spec, ':')+1:])
			}
		}
	}
	add(r.Args.flag("--port"))
	return out
}
