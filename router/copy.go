package router

import "headrace/router/endpoint"

const whyCopy = "paid anyway and less than half used: a copy whose answer nobody waits for"

// copySpare is the share of a host's safe concurrency that copies leave free.
const copySpare = 0.5

// Copy leases into l, for a copy of a request whose answer nobody waits for, the least used host that is paid anyway, up, less than half
// used with it, and expected to keep the SLO. q.Affinity is to stay as it is until l is done. The error is ErrUnknownModel or ErrNoSpare:
// it is no refusal, and is not among the decisions.
func (r *Router) Copy(q *Request, l *Lease) error {
	m := r.snap.Load().pool(q.Model)
	if m == nil {
		return ErrUnknownModel
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	q.Spare = copySpare
	s.prepare(r, m, q)
	for s.survey(); ; {
		for i := range s.views {
			if v := &s.views[i]; v.verdict == serves && (v.metered || v.coldSeconds > 0 || v.c.ep.Price.Basis == endpoint.BasisUnknown) {
				v.verdict = notSpare
			}
		}
		v := s.least((*view).use)
		if v == nil {
			return ErrNoSpare
		}
		if s.lease(r, v, whyCopy, l) {
			return nil
		}
		v.verdict = tried // another request was faster
	}
}
