package experiments

import (
	"slices"

	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/experiment"
)

// Pools are the parts of models' hosts that the arms of trials are served by, and for each model the part that may serve whatever finds no
// room there. A host that only arms that are tried name, of whichever experiment on its model, is in theirs and in no other.
func Pools(trials []Trial) []router.Pool {
	on := trialsOn(trials)
	var ps []router.Pool
	for _, t := range trials {
		for i := range t.Spec.Arms {
			a := &t.Spec.Arms[i]
			p := router.Pool{Name: a.Pool(), Label: a.Label(), Model: t.Spec.Model, As: t.Spec.Model}
			if a.Model != "" {
				p.Model = a.Model
			}
			if p.Holds = on[p.Model].common; a.Hosts != nil {
				p.Holds = a.Hosts.Holds
			}
			p.Policy, _ = router.ParsePolicy(a.Policy) // the config knows its words
			ps = append(ps, p)
		}
		if m := t.Spec.Model; !slices.ContainsFunc(ps, func(p router.Pool) bool { return p.Name == t.Spec.Rest() }) {
			ps = append(ps, router.Pool{Name: t.Spec.Rest(), Label: "no arm that is tried", Model: m, As: m, Holds: on[m].common})
		}
	}
	return ps
}

// claims are what arms of the experiments on a model say of its hosts.
type claims struct {
	controls, tried []*experiment.Selector
}

// trialsOn gathers them by model. An arm of another model claims none of that one's: its own callers use them as ever.
func trialsOn(trials []Trial) map[string]*claims {
	on := map[string]*claims{}
	for _, t := range trials {
		c := on[t.Spec.Model]
		if c == nil {
			c = &claims{}
			on[t.Spec.Model] = c
		}
		for i := range t.Spec.Arms {
			switch a := &t.Spec.Arms[i]; {
			case a.Hosts == nil || a.Model != "" && a.Model != t.Spec.Model:
			case i == 0:
				c.controls = append(c.controls, a.Hosts)
			default:
				c.tried = append(c.tried, a.Hosts)
			}
		}
	}
	return on
}

// common tells whether a host may serve everybody: no arm that is tried names it, or a control does too. It does of a nil claims.
func (c *claims) common(ep *endpoint.Endpoint, served string) bool {
	names := func(s *experiment.Selector) bool { return s.Holds(ep, served) }
	return c == nil || !slices.ContainsFunc(c.tried, names) || slices.ContainsFunc(c.controls, names)
}
