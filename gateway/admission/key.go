package admission

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"headrace/router"
	"headrace/router/endpoint"
)

// Key is what is known of one key, but for the key itself: that is shown once, when it is made, and nowhere kept.
type Key struct {
	Name string `json:"name"` // unique; what logs, the ledger and reports call it
	ID   string `json:"id"`   // 8 characters behind "hr_" of a key made here, by which it is recognised where it was found; no secret

	Hash    Hash      `json:"-"`                  // of the key
	Old     Hash      `json:"-"`                  // of the one before the last rotation, which is good until OldEnds
	OldEnds time.Time `json:"old_ends,omitzero"`  // zero where there is none
	Created time.Time `json:"created,omitzero"`   // zero for keys of the config
	Rotated time.Time `json:"rotated,omitzero"`   // zero where it never was
	Revoked time.Time `json:"revoked,omitzero"`   // zero where it is not; final
	Source  string    `json:"source"`             // "config" or "store"
	Note    string    `json:"note,omitempty"`     // the operator's own words
	Expires time.Time `json:"expires,omitzero"`   // zero for never
	Off     bool      `json:"disabled,omitempty"` // for the time being

	Models      []string       `json:"models,omitempty"`      // names, exact or with "*" at the end; nil for all
	Policies    []string       `json:"policies,omitempty"`    // that x-headrace-policy may ask for; nil for all
	Experiments []string       `json:"experiments,omitempty"` // whose arm x-headrace-arm may choose, exact or with "*" at the end; nil for none
	Trust       endpoint.Trust `json:"-"`                     // least trust of hosts; 0 for any
	Regions     []string       `json:"regions,omitempty"`     // of hosts, any of them; nil for anywhere
	Passthrough bool           `json:"passthrough,omitempty"` // may use paths that are passed on unread: what is asked there is neither limited to Models nor metered

	RPM         int64 `json:"rpm,omitempty"`         // requests a minute; 0 for no limit, as are all below
	TPM         int64 `json:"tpm,omitempty"`         // tokens a minute, of prompts and answers together
	Concurrency int64 `json:"concurrency,omitempty"` // requests at once

	Budget   Budget  `json:"budget,omitzero"`
	Priority string  `json:"priority,omitempty"` // "interactive" or "batch"; "" is the former
	Weight   float64 `json:"weight,omitempty"`   // share of a full fleet against other keys; 0 is 1

	// Admin says that the key opens the admin API. While there is any such key, that API asks for one.
	Admin bool `json:"admin,omitempty"`
}

// Budget is what a key may cost, in US dollars; 0 for no limit. Days and months are UTC's.
type Budget struct {
	USDPerDay   float64 `json:"usd_per_day,omitempty"`
	USDPerMonth float64 `json:"usd_per_month,omitempty"`
	USDTotal    float64 `json:"usd_total,omitempty"`
	// Soft is the share of each of them beyond which the log warns, in (0,1]; 0 is DefaultSoft.
	Soft float64 `json:"soft,omitempty"`
}

// DefaultSoft is the share of a budget beyond which the log warns, where a key says nothing of it.
const DefaultSoft = 0.8

// Any tells whether b limits anything.
func (b *Budget) Any() bool { return b.USDPerDay > 0 || b.USDPerMonth > 0 || b.USDTotal > 0 }

// Hash is the SHA-256 of a key. Keys made here carry 160 random bits, which nobody can try out, so that a hash made slow on purpose
// would guard nothing; it would cost every request what it costs an attacker. Of keys that were written into a config the same is
// asked by their length.
type Hash [sha256.Size]byte

// HashOf returns the hash of a key.
func HashOf(key string) Hash { return sum([]byte(key)) }

func sum(key []byte) Hash { return sha256.Sum256(key) }

// ParseHash reads a hash as hex digits.
func ParseHash(s string) (h Hash, ok bool) {
	if len(s) != hex.EncodedLen(len(h)) {
		return h, false
	}
	_, err := hex.Decode(h[:], []byte(s))
	return h, err == nil
}

// String returns the hash in hex digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// IsZero tells whether there is none.
func (h Hash) IsZero() bool { return h == Hash{} }

const (
	// Prefix is how every key begins that is made here, so that scanners for leaked secrets find them.
	Prefix = "hr_"

	idLen      = 8
	secretLen  = 32 // base32: 160 bits
	keyLen     = len(Prefix) + idLen + secretLen
	minKeyLen  = 20  // of keys in a config
	maxKeyLen  = 256 // longer ones are refused before anything is done with them
	maxNameLen = 64
	maxNote    = 512
	mostItems  = 64 // of a list
	maxItem    = 256
)

// alphabet leaves out what people mistake for something else.
var alphabet = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// mint makes a key of that id, or of a new one where it is "".
func mint(id string) (newID, key string) {
	var b [5 + 20]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process first
	if id == "" {
		id = alphabet.EncodeToString(b[:5])
	}
	return id, Prefix + id + alphabet.EncodeToString(b[5:])
}

// idOf is the id of a key that stands in a config: always the same for a name, so that what it has spent outlives its secret.
func idOf(name string) string {
	h := sha256.Sum256([]byte("key of the config: " + name))
	return alphabet.EncodeToString(h[:5])
}

// FieldError says which field of a Key is wrong, by its name in the admin API, and what it should be.
type FieldError struct{ Field, What string }

// Error names the field first.
func (e *FieldError) Error() string { return e.Field + " " + e.What }

// Check finds what is wrong with k; the error is a *FieldError, for the first that is found.
func (k *Key) Check() error {
	bad := func(field, what string) error { return &FieldError{field, what} }
	if !validName(k.Name) {
		return bad("name", fmt.Sprintf("must be 1 to %d lower case letters, digits, \".\", \"_\" and \"-\", starting with a letter or digit", maxNameLen))
	}
	if len(k.Note) > maxNote {
		return bad("note", fmt.Sprintf("must be no longer than %d bytes", maxNote))
	}
	for _, f := range []struct {
		field string
		list  []string
	}{{"models", k.Models}, {"experiments", k.Experiments}} {
		if what := badPatterns(f.list); what != "" {
			return bad(f.field, what)
		}
	}
	if len(k.Policies) > mostItems || slices.ContainsFunc(k.Policies, func(s string) bool { _, ok := router.ParsePolicy(s); return !ok }) {
		return bad("policies", "must be of "+router.Policies("or"))
	}
	if len(k.Regions) > mostItems || slices.ContainsFunc(k.Regions, func(s string) bool { return strings.TrimSpace(s) == "" || len(s) > maxItem || strings.Contains(s, ",") }) {
		return bad("regions", "must be names of regions, such as EU or US-KS-2")
	}
	for _, f := range []struct {
		field string
		n     int64
	}{{"rpm", k.RPM}, {"tpm", k.TPM}, {"concurrency", k.Concurrency}} {
		if f.n < 0 || f.n > mostLimit {
			return bad(f.field, fmt.Sprintf("must be a whole number from 1 to %d, or 0 for no limit", int64(mostLimit)))
		}
	}
	for _, f := range []struct {
		field string
		usd   float64
	}{{"usd_per_day", k.Budget.USDPerDay}, {"usd_per_month", k.Budget.USDPerMonth}, {"usd_total", k.Budget.USDTotal}} {
		if !(f.usd >= 0 && f.usd <= mostUSD) {
			return bad("budget."+f.field, fmt.Sprintf("must be US dollars, up to %.0f, or 0 for no limit", float64(mostUSD)))
		}
	}
	if s := k.Budget.Soft; !(s >= 0 && s <= 1) {
		return bad("budget.soft", "must be a share above 0 and up to 1, such as 0.8")
	}
	if k.Priority != "" && k.Priority != Interactive && k.Priority != Batch {
		return bad("priority", "must be "+Interactive+" or "+Batch)
	}
	if !(k.Weight >= 0 && k.Weight <= mostWeight) {
		return bad("weight", fmt.Sprintf("must be above 0 and up to %d", mostWeight))
	}
	return nil
}

// Priorities of a key.
const (
	Interactive = "interactive" // somebody waits for the answer
	Batch       = "batch"       // it may wait for a better moment
)

const (
	mostLimit  = 1e9
	mostUSD    = 1e6
	mostWeight = 1000
)

func validName(s string) bool {
	for i, r := range s {
		alnum := 'a' <= r && r <= 'z' || '0' <= r && r <= '9'
		if !alnum && (i == 0 || r != '.' && r != '_' && r != '-') {
			return false
		}
	}
	return s != "" && len(s) <= maxNameLen
}

func badPatterns(list []string) string {
	if len(list) > mostItems {
		return fmt.Sprintf("must have no more than %d items", mostItems)
	}
	for _, s := range list {
		if star := strings.IndexByte(s, '*'); s == "" || len(s) > maxItem || star >= 0 && star != len(s)-1 {
			return `must be names, exact or with "*" at the end`
		}
	}
	return ""
}

// fits tells whether a name is one of list.
func fits(list []string, name string) bool {
	for _, p := range list {
		if n := len(p) - 1; n >= 0 && p[n] == '*' {
			if strings.HasPrefix(name, p[:n]) {
				return true
			}
		} else if p == name {
			return true
		}
	}
	return false
}

// nanos turns US dollars into billionths of one: sums of them are exact, whatever their order, up to 9.2e9 dollars.
func nanos(usd float64) int64 {
	switch n := usd * nanosPerUSD; {
	case !(n > 0): //nolint:staticcheck // NaN is not above 0 either
		return 0
	case n > math.MaxInt64/4:
		return math.MaxInt64 / 4
	default:
		return int64(math.Round(n))
	}
}

const nanosPerUSD = 1e9

func usd(nano int64) float64 { return float64(nano) / nanosPerUSD }
