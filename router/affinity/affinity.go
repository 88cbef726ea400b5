// Package affinity remembers which endpoint has computed which prefix of a prompt, so that a request can go where its
// prefix need not be computed again. Engines keep such prefixes in blocks (vLLM's automatic prefix caching) and lose
// them when they restart.
//
// The memory is bounded and shared without locks: what is forgotten or overwritten too early costs a few milliseconds of
// prefill, never a wrong answer.
package affinity

import (
	"iter"
	"math"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
)

// MaxMarks is how many prefixes of one prompt are looked up.
const MaxMarks = 24

// Mark is a prefix of a prompt: everything up to some point.
type Mark struct {
	Hash   uint64 // of all up to the point; 0 counts as 1
	Tokens int32  // estimated, of all up to the point
}

// Key is what a request can be recognised by: its session, and the prefixes of its prompt from the shortest to the
// longest, which is the whole prompt. The zero Key matches nothing. Hashes are alike in all replicas.
type Key struct {
	Session uint64 // see SessionHash; 0 for none
	Root    uint64 // of the beginning that all turns of a conversation, or all questions on one document, share; 0 for none
	N       int    // marks in use
	Marks   [MaxMarks]Mark
}

// Add appends a mark; what is beyond MaxMarks replaces the last one, so that the longest prefix is always there.
func (k *Key) Add(m Mark) {
	m.Hash = max(1, m.Hash)
	if k.N == MaxMarks {
		k.N--
	}
	k.Marks[k.N] = m
	k.N++
}

// Salt makes k another one than the same beginnings and the same session with another salt have, so that callers of whom one does not know the other's
// salt can neither find nor use what the other has sent. 0 is no salt. A salt is given once.
func (k *Key) Salt(salt uint64) {
	if salt == 0 {
		return
	}
	k.Session, k.Root = salted(k.Session, salt), salted(k.Root, salt)
	for i := range k.Marks[:k.N] {
		k.Marks[i].Hash = salted(max(1, k.Marks[i].Hash), salt)
	}
}

// salted leaves 0 as it is, which is none.
func salted(hash, salt uint64) uint64 {
	if hash == 0 {
		return 0
	}
	return max(1, mix(hash^salt))
}

// Home is the key by which Rendezvous ranks the hosts of a request of which nothing is known: the same for all requests
// of a session, else of a conversation. It is 0 for one that nothing can be recognised by.
func (k *Key) Home() uint64 {
	if k.Session != 0 {
		return k.Session
	}
	return k.Root
}

// Rendezvous ranks an endpoint for a key: the one with the highest rank is the key's home, the next one stands in for it,
// and an endpoint that comes or goes moves only the keys that it wins or held (Thaler and Ravishankar, "Using name-based
// mappings to increase hit rates", 1998). Ranks are uniform in [0,1) and alike in all replicas. endpoint is an EndpointHash.
func Rendezvous(key, endpoint uint64) float64 {
	return float64(mix(key^mix(endpoint))>>11) / (1 << 53)
}

// EndpointHash hashes an endpoint's ID for Rendezvous.
func EndpointHash(id string) uint64 { return xxhash.Sum64String(id) }

// SessionHash hashes a session's name. Hosts of one model know nothing of another's prompts, so each model has its own
// session of a name. It is never 0.
func SessionHash(model string, name []byte) uint64 {
	return max(1, mix(xxhash.Sum64String(model))^xxhash.Sum64(name))
}

// NameHash is what a SessionHash of a model has of the session's name alone: the same for all models.
func NameHash(model string, session uint64) uint64 { return session ^ mix(xxhash.Sum64String(model)) }

// mix spreads every bit over the whole word (the finalizer of MurmurHash3).
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
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

// Hosts are those that hold something.
func (m *Matches) Hosts() iter.Seq[Host] {
	return func(yield func(Host) bool) {
		for i := range m.list[:m.n] {
			if !yield(m.list[i].Host) {
				return
			}
		}
	}
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

// Table is the memory. Its methods may be called from any goroutine.
type Table struct {
	slots []slot
	mask  uint64
	keep  int32 // seconds
}

const (
	ways         = 4  // slots that a hash may be in
	hostsPerSlot = 4  // hosts remembered for a prefix, the last ones that came to it: a prompt that all send is everywhere anyway
	clockStep    = 60 // seconds that the clock may go back without anything being forgotten
)

// slot is half a cache line. Two goroutines that take it at once for different prefixes can leave one's host with the
// other's prefix, and the same prefix in two slots; both are lost at the next change of hands.
type slot struct {
	hash  atomic.Uint64 // 0 while nobody has it
	at    atomic.Uint32 // Unix seconds of its newest use, the lower 32 bits
	next  atomic.Uint32 // counts hosts that came, to know which is overwritten next
	hosts [hostsPerSlot]atomic.Uint32
}

// age is how many seconds ago at was; negative in the future.
func age(now, at uint32) int32 { return int32(now - at) } //nolint:gosec // wraps on purpose: right for 68 years either way

// fresh tells whether what was used last at a time still counts.
func (t *Table) fresh(now, at uint32) bool {
	a := age(now, at)
	return a <= t.keep && a >= -clockStep
}

// Options set up a Table; zero values mean the defaults.
type Options struct {
	Prefixes int           // remembered, rounded up to a power of two; default 65536, of 32 bytes each
	Keep     time.Duration // since its last use, in whole seconds; default 20 minutes
}

const maxPrefixes = 1 << 28 // 8 GiB

// New returns an empty table.
func New(o Options) *Table {
	if o.Prefixes <= 0 {
		o.Prefixes = 1 << 16
	}
	if o.Keep <= 0 {
		o.Keep = 20 * time.Minute
	}
	n := ways
	for n < min(o.Prefixes, maxPrefixes) {
		n *= 2
	}
	keep := min(o.Keep, 365*24*time.Hour) / time.Second
	t := &Table{slots: make([]slot, n), mask: uint64(n/ways - 1), keep: int32(keep)} //nolint:gosec // positive and small
	return t
}

// Warm takes the table's memory from the system, a page at a time, so that no request has to.
func (t *Table) Warm() {
	for i := 0; i < len(t.slots); i += 128 { // as many lie in a page
		t.slots[i].at.Add(0)
	}
}

func unix(t time.Time) uint32 { return uint32(t.Unix()) } //nolint:gosec // wraps on purpose

func (t *Table) set(hash uint64) []slot {
	i := (hash ^ hash>>29) & t.mask * ways
	return t.slots[i : i+ways : i+ways]
}

// Lookup fills m with the hosts that hold a prefix of k, or served its session.
func (t *Table) Lookup(k *Key, now time.Time, m *Matches) {
	m.n = 0
	at := unix(now)
	if k.Session != 0 { // first, so that it has a place in m
		t.collect(session(k.Session), at, 0, true, m)
	}
	for i := k.N - 1; i >= 0 && m.n < maxMatches; i-- {
		t.collect(max(1, k.Marks[i].Hash), at, k.Marks[i].Tokens, false, m)
	}
}

func (t *Table) collect(hash uint64, now uint32, tokens int32, session bool, m *Matches) {
	set := t.set(hash)
	for i := range set {
		s := &set[i]
		if s.hash.Load() != hash {
			continue
		}
		if t.fresh(now, s.at.Load()) {
			for j := range s.hosts {
				if h := Host(s.hosts[j].Load()); h != 0 {
					m.add(h, tokens, session)
				}
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
	at := unix(now)
	for i := range k.N {
		t.note(max(1, k.Marks[i].Hash), h, at, false)
	}
	if k.Session != 0 {
		t.note(session(k.Session), h, at, true)
	}
}

// note puts h into the slot of hash; alone makes it the only one there.
func (t *Table) note(hash uint64, h Host, now uint32, alone bool) {
	s := t.slot(hash, now)
	if s.hash.Load() != hash || !t.fresh(now, s.at.Load()) {
		s.hash.Store(0) // nobody reads it while it changes hands
		for j := range s.hosts {
			s.hosts[j].Store(0)
		}
		s.next.Store(0)
		s.at.Store(now)
		s.hash.Store(hash)
	} else if s.at.Load() != now { // all write the slot of a prompt that all begin with: not more often than need be
		s.at.Store(now)
	}
	if alone {
		s.hosts[0].Store(uint32(h))
		return
	}
	for j := range s.hosts {
		if Host(s.hosts[j].Load()) == h {
			return
		}
	}
	s.hosts[(s.next.Add(1)-1)%hostsPerSlot].Store(uint32(h))
}

// slot returns the slot of hash, else the one that it shall have: a free one, else the one unused for longest.
func (t *Table) slot(hash uint64, now uint32) *slot {
	set := t.set(hash)
	var s *slot
	oldest := int32(math.MinInt32)
	for i := range set {
		switch h := set[i].hash.Load(); {
		case h == hash:
			return &set[i]
		case h == 0:
			s, oldest = &set[i], math.MaxInt32
			continue
		}
		a := age(now, set[i].at.Load())
		if a < -clockStep { // left by a clock that was ahead
			a = math.MaxInt32
		}
		if s == nil || a > oldest {
			s, oldest = &set[i], a
		}
	}
	return s
}

// session sets sessions apart from prefixes.
func session(id uint64) uint64 { return max(1, mix(id^0x9e3779b97f4a7c15)) }
