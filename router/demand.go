package router

import (
	"slices"
	"strings"

	"headrace/router/endpoint"
)

// Demand is what a model, a key or a request asks of every host that may see the prompt. A host below it is never a
// candidate: not for a first try, a retry, nor anything else that carries a caller's words.
type Demand struct {
	Trust     endpoint.Trust // at least
	Encrypted bool           // the way to it is under TLS
	Regions   []string       // any of them, nil for anywhere: "US", "EU", "US-KS-2", a country, or the operator's own word
}

// Demanding tells whether d asks for anything.
func (d *Demand) Demanding() bool { return d.Trust > 0 || d.Encrypted || len(d.Regions) > 0 }

// Meets tells whether ep is all that d asks for. What is not known of a host is taken for what was not asked for.
func (d *Demand) Meets(ep *endpoint.Endpoint) bool {
	if ep.Trust < d.Trust || d.Encrypted && !ep.Encrypted() {
		return false
	}
	return len(d.Regions) == 0 || slices.ContainsFunc(d.Regions, func(r string) bool { return InRegion(ep.Region, r) })
}

// InRegion tells whether a host's region lies in the one that was asked for: they are equal but for case, the
// host's begins with it and "-" (US-KS-2 lies in US), or it is EU and the host's country is a member state
// (https://european-union.europa.eu/principles-countries-history/eu-countries_en).
func InRegion(region, want string) bool {
	if region == "" || want == "" {
		return false
	}
	if len(region) >= len(want) && strings.EqualFold(region[:len(want)], want) && (len(region) == len(want) || region[len(want)] == '-') {
		return true
	}
	country, _, _ := strings.Cut(region, "-")
	return strings.EqualFold(want, "EU") && len(country) == 2 && strings.Contains(memberStates, strings.ToUpper(country)+" ")
}

const memberStates = "AT BE BG HR CY CZ DK EE FI FR DE GR HU IE IT LV LT LU MT NL PL PT RO SK SI ES SE "

// unfit is why an endpoint cannot take a request, however well it is.
type unfit uint8

const (
	fit unfit = iota
	unfitRoute
	unfitMedia
	unfitPlain
	unfitSize
	unfitDemand
)

// fitness tells whether the candidate can and may take q at all.
func (c *candidate) fitness(q *Request) unfit {
	ep := c.ep
	switch {
	case !c.meets || q.Demand.Demanding() && !q.Demand.Meets(ep) || q.Also != nil && !q.Also.Meets(ep):
		return unfitDemand
	case q.Route != "" && ep.Routes != nil && !slices.Contains(ep.Routes, q.Route):
		return unfitRoute
	case q.Media && ep.TextOnly:
		return unfitMedia
	case q.Beyond != "" && ep.Plain:
		return unfitPlain
	case ep.Limits.MaxBodyBytes > 0 && q.BodyBytes > ep.Limits.MaxBodyBytes:
		return unfitSize
	}
	return fit
}
