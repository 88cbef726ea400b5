// Package cost turns prices into money: what one request used of a host, in US dollars.
//
// Three figures are never mixed: marginal cost decides where a request goes, full-load cost plans
// and orders, and the share of a host's bill that a request used, computed here, is reported.
package cost

import (
	"time"

	"headrace/router/endpoint"
)

// Used is what a request took from an endpoint.
type Used struct {
	Busy     time.Duration // from the request's arrival at the host to its last token
	InFlight float64       // mean number of requests the host served meanwhile, this one included
	Executed time.Duration // what the provider says that a worker was busy with it; 0 when it does not
	BytesIn  int64         // sent to the host
	BytesOut int64         // received from it
	Prompt   int64         // tokens, cached ones included; -1 when unknown
	Cached   int64         // prompt tokens from the prefix cache; -1 when unknown
	Output   int64         // tokens; -1 when unknown
}

// USD returns the request's share of the bill; ok is false when the price, or a count it needs, is
// unknown. For rented hosts and workers it is time divided by the requests that shared it; idle time,
// cold starts and idle timeouts are not in it. Traffic is, where the owner bills it.
func USD(p *endpoint.Price, u Used) (usd float64, ok bool) {
	share := u.Busy.Seconds() / max(1, u.InFlight)
	switch p.Basis {
	case endpoint.PerHour:
		return p.USDPerHour/3600*share + Traffic(p, u), true
	case endpoint.PerWorkerSecond:
		if u.Executed > 0 {
			share = u.Executed.Seconds() / max(1, u.InFlight)
		}
		return p.USDPerWorkerSecond * share, true
	case endpoint.PerToken:
		if u.Prompt < 0 || u.Output < 0 {
			return 0, false
		}
		cached := min(max(0, u.Cached), u.Prompt)
		return (float64(u.Prompt-cached)*p.USDPerMTokIn + float64(cached)*p.USDPerMTokCached + float64(u.Output)*p.USDPerMTokOut) / 1e6, true
	case endpoint.BasisUnknown:
	}
	return 0, false
}

// Traffic returns what of USD is for bytes.
func Traffic(p *endpoint.Price, u Used) float64 {
	if p.Basis != endpoint.PerHour {
		return 0
	}
	return (float64(u.BytesIn)*p.USDPerGBIn + float64(u.BytesOut)*p.USDPerGBOut) / 1e9
}
