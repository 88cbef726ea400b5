package experiment

import (
	"maps"
	"slices"
	"strings"

	"headrace/router/capacity"
	"headrace/router/endpoint"
)

// Selector describes hosts. A host is meant when it fits every list that holds something, and in each one of the patterns. Patterns may
// hold "*" for any text; upper and lower case are alike but in Served and Host.
type Selector struct {
	Host     []string // ids, such as vast:48738927
	Provider []string
	Served   []string // the model's id as the host knows it
	GPU      []string // by any of its names
	Region   []string
	Price    []string          // bases: per_hour, per_worker_second, per_token or unknown
	Tenure   []string          // interruptible, on_demand, serverless, per_token or unknown
	Labels   map[string]string // pattern by name
}

// String says in words which hosts are meant.
func (s *Selector) String() string {
	if s == nil {
		return "all hosts"
	}
	var parts []string
	for _, l := range []struct {
		name   string
		values []string
	}{
		{"id", s.Host}, {"provider", s.Provider}, {"served", s.Served}, {"gpu", s.GPU}, {"region", s.Region}, {"price", s.Price}, {"tenure", s.Tenure},
	} {
		if len(l.values) > 0 {
			parts = append(parts, l.name+" "+strings.Join(l.values, " or "))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Labels)) {
		parts = append(parts, "label "+name+" "+s.Labels[name])
	}
	if len(parts) == 0 {
		return "all hosts"
	}
	return "hosts of " + strings.Join(parts, ", ")
}

// Holds tells whether the host is meant, as the one that serves a model by that id. A nil Selector means all.
func (s *Selector) Holds(ep *endpoint.Endpoint, served string) bool {
	if s == nil {
		return true
	}
	for name, pattern := range s.Labels {
		if v, ok := ep.Labels[name]; !ok || !glob(strings.ToLower(pattern), strings.ToLower(v)) {
			return false
		}
	}
	return anyOf(s.Host, string(ep.ID), false) && anyOf(s.Provider, ep.Provider, true) && anyOf(s.Served, served, false) &&
		s.holdsGPU(ep.Hardware.GPU) && anyOf(s.Region, ep.Region, true) &&
		anyOf(s.Price, ep.Price.Basis.String(), true) && anyOf(s.Tenure, ep.Tenure.String(), true)
}

func (s *Selector) holdsGPU(name string) bool {
	if anyOf(s.GPU, name, true) {
		return true
	}
	g, known := capacity.FindGPU(name)
	return known && slices.ContainsFunc(s.GPU, func(p string) bool {
		want, ok := capacity.FindGPU(p) // "A100*" is every one of them, and no name
		return ok && want.Name == g.Name && !strings.Contains(p, "*")
	})
}

// anyOf tells whether one of the patterns fits; none at all fits everything.
func anyOf(patterns []string, s string, fold bool) bool {
	if len(patterns) == 0 {
		return true
	}
	if fold {
		s = strings.ToLower(s)
	}
	return slices.ContainsFunc(patterns, func(p string) bool {
		if fold {
			p = strings.ToLower(p)
		}
		return glob(p, s)
	})
}

// glob tells whether s is what the pattern says, in which "*" stands for any text.
func glob(pattern, s string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	if !strings.HasPrefix(s, head) {
		return false
	}
	s = s[len(head):]
	for {
		part, next, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(s, part)
		}
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s, rest = s[i+len(part):], next
	}
}
