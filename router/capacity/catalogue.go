package capacity

import "headrace/router/endpoint"

// Lookup returns what to expect of an endpoint by its hardware and model.
func Lookup(ep *endpoint.Endpoint) Prior {
	return Prior{MaxNumSeqs: ep.MaxNumSeqs, Source: "default"}
}
