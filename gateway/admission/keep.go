package admission

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"headrace/gateway/state"
	"headrace/router/endpoint"
)

// Keys that are made while the gateway runs are documents of the store, by name: so two replicas cannot make two of one name, and a
// change is there everywhere as soon as the store tells of it.

const keyKind = "keys"

// document is a key as the store has it.
type document struct {
	Key
	Trust  string `json:"trust,omitempty"`
	SHA256 string `json:"sha256"`
	Old    string `json:"old_sha256,omitempty"`
}

func (k *Key) document() []byte {
	d := document{Key: *k, SHA256: k.Hash.String()}
	if k.Trust > 0 {
		d.Trust = k.Trust.String()
	}
	if !k.Old.IsZero() {
		d.Old = k.Old.String()
	}
	b, err := json.Marshal(&d)
	if err != nil {
		panic("BUG: a key cannot be encoded: " + err.Error())
	}
	return b
}

// keyOf reads a document.
func keyOf(name string, body []byte) (Key, error) {
	var d document
	if err := json.Unmarshal(body, &d); err != nil {
		return Key{}, err
	}
	k := d.Key
	var ok bool
	if k.Hash, ok = ParseHash(d.SHA256); !ok {
		return k, errors.New("sha256 is no hash")
	}
	if k.Old, ok = ParseHash(d.Old); !ok && d.Old != "" {
		return k, errors.New("old_sha256 is no hash")
	}
	if k.Trust, ok = endpoint.ParseTrust(d.Trust); !ok && d.Trust != "" {
		return k, errors.New("trust is no word that this version knows")
	}
	if k.Name != name || len(k.ID) != idLen {
		return k, errors.New("it is not what its name says")
	}
	k.Source = FromStore
	return k, k.Check()
}

// Errors of what operators ask for; any other but a *FieldError says that the store did not answer.
var (
	ErrUnknownKey = errors.New("there is no such key")
	ErrTaken      = errors.New("there is a key of this name already")
	ErrInConfig   = errors.New("the key stands in the config, where it has to be changed")
	ErrRevoked    = errors.New("the key is revoked, which is final")
	ErrLastAdmin  = errors.New("no other key opens the admin API, which would be open to all")
)

// Load reads the store's keys.
func (g *Gate) Load(ctx context.Context) error {
	g.loading.Lock()
	defer g.loading.Unlock()
	docs, err := g.opt.Store.Load(ctx, keyKind)
	if err != nil {
		return fmt.Errorf("read the keys: %w", err)
	}
	known, damaged := map[string]kept{}, false
	if s, ok := g.opt.Store.(interface{ Damaged(kind string) bool }); ok {
		damaged = s.Damaged(keyKind)
	}
	for name, d := range docs {
		k, err := keyOf(name, d.Body)
		if err != nil {
			damaged = true
			g.log.Error("a key of the store cannot be read, and opens nothing", "key", name, "error", err)
			continue
		}
		known[name] = kept{k, d.Version}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.kept, g.damaged = known, damaged
	g.rebuild()
	return nil
}

// kept is a key of the store.
type kept struct {
	key     Key
	version state.Version
}

// Create makes a key of what k says, and returns it with the secret, which nobody can be shown again. The errors are a *FieldError,
// ErrTaken, and the store's.
func (g *Gate) Create(ctx context.Context, k Key) (Key, string, error) {
	if err := k.Check(); err != nil {
		return k, "", err
	}
	if _, err := g.byID(k.Name); err == nil {
		return k, "", &FieldError{"name", "is the ID of another key: choose another one"}
	}
	var secret string
	k.ID, secret = mint("")
	k.Hash, k.Created, k.Source = HashOf(secret), g.opt.Now().UTC().Truncate(time.Second), FromStore
	k.Old, k.OldEnds, k.Rotated, k.Revoked = Hash{}, time.Time{}, time.Time{}, time.Time{}
	old, err := g.stored(ctx, k.Name)
	switch {
	case errors.Is(err, ErrUnknownKey):
	case err != nil:
		return k, "", err
	case old.key.Revoked.IsZero():
		return k, "", ErrTaken
	}
	v, err := g.opt.Store.Put(ctx, keyKind, k.Name, old.version, k.document())
	if errors.Is(err, state.ErrConflict) {
		return k, "", ErrTaken
	} else if err != nil {
		return k, "", fmt.Errorf("write the key: %w", err)
	}
	g.log.Info("key created", "key", k.Name, "id", k.ID)
	g.written(k, v)
	return k, secret, nil
}

// written takes note of what was written just now.
func (g *Gate) written(k Key, v state.Version) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.kept[k.Name].version < v {
		g.kept[k.Name] = kept{k, v}
		g.rebuild()
	}
}

// stored reads a key of the store by its name.
func (g *Gate) stored(ctx context.Context, name string) (kept, error) {
	if g.opt.Store == nil {
		return kept{}, errors.New("there is nowhere to keep keys")
	}
	if err := g.Load(ctx); err != nil {
		return kept{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range g.config {
		if g.config[i].Name == name {
			return kept{}, ErrInConfig
		}
	}
	k, ok := g.kept[name]
	if !ok {
		return kept{}, ErrUnknownKey
	}
	return k, nil
}

// change alters a key of the store, by name or ID.
func (g *Gate) change(ctx context.Context, what, which string, alter func(*Key) error) (Key, error) {
	for tries := 1; ; tries++ {
		name, err := g.nameOf(ctx, which)
		if err != nil {
			return Key{}, err
		}
		old, err := g.stored(ctx, name)
		if err != nil {
			return Key{}, err
		}
		k := old.key
		if !k.Revoked.IsZero() {
			return k, ErrRevoked
		}
		if err := cmp.Or(alter(&k), k.Check()); err != nil {
			return k, err
		}
		if old.key.Admin && !(k.Admin && k.usable(g.opt.Now())) && !g.otherAdmin(k.ID) {
			return k, ErrLastAdmin
		}
		v, err := g.opt.Store.Put(ctx, keyKind, k.Name, old.version, k.document())
		switch {
		case errors.Is(err, state.ErrConflict) && tries < 5: // another replica was first
			continue
		case err != nil:
			return k, fmt.Errorf("write the key: %w", err)
		}
		g.log.Info("key changed", "how", what, "key", k.Name, "id", k.ID)
		g.written(k, v)
		return k, nil
	}
}

// nameOf is the name of the key that is known by a name, an ID or the beginning of its secret.
func (g *Gate) nameOf(ctx context.Context, which string) (string, error) {
	if g.opt.Store != nil {
		if err := g.Load(ctx); err != nil {
			return "", err
		}
	}
	gr, err := g.called(which)
	if err != nil {
		return "", err
	}
	return gr.Key.Name, nil
}

// called returns the key of that name, or else of that ID. The error is ErrUnknownKey.
func (g *Gate) called(which string) (*Grant, error) {
	for _, gr := range g.book.Load().grants {
		if gr.Key.Name == which {
			return gr, nil
		}
	}
	return g.byID(strings.TrimPrefix(which, Prefix))
}

func (g *Gate) byID(id string) (*Grant, error) {
	for _, gr := range g.book.Load().grants {
		if gr.Key.ID == id {
			return gr, nil
		}
	}
	return nil, ErrUnknownKey
}

// otherAdmin tells whether a key other than that of the ID opens the admin API now.
func (g *Gate) otherAdmin(id string) bool {
	now := g.opt.Now()
	return slices.ContainsFunc(g.book.Load().grants, func(gr *Grant) bool {
		return gr.Key.Admin && gr.Key.ID != id && gr.Key.usable(now)
	})
}

// Rotate gives a key another secret and returns that. The one before is good for grace.
func (g *Gate) Rotate(ctx context.Context, which string, grace time.Duration) (Key, string, error) {
	var secret string
	k, err := g.change(ctx, "rotated", which, func(k *Key) error {
		now := g.opt.Now().UTC()
		k.Old, k.OldEnds = Hash{}, time.Time{}
		if grace > 0 {
			k.Old, k.OldEnds = k.Hash, now.Add(grace).Truncate(time.Second)
		}
		_, secret = mint(k.ID)
		k.Hash, k.Rotated = HashOf(secret), now.Truncate(time.Second)
		return nil
	})
	if err != nil {
		return k, "", err // it opens nothing
	}
	return k, secret, nil
}

// Revoke ends a key for good: its secret and the one before. Its name may be given to another one.
func (g *Gate) Revoke(ctx context.Context, which string) (Key, error) {
	return g.change(ctx, "revoked", which, func(k *Key) error {
		k.Revoked = g.opt.Now().UTC().Truncate(time.Second)
		k.Old, k.OldEnds = Hash{}, time.Time{}
		return nil
	})
}

// Update changes what s says of a key.
func (g *Gate) Update(ctx context.Context, which string, s *Spec) (Key, error) {
	return g.change(ctx, "updated", which, func(k *Key) error {
		if s.Name != "" && s.Name != k.Name {
			return &FieldError{"name", "cannot be changed: make another key"}
		}
		return s.Apply(k)
	})
}

// Spec is what an operator says of a key, as the admin API takes it. What is nil stays as it is.
type Spec struct {
	Name        string    `json:"name"`
	Note        *string   `json:"note"`
	Expires     *string   `json:"expires"` // a date, a time by RFC 3339, or "" for never
	Disabled    *bool     `json:"disabled"`
	Models      *[]string `json:"models"`
	Policies    *[]string `json:"policies"`
	Experiments *[]string `json:"experiments"`
	Trust       *string   `json:"trust"` // "" for any
	Regions     *[]string `json:"regions"`
	Passthrough *bool     `json:"passthrough"`
	RPM         *int64    `json:"rpm"` // 0 for no limit, as are those below
	TPM         *int64    `json:"tpm"`
	Concurrency *int64    `json:"concurrency"`
	Budget      *struct {
		USDPerDay   *float64 `json:"usd_per_day"`
		USDPerMonth *float64 `json:"usd_per_month"`
		USDTotal    *float64 `json:"usd_total"`
		Soft        *float64 `json:"soft"`
	} `json:"budget"`
	Priority *string  `json:"priority"`
	Weight   *float64 `json:"weight"`
	Admin    *bool    `json:"admin"`
}

// Apply makes k what s says. The error is a *FieldError; limits and the like are Check's business.
func (s *Spec) Apply(k *Key) error {
	for _, l := range []struct {
		field string
		list  *[]string
		to    *[]string
	}{{"models", s.Models, &k.Models}, {"policies", s.Policies, &k.Policies}, {"regions", s.Regions, &k.Regions}} {
		switch {
		case l.list == nil:
		case len(*l.list) == 0: // which may be meant to allow nothing
			return &FieldError{l.field, `is an empty list: name what is allowed, or give ["*"] for all`}
		case len(*l.list) == 1 && (*l.list)[0] == "*":
			*l.to = nil
		default:
			*l.to = *l.list
		}
	}
	set(&k.Note, s.Note)
	set(&k.Off, s.Disabled)
	set(&k.Experiments, s.Experiments)
	set(&k.Passthrough, s.Passthrough)
	set(&k.RPM, s.RPM)
	set(&k.TPM, s.TPM)
	set(&k.Concurrency, s.Concurrency)
	set(&k.Priority, s.Priority)
	set(&k.Weight, s.Weight)
	set(&k.Admin, s.Admin)
	if b := s.Budget; b != nil {
		set(&k.Budget.USDPerDay, b.USDPerDay)
		set(&k.Budget.USDPerMonth, b.USDPerMonth)
		set(&k.Budget.USDTotal, b.USDTotal)
		set(&k.Budget.Soft, b.Soft)
	}
	if s.Trust != nil {
		t, ok := endpoint.ParseTrust(*s.Trust)
		if !ok && *s.Trust != "" {
			return &FieldError{"trust", "must be one of community, verified, datacenter or secure"}
		}
		k.Trust = t
	}
	if s.Expires != nil {
		k.Expires = time.Time{}
		if *s.Expires != "" {
			t, ok := ParseExpiry(*s.Expires)
			if !ok {
				return &FieldError{"expires", `must be a date or a time, such as 2027-06-30 or 2027-06-30T18:00:00Z, or "" for never`}
			}
			k.Expires = t
		}
	}
	return nil
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// ParseExpiry reads a date (its beginning, UTC) or a time.
func ParseExpiry(s string) (time.Time, bool) {
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), true
		}
	}
	return time.Time{}, false
}

// View is a key as operators see it, with what it has used.
type View struct {
	Key
	Trust   string `json:"trust,omitempty"`
	State   string `json:"state"` // "active", "disabled", "expired" or "revoked"
	Running int64  `json:"in_flight"`
	// RequestsLeft and TokensLeft are what is left of the minute's, nil where there is no limit.
	RequestsLeft *int64 `json:"requests_left,omitempty"`
	TokensLeft   *int64 `json:"tokens_left,omitempty"`

	SpentToday float64 `json:"spent_usd_today"` // UTC, as is the month
	SpentMonth float64 `json:"spent_usd_month"`
	SpentTotal float64 `json:"spent_usd_total"`
	// BudgetLeft is of the budget that is nearest to its end, nil where there is none.
	BudgetLeft *float64 `json:"budget_left_usd,omitempty"`
}

// Views returns all keys by name, those that are revoked too. With Redis their figures are everybody's, else this process'.
func (g *Gate) Views(ctx context.Context) []View {
	g.refresh(ctx)
	grants := g.book.Load().grants
	views := make([]View, 0, len(grants))
	for _, gr := range grants {
		views = append(views, gr.view(g.opt.Now()))
	}
	return views
}

// View returns the key that is known by a name or an ID, as Views does. The error is ErrUnknownKey.
func (g *Gate) View(ctx context.Context, which string) (View, error) {
	g.refresh(ctx)
	gr, err := g.called(which)
	if err != nil {
		return View{}, err
	}
	return gr.view(g.opt.Now()), nil
}

func (gr *Grant) view(now time.Time) View {
	k, a := &gr.Key, gr.acct
	v := View{Key: *k, State: "active"}
	if k.Trust > 0 {
		v.Trust = k.Trust.String()
	}
	switch {
	case !k.Revoked.IsZero():
		v.State = "revoked"
	case k.Off:
		v.State = "disabled"
	case !k.Expires.IsZero() && !now.Before(k.Expires):
		v.State = "expired"
	}
	clock := gr.gate.clock(now)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.roll(now)
	v.Running = a.running
	if k.RPM > 0 {
		v.RequestsLeft = new(a.requests.left(clock, k.RPM))
	}
	if k.TPM > 0 {
		v.TokensLeft = new(a.tokens.left(clock, k.TPM))
	}
	v.SpentToday, v.SpentMonth, v.SpentTotal = usd(a.spent.InDay+a.unsaved.InDay), usd(a.spent.InMon+a.unsaved.InMon), usd(a.spent.Total+a.unsaved.Total)
	if nano, limited := a.funds(gr); limited {
		v.BudgetLeft = new(usd(nano))
	}
	return v
}

// NewKey returns a key that nobody has, and its hash, for a config.
func NewKey() (key string, h Hash) {
	_, key = mint("")
	return key, HashOf(key)
}
