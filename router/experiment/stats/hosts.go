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
	// mostHostSD is as much as hosts of a kind can be believed to differ by, when an arm's hosts are all slower than the control's:
	// what is beyond is the arm's own. Offers of one GPU differ by a factor of 1.8 from end to end, which is a third less.
	mostHostSD = 0.20
	// mostSorted is how many times the variance within both halves that of all is, if normal figures were sorted into a lower and an
	// upper half on purpose (2.75, rounded up). Hosts that are alike within either arm and far apart between arms were not sorted.
	mostSorted = 3.0
	leastHosts = 2.5 // hosts on each side, those with little work counting less, by which hosts and model are told apart: three
)

// hostSpread is a Spread with the variance of the difference that hosts explain.
type hostSpread struct {
	Spread
	variance float64
}

// hostSpread says what choosing hosts at random from those of a kind would add to the variance of arm k against the control. What
// both do on the same hosts adds nothing.
func (s *state) hostSpread(d *Design, k int, m Metric) hostSpread {
	// Sorted, for the same figures have to give the same sums, whatever order hosts came in.
	hosts := make([]*host, 0, len(s.hosts))
	for i := range s.hosts {
		if s.hosts[i].of[m].w > 0 {
			hosts = append(hosts, &s.hosts[i])
		}
	}
	slices.SortFunc(hosts, func(a, b *host) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.arm, b.arm), cmp.Compare(a.id, b.id))
	})
	// Hosts of one arm differ by what hosts differ by. So do those of both together, if there is nothing but hosts: where somebody
	// put the slowest into one arm, only they tell how much that is.
	var within, together spreading
	var group, pair []*weighted
	for i, h := range hosts {
		if w := &h.of[m]; w.w >= leastOnHost {
			group = append(group, w)
			if int(h.arm) == k || int(h.arm) == d.Control {
				pair = append(pair, w)
			}
		}
		last := i+1 == len(hosts)
		if last || hosts[i+1].kind != h.kind || hosts[i+1].arm != h.arm {
			within.add(group)
			group = group[:0]
		}
		if last || hosts[i+1].kind != h.kind {
			together.add(pair)
			pair = pair[:0]
		}
	}
	between := max(within.variance(), min(together.variance(), mostSorted*within.variance(), mostHostSD*mostHostSD))
	out := hostSpread{Spread: Spread{Low: Figure(math.NaN()), High: Figure(math.NaN()), SD: Figure(math.Expm1(math.Sqrt(between)))}}
	between *= (priorHosts + within.df) / (priorHosts + within.df - 2) // as of Student's distribution, for it is itself an estimate

	// Where the work of both is, host by host.
	slices.SortFunc(hosts, func(a, b *host) int { return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.arm, b.arm)) })
	var arm, control weighted
	for _, h := range hosts {
		switch int(h.arm) {
		case k:
			arm.w, arm.w2 = arm.w+h.of[m].w, arm.w2+h.of[m].w2
		case d.Control:
			control.w, control.w2 = control.w+h.of[m].w, control.w2+h.of[m].w2
		}
	}
	if arm.w == 0 || control.w == 0 { // nobody tells hosts, or one of both has done nothing that is compared
		return out
	}
	var armSq, controlSq, apart, shared float64
	for i := 0; i < len(hosts); {
		var a, c float64
		id := hosts[i].id
		for ; i < len(hosts) && hosts[i].id == id; i++ {
			switch int(hosts[i].arm) {
			case k:
				a = hosts[i].of[m].w / arm.w
			case d.Control:
				c = hosts[i].of[m].w / control.w
			}
		}
		armSq += a * a
		controlSq += c * c
		apart += (a - c) * (a - c)
		shared += min(a, c)
	}
	out.Arm, out.Control, out.Shared = Figure(1/armSq), Figure(1/controlSq), Figure(shared)
	// By chance alone shares differ as well; that is in the variance of units already.
	apart = max(0, apart-(1-(armSq+controlSq)/2)*(arm.w2/(arm.w*arm.w)+control.w2/(control.w*control.w)))
	out.variance = between * apart
	out.Identifiable = shared >= 0.5 || (1/armSq >= leastHosts && 1/controlSq >= leastHosts)
	return out
}

// spreading is what hosts differ by within groups of like ones: a sum of squares and its degrees of freedom.
type spreading struct{ ss, df float64 }

// add takes in the hosts of a group, less what sampling alone would make them differ by.
func (p *spreading) add(hosts []*weighted) {
	if len(hosts) < 2 {
		return
	}
	n := float64(len(hosts))
	mean, noise := 0.0, 0.0
	for _, w := range hosts {
		y, v := w.mean()
		mean += y / n
		noise += v / n
	}
	for _, w := range hosts {
		y, _ := w.mean()
		p.ss += (y - mean) * (y - mean)
	}
	p.ss -= noise * (n - 1)
	p.df += n - 1
}

func (p *spreading) variance() float64 {
	return (priorHosts*priorHostSD*priorHostSD + max(0, p.ss)) / (priorHosts + p.df)
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
