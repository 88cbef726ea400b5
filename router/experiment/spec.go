package experiment

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// String says in words how the arm serves.
func (a *Arm) String() string {
	parts := []string{a.Hosts.String()}
	if a.Model != "" {
		parts = append(parts, "of model "+a.Model)
	}
	for _, l := range [][2]string{{"policy", a.Policy}, {"on preemption", a.OnPreemption}, {"hedge", a.Hedge}} {
		if l[1] != "" {
			parts = append(parts, l[0]+" "+l[1])
		}
	}
	return strings.Join(parts, ", ")
}

// Spec is an experiment as its operator wrote it down. It is not altered once it is in use.
type Spec struct {
	Name  string
	Model string // whose requests it divides, as callers name it
	// Layer names the experiments that exclude each other: a unit is in at most one of them. From and To are this one's stretch of
	// the layer's units, in [0,1]; From 0 and To 1 is all of them.
	Layer    string
	From, To float64
	Units    []Unit // what is assigned: the first that a request has
	Arms     []Arm  // the control first
	// Steps are the shares of units that all arms but the control get together, one after another, each more than the one before. None:
	// each arm keeps its Share.
	Steps    []float64
	MinTime  time.Duration // of each step
	MinUnits int           // units of each arm that is tried, in each step
	MaxTime  time.Duration // without pauses; after it an experiment that has shown nothing is called inconclusive; 0 for never
	Start    time.Time     // nothing is tried before; zero for at once
	End      time.Time     // everything is the control's from then on; zero for never
	Wanted   Wanted        // by the config
	Shadow   Shadow
	// Spill lets hosts that are tried serve others' requests too, which find no room elsewhere, while they are tried.
	Spill bool

	rest string
}

// Shadow has requests of the control asked once more of another arm, whose answers nobody gets.
type Shadow struct {
	Arm       int     // index; 0 for none
	Share     float64 // of the control's requests
	MaxTokens int     // of such an answer
	Paid      bool    // it may cost something
}

// Arm is one of the ways in which a request can be served.
type Arm struct {
	Name  string
	Model string    // whose hosts serve it, "" for the experiment's
	Hosts *Selector // which of them; nil for all
	// Policy, OnPreemption and Hedge are words of the config that hold in place of the model's; "" where they do not.
	Policy       string
	OnPreemption string
	Hedge        string
	// Share is what it gets of the units, in (0,1]; with Steps only its relation to the other arms' counts.
	Share float64

	label string
	pool  string
}

// Label is the arm's name with its experiment's: "exp/arm".
func (a *Arm) Label() string { return a.label }

// Experiment is the experiment's name.
func (a *Arm) Experiment() string { return a.label[:len(a.label)-len(a.Name)-1] }

// Pool is the name of the router's pool of the arm's hosts.
func (a *Arm) Pool() string { return a.pool }

// Rest is the name of the router's pool of those of the model's hosts that may serve whatever finds no room at its arm's: all but those
// that only arms that are tried name, of any experiment. Experiments on one model share it.
func (s *Spec) Rest() string { return s.rest }

// Control is the arm that the others are compared with.
func (s *Spec) Control() *Arm { return &s.Arms[0] }

// Tried are the arms but the control.
func (s *Spec) Tried() []Arm { return s.Arms[1:] }

// Arm returns the arm of that name and its index, nil when there is none.
func (s *Spec) Arm(name string) (*Arm, int) {
	for i := range s.Arms {
		if s.Arms[i].Name == name {
			return &s.Arms[i], i
		}
	}
	return nil, -1
}

// poolMark and restMark begin the names of pools, and no model's.
const (
	poolMark = "\x00experiment/"
	restMark = "\x00experiments-rest/"
)

// Ready names the arms. It is to be called once, before the spec is used.
func (s *Spec) Ready() {
	if s.Layer == "" {
		s.Layer = s.Model
	}
	if s.To == 0 {
		s.To = 1
	}
	s.rest = restMark + s.Model
	for i := range s.Arms {
		a := &s.Arms[i]
		a.label = s.Name + "/" + a.Name
		a.pool = poolMark + a.label
	}
}

// Digest is the same for experiments that try the same on the same units: one whose digest changes is another experiment.
func (s *Spec) Digest() string {
	type arm struct {
		Name, Model                 string
		Hosts                       *Selector
		Policy, OnPreemption, Hedge string
		Share                       float64
	}
	d := struct {
		Model, Layer string
		From, To     float64
		Units        []string
		Arms         []arm
	}{Model: s.Model, Layer: s.Layer, From: s.From, To: s.To}
	for _, u := range s.Units {
		d.Units = append(d.Units, u.String())
	}
	for i := range s.Arms {
		a := &s.Arms[i]
		d.Arms = append(d.Arms, arm{a.Name, a.Model, a.Hosts, a.Policy, a.OnPreemption, a.Hedge, a.Share})
	}
	b, err := json.Marshal(d)
	if err != nil {
		panic("BUG: experiment: digest: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// Unit is what is assigned to an arm as a whole.
type Unit struct {
	Kind   UnitKind
	Header string // ByHeader: the field's name, in lower case
}

// UnitKind is where a request's unit is found.
type UnitKind uint8

// Kinds of units.
const (
	ByRequest UnitKind = iota // every request for itself
	BySession                 // x-headrace-session, else prompt_cache_key
	ByUser                    // the body's user
	ByKey                     // the caller's key
	ByHeader                  // a header field
)

var unitNames = [...]string{"request", "session", "user", "key"}

const headerUnit = "header:"

// String is the unit as the config writes it.
func (u Unit) String() string {
	if u.Kind == ByHeader {
		return headerUnit + u.Header
	}
	return unitNames[u.Kind]
}

// ParseUnit reads a unit as the config writes it; ok is false for anything else.
func ParseUnit(s string) (u Unit, ok bool) {
	if name, is := strings.CutPrefix(s, headerUnit); is {
		name = strings.ToLower(name)
		return Unit{ByHeader, name}, name != "" && !strings.ContainsFunc(name, func(r rune) bool {
			return r != '-' && r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9')
		})
	}
	i := slices.Index(unitNames[:], s)
	return Unit{Kind: UnitKind(max(i, 0))}, i >= 0 //nolint:gosec // a handful
}

// Sticky tells whether a unit's requests can be many.
func (s *Spec) Sticky() bool {
	return slices.ContainsFunc(s.Units, func(u Unit) bool { return u.Kind != ByRequest })
}

// Wanted is the state that the config asks for.
type Wanted string

// What can be wanted.
const (
	WantRun     Wanted = "run"
	WantPause   Wanted = "pause"
	WantPromote Wanted = "promote"
	WantAbort   Wanted = "abort"
)

func percent(share float64) string { return fmt.Sprintf("%.4g %%", share*100) }
