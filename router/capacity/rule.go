package capacity

import (
	"strings"

	"headrace/router/endpoint"
)

// Rule is what an operator expects of some endpoints. The zero value of a condition fits every endpoint.
type Rule struct {
	Host     string // id, exact or with "*" at the end
	GPU      string // by any of its names
	GPUCount int
	Model    string // id that the endpoint serves, exact or with "*" at the end

	Expect Prior // its zero fields say nothing
}

// Rules are looked through in order; of each figure the first that says it counts. A nil Rules is the catalogue alone.
type Rules []Rule

// Lookup returns what to expect of an endpoint: what the rules say, the rest as Lookup.
func (rs Rules) Lookup(ep *endpoint.Endpoint) Prior {
	var said Prior
	fits := false
	for i := range rs {
		if r := &rs[i]; r.fits(ep) {
			fits = true
			first(&said.ITLSeconds, r.Expect.ITLSeconds)
			first(&said.Slope, r.Expect.Slope)
			first(&said.TTFTSeconds, r.Expect.TTFTSeconds)
			first(&said.PrefillTokensPerSecond, r.Expect.PrefillTokensPerSecond)
			if said.MaxNumSeqs == 0 {
				said.MaxNumSeqs = r.Expect.MaxNumSeqs
			}
		}
	}
	p := Lookup(ep)
	if !fits {
		return p
	}
	first(&said.ITLSeconds, p.ITLSeconds)
	first(&said.Slope, p.Slope)
	first(&said.TTFTSeconds, p.TTFTSeconds)
	first(&said.PrefillTokensPerSecond, p.PrefillTokensPerSecond)
	if said.MaxNumSeqs == 0 || ep.MaxNumSeqs > 0 {
		said.MaxNumSeqs = p.MaxNumSeqs
	}
	said.Source = "config; the rest " + p.Source
	return said
}

func first(v *float64, next float64) {
	if *v == 0 {
		*v = next
	}
}

func (r *Rule) fits(ep *endpoint.Endpoint) bool {
	if r.Host != "" && !matches(r.Host, string(ep.ID)) || r.GPUCount > 0 && r.GPUCount != max(1, ep.Hardware.GPUCount) {
		return false
	}
	if r.GPU != "" && !strings.EqualFold(r.GPU, ep.Hardware.GPU) {
		want, known := FindGPU(r.GPU)
		has, ok := FindGPU(ep.Hardware.GPU)
		if !known || !ok || want.Name != has.Name {
			return false
		}
	}
	if r.Model == "" {
		return true
	}
	for i := range ep.Served {
		if matches(r.Model, ep.Served[i].Name) {
			return true
		}
	}
	return false
}

// matches tells whether name is what pattern names, exactly or with "*" at its end.
func matches(pattern, name string) bool {
	if begin, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, begin)
	}
	return pattern == name
}
