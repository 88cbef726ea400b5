package books

import (
	"maps"
	"slices"
	"strings"
)

// entry is what a cell has come to, and is not written yet.
type entry struct {
	Sums
	block uint32 // that names it, at place
	place int64
}

// cells are sums in memory. Where names come to more than most, those of the oldest hours give way: first hosts', then keys', models' and arms'.
// What it was for stays, and every dollar.
type cells struct {
	of   map[Cell]*entry
	most int
	full int64 // the newest hour in which there was nothing to give way: nor is there in those before; 0 for none
}

func newCells(most, room int) cells { return cells{of: make(map[Cell]*entry, room), most: most} }

// otherHost stands for hosts of a provider that there was no room for.
func otherHost(provider string) string {
	if provider == "" {
		return otherName
	}
	return provider + ":" + otherName
}

// isOther tells whether a host is one of these.
func isOther(host string) bool { return strings.HasSuffix(host, otherName) }

// at returns the entry of c, a new one if need be. Where there is no room for it, c becomes what it is counted under.
func (s *cells) at(c *Cell) *entry {
	e := s.of[*c]
	if e != nil {
		return e
	}
	if len(s.of) >= s.most && s.full < c.Hour {
		if s.fold(c.Hour); len(s.of) >= s.most {
			s.full = c.Hour
		}
	}
	if len(s.of) >= s.most {
		*c = Cell{Hour: c.Hour, Key: otherName, Model: otherName, Provider: c.Provider, Host: otherHost(c.Provider)}
		e = s.of[*c]
	}
	if e == nil {
		e = new(entry)
		s.of[*c] = e
	}
	return e
}

// fold makes room for new names of an hour, at least a twentieth of all, where older ones can give way.
func (s *cells) fold(hour int64) {
	newest := hour
	for c := range s.of {
		newest = max(newest, c.Hour)
	}
	enough := s.most - max(1, s.most/20)
	s.merge(enough, newest, unnameHost)
	if len(s.of) > enough {
		s.merge(enough, newest-1, func(c *Cell) bool {
			named := c.Key != otherName || c.Model != otherName
			*c = Cell{Hour: c.Hour, Key: otherName, Model: otherName, Provider: c.Provider, Host: otherHost(c.Provider)}
			return named
		})
	}
}

// unnameHost has a cell be of one of its provider's hosts. It returns false where it is already, or of none.
func unnameHost(c *Cell) bool {
	named := c.Host != "" && !isOther(c.Host)
	c.Host = otherHost(c.Provider)
	return named
}

// merge counts cells under what rename makes of them, if it returns true: those of the oldest hours up to one, until no more than enough are left.
func (s *cells) merge(enough int, upTo int64, rename func(*Cell) bool) {
	byHour := map[int64][]Cell{}
	for c := range s.of {
		if to := c; c.Hour <= upTo && rename(&to) {
			byHour[c.Hour] = append(byHour[c.Hour], c)
		}
	}
	for _, h := range slices.Sorted(maps.Keys(byHour)) {
		if len(s.of) <= enough {
			return
		}
		for _, c := range byHour[h] {
			e := s.of[c]
			delete(s.of, c)
			rename(&c)
			if to := s.of[c]; to != nil {
				to.Add(&e.Sums)
			} else {
				s.of[c] = &entry{Sums: e.Sums} // no block names it so
			}
		}
	}
}
