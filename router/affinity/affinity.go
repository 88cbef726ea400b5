// Package affinity remembers which endpoint has computed which prefix of a prompt, so that a request can go where its
// prefix need not be computed again. Engines keep such prefixes in blocks (vLLM's automatic prefix caching) and lose
// them when they restart.
//
// The memory is bounded and shared without locks: what is forgotten or overwritten too early costs a few milliseconds of
// prefill, never a wrong answer.
package affinity

import (
	"sync/atomic"
	"time"
)

// MaxMarks is how many prefixes of one prompt are looked up.
const MaxMarks = 24

// Mark is a prefix of a prompt: everything up to some point.
type Mark struct {
	Hash   uint64 // of all up to the point; never 0
	Tokens int32  // estimated, of all up to the point
}

// Key is what a request can be recognised by: its session, and the prefixes of its prompt from the shortest to the
// longest, which is the whole prompt. The zero Key matches nothing.
type Key struct {
	Session uint64 // of a session's name, 0 for none
	N       int    // marks in use
	Marks   [MaxMarks]Mark
}

// Add appends a mark; what is beyond MaxMarks replaces the last one, so that the longest prefix is always there.
func (k *Key) Add(m Mark) {
	if m.Hash == 0 {
		m.Hash = 1
	}
	if k.N == MaxMarks {
		k.N--
	}
	k.Marks[k.N] = m
	k.N++
}

// Host names an endpoint's cache: a restarted engine gets a new one, so that nothing is expected of it. 0 is nobody.
type Host uint32

// Match is what an endpoint is expected to hold of a prompt.
type Match struct {
	Host    Host
	Tokens  int32
	Session bool // it served the session last
}

// Matches are the hosts that hold something of one prompt.
type Matches struct {
	n    int
	list [maxMatches]Match
}

const maxMatches = 8

// Tokens returns how many tokens of the prompt h holds.
func (m *Matches) Tokens(h Host) (tokens int32, session bool) {
	for i := range m.list[:m.n] {
		if m.list[i].Host == h {
			return m.list[i].Tokens, m.list[i].Session
		}
	}
	return 0, false
}

func (m *Matches) add(h Host, tokens int32, session bool) {
	for i := range m.list[:m.n] {
		if e := &m.list[i]; e.Host == h {
			e.Tokens, e.Session = max(e.Tokens, tokens), e.Session || session
			return
		}
	}
	if m.n < maxMatches {
		m.list[m.n] = Match{Host: h, Tokens: tokens, Session: session}
		m.n++
	}
}

// Table is the memory.
type Table struct {
	slots []slot
	mask  uint64
	keep  int64 // seconds
}

const (
	ways         = 4 // slots that a hash may be in
	hostsPerSlot = 3 // hosts remembered for a prefix: a prompt that all send is everywhere anyway
)

type slot struct {
	hash  atomic.Uint64
	at    atomic.Int64 // Unix seconds of its newest use
	hosts [hostsPerSlot]atomic.Uint32
	next  atomic.Uint32 // which of hosts is overwritten next
}

// Options set up a Table; zero values mean the defaults.
type Options struct {
	Prefixes int           // remembered, rounded up to a power of two; default 65536, of 40 bytes each
	Keep     time.Duration // since its last use; default 20 minutes
}

// New returns an empty table.
func New(o Options) *Table {
	if o.Prefixes <= 0 {
		o.Prefixes = 1 << 16
	}
	if o.Keep <= 0 {
		o.Keep = 20 * time.Minute
	}
	n := ways
	for n < o.Prefixes {
		n *= 2
	}
	return &Table{slots: make([]slot, n), mask: uint64(n/ways - 1), keep: int64(o.Keep / time.Second)} //nolint:gosec // positive
}

func (t *Table) set(hash uint64) []slot {
	i := (hash ^ hash>>29) & t.mask * ways
	return t.slots[i : i+ways]
}

// Lookup fills m with the hosts that hold a prefix of k, or served its session.
func (t *Table) Lookup(k *Key, now time.Time, m *Matches) {
	m.n = 0
	if k.N == 0 && k.Session == 0 {
		return
	}
	since := now.Unix() - t.keep
	for i := k.N - 1; i >= 0 && m.n < maxMatches; i-- {
		t.collect(k.Marks[i].Hash, since, k.Marks[i].Tokens, false, m)
	}
	if k.Session != 0 {
		t.collect(session(k.Session), since, 0, true, m)
	}
}

func (t *Table) collect(hash uint64, since int64, tokens int32, session bool, m *Matches) {
	for i := range t.set(hash) {
		s := &t.set(hash)[i]
		if s.hash.Load() != hash || s.at.Load() < since {
			continue
		}
		for j := range s.hosts {
			if h := Host(s.hosts[j].Load()); h != 0 {
				m.add(h, tokens, session)
			}
		}
		return
	}
}

// Learn notes that h has computed the prompt of k.
func (t *Table) Learn(k *Key, h Host, now time.Time) {
	if h == 0 {
		return
	}
	for i := range k.N {
		t.note(k.Marks[i].Hash, h, now, false)
	}
	if k.Session != 0 {
		t.note(session(k.Session), h, now, true)
	}
}

// note puts h into the slot of hash; alone makes it the only one there.
func (t *Table) note(hash uint64, h Host, now time.Time, alone bool) {
	set := t.set(hash)
	s := &set[0]
	for i := range set {
		if set[i].hash.Load() == hash {
			s = &set[i]
			break
		}
		if set[i].at.Load() < s.at.Load() {
			s = &set[i]
		}
	}
	if s.hash.Load() != hash {
		s.hash.Store(0) // nobody reads it while it changes hands
		for j := range s.hosts {
			s.hosts[j].Store(0)
		}
		s.hash.Store(hash)
	}
	s.at.Store(now.Unix())
	if alone {
		s.hosts[0].Store(uint32(h))
		return
	}
	for j := range s.hosts {
		if Host(s.hosts[j].Load()) == h {
			return
		}
	}
	s.hosts[s.next.Add(1)%hostsPerSlot].Store(uint32(h))
}

// session sets sessions apart from prefixes.
func session(id uint64) uint64 {
	id ^= 0x9e3779b97f4a7c15
	id *= 0xff51afd7ed558ccd
	return max(1, id^id>>33)
}
