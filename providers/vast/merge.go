package vast

import (
	"context"
	"errors"
	"hash/maphash"
	"net/netip"
	"slices"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

// take makes a whole list the fleet. It fails, and changes nothing, when no row says which instance it is; when only some do not,
// each of those may be any instance that the others do not name, so that none is taken for gone. A list that is suddenly empty has to be
// confirmed by the next one, which is read at once.
func (f *fleet) take(ctx context.Context, l *listing, now time.Time) error {
	if l.rows() == 0 && len(f.hosts) > 0 && !f.emptied {
		f.emptied, f.pollAgain = true, true
		f.p.odd("list that is suddenly empty")
		return nil
	}
	f.emptied = false
	seen := make(map[int64]bool, len(f.hosts))
	skipped, nameless := f.merge(l, seen)
	if nameless > 0 && nameless == l.rows() {
		return errors.New("no row of the list of instances can be read")
	}
	for id, h := range f.hosts {
		if !seen[id] && nameless == 0 && !slices.ContainsFunc(l.Pages, func(pg page) bool { return pg.Asked.Before(h.readAt) }) {
			f.p.log.Info("instance is gone", "endpoint", endpointID(id), "was", h.logged.state)
			delete(f.hosts, id)
			f.p.books.Book.Gone(string(endpointID(id)), now)
			delete(f.byHash, h.hash)
			f.changed = true
		}
	}
	f.p.heritage = nil
	f.pages = len(l.Pages)
	f.review(now)
	f.book(now)
	if !f.listed {
		f.listed, f.changed, f.firstBy = true, true, now.Add(f.p.opt.ProbeTimeout)
	}
	f.p.mu.Lock()
	f.p.status.Skipped, f.p.status.Endpoints, f.p.status.ClockSkew = skipped, len(f.hosts), l.Skew
	f.p.mu.Unlock()
	f.readPorts(ctx, now)
	return nil
}

const maxSkipped = 100

// merge takes rows in. Those that say what they said before are not even decoded. nameless counts those that do not say which
// instance they are.
func (f *fleet) merge(l *listing, seen map[int64]bool) (skipped []api.Skipped, nameless int) {
	for _, pg := range l.Pages {
		for _, raw := range pg.Rows {
			hash := maphash.Bytes(f.seed, raw)
			if h := f.byHash[hash]; h != nil && h.hash == hash {
				seen[h.id] = true
				if h.readAt.Before(pg.Asked) {
					h.readAt = pg.Asked
				}
				continue
			}
			r, err := parseRow(raw)
			if err != nil {
				f.p.odd(err.Error())
				nameless++
				continue
			}
			if why := f.p.unwanted(r); why != "" {
				if len(skipped) < maxSkipped {
					skipped = append(skipped, api.Skipped{ID: string(endpointID(r.id())), Name: string(r.Label), Why: why})
				}
				continue
			}
			if seen[r.id()] && f.hosts[r.id()] != nil {
				f.p.odd("instance listed twice")
			}
			seen[r.id()] = true
			f.put(r, hash, pg.Asked)
		}
	}
	return skipped, nameless
}

// put makes r the row of its instance, unless a newer one is known.
func (f *fleet) put(r *row, hash uint64, asked time.Time) {
	h := f.hosts[r.id()]
	if h == nil {
		h = f.p.heir(r)
		f.hosts[h.id] = h
	} else if asked.Before(h.readAt) {
		return
	}
	if h.row != nil && h.row.Start != r.Start {
		h.pin = "" // the server that was pinned is no more
	}
	delete(f.byHash, h.hash)
	h.row, h.hash, h.readAt = r, hash, asked
	f.byHash[hash] = h
	for _, o := range r.oddities() {
		f.p.odd(o)
	}
}

// heir is a new host, with what an earlier Provider has learned of the instance. A pin is for as long as it has not started anew.
func (p *Provider) heir(r *row) *host {
	h := &host{id: r.id()}
	if o := p.heritage[h.id]; o != nil {
		h.port, h.keyed, h.served, h.base = o.port, o.keyed, o.served, o.base
		if o.row.Start == r.Start {
			h.pin = o.pin
		}
	}
	return h
}

// unwanted says why an instance is none of those to be used, "" when it is.
func (p *Provider) unwanted(r *row) string {
	o := &p.opt
	switch {
	case len(o.IDs) > 0 && !slices.Contains(o.IDs, r.id()):
		return "its id is not among those to be used"
	case len(o.Labels) > 0 && !slices.Contains(o.Labels, string(r.Label)):
		return "its label is not among those to be used"
	case len(o.Templates) > 0 && !slices.ContainsFunc(o.Templates, func(t string) bool {
		return t != "" && (t == string(r.TemplateID) || t == string(r.TemplateHash) || t == string(r.TemplateName))
	}):
		return "its template is not among those to be used"
	}
	return ""
}

// review reads all rows anew: what they say depends on the time, and who claims which address on all of them.
func (f *fleet) review(now time.Time) {
	claims := map[netip.AddrPort][]int64{}
	rivals := map[int64][]int64{}
	for _, id := range f.ids() { // in order, so that the same rows give the same
		h := f.hosts[id]
		h.says = h.row.read(now)
		switch {
		case h.says.state != endpoint.Draining:
			h.ending = time.Time{}
		case h.ending.IsZero():
			h.ending = now
		}
		if h.says.odd != h.odd {
			h.odd = h.says.odd
			f.p.odd(h.odd)
		}
		if !h.says.candidate { // it may come back elsewhere; a pin goes with a new start only: others may answer at its address meanwhile
			h.addrs, h.byID, h.byIDIP = nil, portMap{}, ""
			continue
		}
		h.addrs = f.addresses(h)
		for _, a := range h.addrs {
			for _, other := range claims[a.key()] {
				if other != id { // one's own ports may be mapped to the same place
					rivals[id], rivals[other] = append(rivals[id], other), append(rivals[other], id)
				}
			}
			claims[a.key()] = append(claims[a.key()], id)
		}
	}
	for id, h := range f.hosts {
		h.rivals = rivals[id]
		h.keys = nil
		if h.says.candidate {
			h.keys = h.row.bearers(f.p.opt.Bearer)
		}
		if ident := h.identity(); ident != h.ident {
			h.ident = ident
			h.round++
			h.known, h.asked, h.why, h.fails, h.backoff, h.checking = false, false, "", 0, 0, false
			h.checkAt = now
		}
		f.changes(h, now)
	}
}

func (f *fleet) ids() []int64 {
	ids := make([]int64, 0, len(f.hosts))
	for id := range f.hosts {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (f *fleet) addresses(h *host) []address {
	r, ports := h.row, h.row.Ports
	if len(ports.tcp) == 0 {
		ports = h.byID
	}
	if r.IP == "" && h.byIDIP != "" {
		c := *r
		c.IP = h.byIDIP
		r = &c
	}
	return r.addresses(ports, f.p.opt.Port, h.port)
}

// readSome reads a few instances out of turn.
func (f *fleet) readSome(ctx context.Context, ids []int64) {
	if f.reading {
		return
	}
	f.reading = true
	f.beside(ctx, func() func() {
		l, err := f.p.some(ctx, ids)
		return func() {
			f.reading = false
			if err != nil {
				return // counted with its call; the poll that is due tells the operator
			}
			f.merge(l, map[int64]bool{})
			f.review(f.p.now())
		}
	})
}

// readPorts reads by id what runs but shows no ports in the list, those read longest ago first.
func (f *fleet) readPorts(ctx context.Context, now time.Time) {
	var need []*host
	for _, h := range f.hosts {
		if h.says.candidate && len(h.row.Ports.tcp) == 0 {
			need = append(need, h)
		}
	}
	if len(need) == 0 || f.reading {
		return
	}
	slices.SortFunc(need, func(a, b *host) int {
		if c := a.byIDAt.Compare(b.byIDAt); c != 0 {
			return c
		}
		return int(a.id - b.id)
	})
	ids := []int64{}
	for _, h := range need[:min(len(need), readsByID)] {
		h.byIDAt = now
		ids = append(ids, h.id)
	}
	f.reading = true
	f.beside(ctx, func() func() {
		rows := map[int64]*row{}
		for _, id := range ids {
			if r, err := f.p.one(ctx, id); err == nil && r != nil {
				rows[id] = r
			}
		}
		return func() {
			f.reading = false
			for id, r := range rows {
				if h := f.hosts[id]; h != nil && r.id() == id {
					h.byID, h.byIDIP = r.Ports, r.IP
				}
			}
			f.review(f.p.now())
		}
	})
}
