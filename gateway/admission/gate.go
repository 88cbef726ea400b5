// Package admission says who may ask for what, and how much of it: keys, what each may see, its limits and its budgets.
//
// A request's way: Gate.Enter (which key) -> Grant.Model and the like (may it?) -> Grant.Admit (limits, budgets) -> Pass.Settle
// (what it really took). All of it works from memory; with Redis, replicas agree on what was used (share.go).
package admission

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"hash/maphash"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"headrace/gateway/openai"
	"headrace/gateway/state"
	"headrace/router"
)

// Options set up a Gate.
type Options struct {
	Log *slog.Logger
	Now func() time.Time // default time.Now
	// Shared is what replicas share of limits and budgets; nil where there is one, or each counts for itself.
	Shared Shared
	// Within is how long a request waits for Shared at most; default state.Within.
	Within time.Duration
	// Strict says that a key with a budget is refused while Redis does not answer; else each replica goes on with its part.
	Strict bool
	Store  state.Store // of the keys that are made while it runs, and of what keys have spent; nil for none
}

// Gate knows the keys.
type Gate struct {
	opt    Options
	log    *slog.Logger
	origin time.Time // zero of the accounts' clock
	seed   maphash.Seed
	decoy  entry
	book   atomic.Pointer[book]
	counts Counts
	share  *sharer     // nil where nothing is shared
	away   atomic.Bool // the store did not answer the last time
	known  atomic.Bool // what was spent before is known

	mu       sync.Mutex // guards all below, and writing of book
	required bool
	config   []Key
	kept     map[string]kept // of the store, by name
	damaged  bool            // the store has keys that cannot be read
	sealed   bool            // the store has had keys: should they be gone, nobody is let in for it
	accounts map[string]*account
	books    books
	tried    map[string]attempt // writes of spending that have failed, by shard

	loading  sync.Mutex // held while keys are read, so that none put older ones in the place of newer ones; taken before mu
	flushing sync.Mutex // held while spending is written; taken before mu
}

// book is all keys at one time. Nobody changes it.
type book struct {
	entries map[uint64]*entry
	grants  []*Grant // by name
	closed  bool     // nobody is let in without a key
	admins  bool     // some key opens the admin API
}

// entry is a key that opens the door.
type entry struct {
	hash  Hash
	grant *Grant
	ends  time.Time // zero for never
}

// Grant is what a key allows, as of one moment. A nil Grant allows everything: nobody needs a key. Its methods are cheap, and safe for
// use by several goroutines.
type Grant struct {
	Key    Key // nobody changes it
	gate   *Gate
	acct   *account
	demand router.Demand
	policy uint32 // bits of the policies it may ask for, 0 for all
	day    int64  // budgets in billionths of a US dollar, 0 for none
	month  int64
	total  int64
	soft   float64
	salt   uint64
}

// Counts are what the gate has refused, by reason, and has warned of. The reasons are a closed set: see Refusals.
type Counts struct {
	refused [numReasons]atomic.Int64
	warned  atomic.Int64
}

// New returns a Gate without keys, which is open.
func New(o Options) *Gate {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	g := &Gate{opt: o, log: o.Log, origin: o.Now().Add(-time.Hour), seed: maphash.MakeSeed(), kept: map[string]kept{}, books: books{map[string]page{}}, tried: map[string]attempt{}, accounts: map[string]*account{}}
	_, _ = rand.Read(g.decoy.hash[:]) // never fails
	if o.Shared != nil {
		g.share = newSharer(o.Shared, o.Within)
	}
	g.book.Store(&book{entries: map[uint64]*entry{}})
	return g
}

// clock is t in nanoseconds of the accounts' clock.
func (g *Gate) clock(t time.Time) int64 { return int64(t.Sub(g.origin)) }

// Configure sets the keys of the config, which are checked, and whether callers need a key even where there is none.
func (g *Gate) Configure(keys []Key, required bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.config, g.required = slices.Clone(keys), required
	for i := range g.config {
		k := &g.config[i]
		k.Source, k.ID = FromConfig, idOf(k.Name)
	}
	g.rebuild()
}

// Where a key comes from.
const (
	FromConfig = "config"
	FromStore  = "store"
)

// rebuild makes the book of what is known. mu is held.
func (g *Gate) rebuild() {
	g.sealed = g.sealed || len(g.kept) > 0
	b := &book{entries: map[uint64]*entry{}, closed: g.required || g.damaged || g.sealed}
	before := map[string]*Grant{}
	for _, gr := range g.book.Load().grants {
		before[gr.Key.ID] = gr
	}
	names, ids := map[string]bool{}, map[string]bool{}
	opens := func(h *Hash, e *entry) {
		if other := b.entries[g.index(h)]; other != nil && other.hash == *h {
			g.log.Error("two keys have the same secret: it is the first one's", "key", other.grant.Key.Name, "other", e.grant.Key.Name)
			return
		}
		b.entries[g.index(h)] = e
	}
	add := func(k Key) {
		if names[k.Name] || ids[k.ID] {
			g.log.Warn("key left out: there is another one of its name", "key", k.Name)
			return
		}
		names[k.Name], ids[k.ID] = true, true
		gr := before[k.ID]
		if gr == nil || !reflect.DeepEqual(gr.Key, k) { // else replicas need not be asked anew
			gr = g.grant(k)
		}
		b.grants = append(b.grants, gr)
		b.closed = true // for a revoked one too: to revoke the last key lets nobody in
		if !k.Revoked.IsZero() {
			return
		}
		b.admins = b.admins || k.Admin
		opens(&k.Hash, &entry{hash: k.Hash, grant: gr})
		if !k.Old.IsZero() {
			opens(&k.Old, &entry{hash: k.Old, grant: gr, ends: k.OldEnds})
		}
	}
	for _, k := range g.config {
		add(k)
	}
	for _, name := range slices.Sorted(maps.Keys(g.kept)) { // in the same order everywhere
		add(g.kept[name].key)
	}
	slices.SortFunc(b.grants, func(a, b *Grant) int { return strings.Compare(a.Key.Name, b.Key.Name) })
	g.book.Store(b)
	for id, a := range g.accounts {
		switch {
		case ids[id]:
			a.gone = time.Time{}
		case a.gone.IsZero():
			a.gone = g.opt.Now()
		}
	}
}

// grant compiles k. mu is held.
func (g *Gate) grant(k Key) *Grant {
	a := g.accounts[k.ID]
	if a == nil {
		a = &account{id: k.ID}
		a.adopt(g.books.of(k.ID))
		g.accounts[k.ID] = a
	}
	gr := &Grant{
		Key: k, gate: g, acct: a, demand: router.Demand{Trust: k.Trust, Regions: k.Regions},
		day: nanos(k.Budget.USDPerDay), month: nanos(k.Budget.USDPerMonth), total: nanos(k.Budget.USDTotal), soft: k.Budget.Soft, salt: saltOf(&k.Hash),
	}
	if gr.soft <= 0 {
		gr.soft = DefaultSoft
	}
	for _, word := range k.Policies {
		if p, ok := router.ParsePolicy(word); ok {
			gr.policy |= 1 << p
		}
	}
	if g.share != nil {
		a.mu.Lock()
		a.share.grant, a.share.asked = gr, 0
		g.share.owes(a) // to hear what it has used elsewhere
		a.mu.Unlock()
	}
	return gr
}

// saltOf is what a key's prompts and sessions are recognised by beside themselves. It follows from the secret: nobody who lacks that can tell it,
// and all replicas have the same. It is never 0.
func saltOf(h *Hash) uint64 {
	own := sha256.Sum256(append([]byte("prompts and sessions of a key: "), h[:]...))
	return max(1, binary.BigEndian.Uint64(own[:]))
}

// SaltOf returns Grant.Salt of the key of that ID, else of that name; ok is false where there is none. Without keys it is 0 for "".
func (g *Gate) SaltOf(name string) (salt uint64, ok bool) {
	if name == "" {
		return 0, true
	}
	if g != nil {
		for _, gr := range g.book.Load().grants {
			if gr.Key.ID == name {
				return gr.salt, true
			}
			if gr.Key.Name == name {
				salt, ok = gr.salt, true
			}
		}
	}
	return salt, ok
}

// index is where the book has a hash. It is keyed anew in each process: how long a look into the book takes tells a stranger nothing
// of the hashes that are there.
func (g *Gate) index(h *Hash) uint64 { return maphash.Bytes(g.seed, h[:]) }

// find returns the entry of the key whose hash is h, nil where there is none. A key that nobody has, one with a known id and a wrong
// secret, and one that is right cost the same: one look and one comparison, in which every byte counts.
func (g *Gate) find(b *book, h *Hash) *entry {
	e := b.entries[g.index(h)]
	if e == nil {
		e = &g.decoy
	}
	if subtle.ConstantTimeCompare(e.hash[:], h[:]) != 1 {
		return nil
	}
	return e
}

// Open tells whether callers need no key.
func (g *Gate) Open() bool { return g == nil || !g.book.Load().closed }

// Enter says what the caller's key allows. Where callers need none the Grant is nil, whatever they sent. key is not kept.
func (g *Gate) Enter(key []byte, now time.Time) (*Grant, *openai.Error) {
	if g == nil {
		return nil, nil
	}
	b := g.book.Load()
	if !b.closed {
		return nil, nil
	}
	if len(key) == 0 {
		return nil, g.refuse(noKey, errNoKey())
	}
	e := g.open(b, key, now)
	if e == nil {
		return nil, g.refuse(badKey, errBadKey())
	}
	k := &e.grant.Key
	switch {
	case k.Off:
		return nil, g.refuse(disabledKey, errDisabled())
	case !k.Expires.IsZero() && !now.Before(k.Expires):
		return nil, g.refuse(expiredKey, errExpired(k.Expires))
	}
	return e.grant, nil
}

// open returns the entry that the key is for, nil where there is none.
func (g *Gate) open(b *book, key []byte, now time.Time) *entry {
	if len(key) > maxKeyLen {
		return nil
	}
	h := sum(key)
	e := g.find(b, &h)
	if e == nil || !e.ends.IsZero() && !now.Before(e.ends) {
		return nil
	}
	return e
}

// Knows tells whether Enter would find the key, or needs none. Nothing is counted.
func (g *Gate) Knows(key []byte, now time.Time) bool {
	if g.Open() {
		return true
	}
	e := g.open(g.book.Load(), key, now)
	return e != nil
}

// TwoKeys refuses a request that carries two different keys.
func (g *Gate) TwoKeys() *openai.Error { return g.refuse(badKey, errTwoKeys()) }

// QueryKey refuses a request whose URL seems to hold a credential, in a parameter of that name.
func (g *Gate) QueryKey(name string) *openai.Error { return g.refuse(queryKey, errQueryKey(name)) }

// NotAllowed refuses what a key does not allow: param is the field or header at fault, "" for none.
func (g *Gate) NotAllowed(param, code, message string) *openai.Error {
	return g.refuse(notAllowed, errNotAllowed(param, code, message))
}

// Live tells whether the key that was let in once would still be: whether it is there, and neither revoked, disabled nor expired.
func (gr *Grant) Live(now time.Time) bool {
	if gr == nil {
		return true
	}
	grants := gr.gate.book.Load().grants
	i, ok := slices.BinarySearchFunc(grants, gr.Key.Name, func(g *Grant, name string) int { return strings.Compare(g.Key.Name, name) })
	return ok && grants[i].Key.ID == gr.Key.ID && grants[i].Key.usable(now)
}

// usable tells whether k opens anything.
func (k *Key) usable(now time.Time) bool {
	return k.Revoked.IsZero() && !k.Off && (k.Expires.IsZero() || now.Before(k.Expires))
}

// Gone refuses the rest of a request whose key has ended meanwhile.
func (g *Gate) Gone() *openai.Error { return g.refuse(badKey, errBadKey()) }

// AdminKeys tells whether the admin API asks for a key, since there is one that opens it.
func (g *Gate) AdminKeys() bool { return g != nil && g.book.Load().admins }

// Start reads the store, as far as it answers: what it has not told is read as soon as it does. Before it has, nobody is asked for a key
// that is kept there; with require_key nobody is let in.
func (g *Gate) Start(ctx context.Context) {
	if g.opt.Store == nil {
		return
	}
	err := g.Load(ctx)
	if g.share == nil {
		err = cmp.Or(err, g.LoadSpent(ctx))
	}
	g.known.Store(g.told(err) == nil && g.share == nil)
}

// Run keeps the gate as the store has its keys, and the store as the keys have spent, until ctx is done; then it writes the rest.
func (g *Gate) Run(ctx context.Context) error {
	if g.share != nil {
		done := make(chan struct{})
		go func() { defer close(done); g.share.run(ctx, g) }()
		defer func() { <-done }()
	}
	if g.opt.Store == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	changes, stop := g.opt.Store.Watch(keyKind)
	defer stop()
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for stale := true; ; { // what changed before we watched
		if stale {
			stale = g.told(g.Load(ctx)) != nil
		}
		if g.share == nil && !g.known.Load() {
			g.known.Store(g.told(g.LoadSpent(ctx)) == nil)
		}
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushAtEnd)
			defer cancel()
			_ = g.told(g.flush(last)) // the log has it
			return ctx.Err()
		case <-changes:
			stale = true
		case <-tick.C:
			some, cancel := context.WithTimeout(ctx, flushAtEnd) // a store that hangs keeps nobody from hearing of keys
			if err := g.flush(some); err != nil || !stale {      // who has nothing to write does not know that the store is back
				_ = g.told(err) // goes out with the next one
			}
			cancel()
		}
	}
}

const flushAtEnd = 2 * time.Second

// told logs when the store goes and when it is back.
func (g *Gate) told(err error) error {
	switch was := g.away.Swap(err != nil); {
	case err != nil && !was:
		g.log.Error("keys and budgets go on as far as they are known", "error", err)
	case err == nil && was:
		g.log.Info("the store of keys answers again")
	}
	return err
}
