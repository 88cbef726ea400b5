package stats

import (
	"cmp"
	"math"
	"slices"
)

// Hosts of one kind are thought to differ by priorHostSD (log scale) as surely as if priorHosts more than one had been
// measured, for renters of GPUs know that they do.
const (
	priorHosts  = 4.0
	priorHostSD = 0.10
	leastOnHost = 5.0 // weight of requests, of a host that is measured
)

// hostSpread is a Spread with the variance of the difference that hosts explain.
type hostSpread struct {
	Spread
	variance float64
}

// hostSpread says what choosing hosts at random from those of a kind would add to the variance of arm k against the control. What
// both do on the same hosts adds nothing.
func (s *state) hostSpread(d *Design, k int, m Metric) hostSpread {
	type share struct{ arm, control float64 }
	shares := make(map[uint32]share, len(s.hosts))
	var wArm, wControl float64
	type group struct {
		arm  uint8
		kind uint32
	}
	groups := make(map[group][]*weighted)
	for i := range s.hosts {
		h := &s.hosts[i]
		w := &h.of[m]
		if w.w == 0 {
			continue
		}
		sh := shares[h.id]
		switch int(h.arm) {
		case k:
			sh.arm += w.w
			wArm += w.w
		case d.Control:
			sh.control += w.w
			wControl += w.w
		}
		shares[h.id] = sh
		if w.w >= leastOnHost {
			groups[group{h.arm, h.kind}] = append(groups[group{h.arm, h.kind}], w)
		}
	}
	out := hostSpread{Spread: Spread{Arm: 0, Control: 0, Low: Figure(math.NaN()), High: Figure(math.NaN())}}
	// Variance between hosts of the same kind and arm, less what sampling alone would give.
	ss, df := 0.0, 0.0
	for _, hosts := range groups {
		mean, noise := 0.0, 0.0
		for _, w := range hosts {
			y, v := w.mean()
			mean += y / float64(len(hosts))
			noise += v / float64(len(hosts))
		}
		for _, w := range hosts {
			y, _ := w.mean()
			ss += (y - mean) * (y - mean)
		}
		ss -= noise * float64(len(hosts)-1)
		df += float64(len(hosts) - 1)
	}
	dof := priorHosts + df
	between := (priorHosts*priorHostSD*priorHostSD + max(0, ss)) / dof
	out.SD = Figure(math.Expm1(math.Sqrt(between)))
	between *= dof / (dof - 2) // as of Student's distribution, for it is itself an estimate
	var armSq, controlSq, apart, shared float64
	for _, sh := range shares {
		a, b := sh.arm/wArm, sh.control/wControl
		if wArm == 0 || wControl == 0 {
			continue
		}
		armSq += a * a
		controlSq += b * b
		apart += (a - b) * (a - b)
		shared += min(a, b)
	}
	if armSq > 0 && controlSq > 0 {
		out.Arm, out.Control, out.Shared = Figure(1/armSq), Figure(1/controlSq), Figure(shared)
	}
	out.variance = between * apart
	out.Identifiable = shared >= 0.5 || (out.Arm >= 3 && out.Control >= 3)
	if len(shares) == 0 { // nobody tells hosts
		out.Identifiable = false
	}
	return out
}

// hostBlocks are the hosts of arm k, busiest first.
func (s *state) hostBlocks(k int) []HostBlock {
	var out []HostBlock
	for i := range s.hosts {
		h := &s.hosts[i]
		if int(h.arm) != k {
			continue
		}
		b := HostBlock{Host: h.id, Kind: h.kind, Requests: h.n}
		for m := range Metric(logMetrics) {
			mean, v := h.of[m].mean()
			se := math.Sqrt(v)
			b.Against[m] = Range{m.natural(mean), m.natural(mean - se), m.natural(mean + se)}
		}
		out = append(out, b)
	}
	slices.SortStableFunc(out, func(a, b HostBlock) int {
		return cmp.Or(cmp.Compare(b.Requests, a.Requests), cmp.Compare(a.Host, b.Host))
	})
	return out
}
