package fakecloud

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Kind is a way in which a host fails or is merely odd.
type Kind uint8

// Kinds. "After" means Fault.After, in tokens; for n > 1, in steps of all choices together.
const (
	noFault Kind = iota

	// These strike before the engine sees the request.

	Refuse      // no one listens; what runs goes on. Lasts until the faults are set anew, for the host as a whole
	Hang        // the request is read and never answered
	Reset       // RST instead of a head
	ResetHead   // RST right after the head
	Garbage     // bytes that are no HTTP
	Throttle    // 429 with Retry-After: Delay in whole seconds, 1 if not set
	Error500    // 500 with vLLM's error body
	Unavailable // 503 with vLLM's error body
	HTML502     // 502 with an HTML page, as from a proxy in front
	HTML200     // 200 with an HTML page
	FlatError   // 200 with the flat error object of old vLLM versions
	SlowHead    // the head comes Delay late, then all is well

	// These strike while the answer is on its way. An answer that is no stream has got half of its body by then.

	HalfOpen     // silence without a FIN from both sides: After 0 before the head, else after as many tokens
	ResetStream  // RST after After tokens
	EOFStream    // FIN after After tokens, inside the chunked body
	CutClean     // the body ends properly after After tokens, without finish_reason or [DONE]
	CutEvent     // FIN in the middle of the event after After tokens
	Stall        // nothing more after After tokens, the connection stays
	RoleOnly     // the chunk with the role, then nothing
	GarbageEvent // an event that is no JSON after After tokens, then FIN
	ErrorEvent   // an error event after After tokens, then [DONE], as vLLM does

	// These change how the whole answer looks. Any number of them go together, and with one of those above.

	NoDone      // no [DONE]
	UsageInLast // usage in the chunk with finish_reason instead of one of its own
	PlainJSON   // a stream is answered by plain JSON
	ShortLength // Content-Length half of the body
	LongLength  // Content-Length 100 more than the body, then FIN
	Interim     // 102 and 103 before the head
	HugeHeader  // 64 KiB of headers
	CRLF        // lines end in CR LF
	MultiLine   // JSON over several data lines
	NoSpace     // no space behind "data:"
	Comments    // a comment line before each event
	BOM         // a byte order mark first
	Ragged      // writes end anywhere, in characters too
	Batched     // eight events in one write
	SplitChars  // each write ends inside a character of several bytes, where there is one
	Drip        // one byte in a write, Delay apart (not scaled; 1 ms if not set)

	numKinds
)

var kindNames = [numKinds]string{
	"none", "refuse", "hang", "reset", "reset_head", "garbage", "throttle", "error_500", "unavailable", "html_502", "html_200",
	"flat_error", "slow_head", "half_open", "reset_stream", "eof_stream", "cut_clean", "cut_event", "stall", "role_only", "garbage_event",
	"error_event", "no_done", "usage_in_last", "plain_json", "short_length", "long_length", "interim", "huge_header", "crlf",
	"multi_line", "no_space", "comments", "bom", "ragged", "batched", "split_chars", "drip",
}

// String returns the word used by flags and the x-fake-fault header.
func (k Kind) String() string {
	if k < numKinds {
		return kindNames[k]
	}
	return fmt.Sprintf("invalid(%d)", uint8(k))
}

// Kinds lists all kinds in the order of their declaration.
func Kinds() []Kind {
	var ks []Kind
	for k := noFault + 1; k < numKinds; k++ {
		ks = append(ks, k)
	}
	return ks
}

// shape says that k changes the looks of an answer, and not whether it comes.
func (k Kind) shape() bool { return k >= NoDone }

// wire says that k needs the bare connection.
func (k Kind) wire() bool {
	switch k {
	case Reset, ResetHead, Garbage, HalfOpen, ResetStream, EOFStream, CutEvent, GarbageEvent, ShortLength, LongLength, Interim:
		return true
	default:
		return false
	}
}

// duringStream says that k strikes while tokens are made.
func (k Kind) duringStream() bool { return k >= HalfOpen && k < NoDone }

// Fault is a kind with when and whom it strikes.
type Fault struct {
	Kind  Kind
	After int           // tokens that are still sent before it strikes
	Delay time.Duration // see the kinds; of the wall clock
	Times int           // requests it strikes at most, 0 for all until the faults are set anew
	P     float64       // probability for each request, drawn from the host's seed; 0 means 1
	Path  string        // only requests whose path begins so; "" means every POST
}

// ParseFault reads "KIND[,after=N][,delay=D][,times=N][,p=P][,path=/V1/…]", as String writes it.
func ParseFault(s string) (Fault, error) {
	parts := strings.Split(s, ",")
	k := slices.Index(kindNames[1:], strings.TrimSpace(parts[0])) + 1
	if k == 0 {
		return Fault{}, fmt.Errorf("fault %q: unknown kind %q", s, parts[0])
	}
	f := Fault{Kind: Kind(k)}
	for _, p := range parts[1:] {
		name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		var err error
		switch name {
		case "after":
			f.After, err = strconv.Atoi(value)
		case "times":
			f.Times, err = strconv.Atoi(value)
		case "delay":
			f.Delay, err = time.ParseDuration(value)
		case "p":
			f.P, err = strconv.ParseFloat(value, 64)
		case "path":
			f.Path = value
		default:
			err = fmt.Errorf("unknown setting %q", name)
		}
		if err != nil {
			return Fault{}, fmt.Errorf("fault %q: %w", s, err)
		}
	}
	if f.After < 0 || f.Times < 0 || f.Delay < 0 || !(f.P >= 0 && f.P <= 1) {
		return Fault{}, fmt.Errorf("fault %q: a setting out of range", s)
	}
	return f, nil
}

// String returns the form that ParseFault reads.
func (f Fault) String() string {
	s := f.Kind.String()
	if f.After != 0 {
		s += ",after=" + strconv.Itoa(f.After)
	}
	if f.Delay != 0 {
		s += ",delay=" + f.Delay.String()
	}
	if f.Times != 0 {
		s += ",times=" + strconv.Itoa(f.Times)
	}
	if f.P != 0 {
		s += ",p=" + strconv.FormatFloat(f.P, 'g', -1, 64)
	}
	if f.Path != "" {
		s += ",path=" + f.Path
	}
	return s
}

// plan is what strikes one request: at most one kind that ends it, and any shapes.
type plan struct {
	end    Fault // Kind noFault for none
	shapes []Fault
	rng    *rand.Rand // of this request
}

func (p *plan) add(f Fault) {
	switch {
	case f.Kind.shape():
		if _, ok := p.shape(f.Kind); !ok {
			p.shapes = append(p.shapes, f)
		}
	case p.end.Kind == noFault:
		p.end = f
	}
}

func (p *plan) shape(k Kind) (Fault, bool) {
	for _, f := range p.shapes {
		if f.Kind == k {
			return f, true
		}
	}
	return Fault{}, false
}

func (p *plan) has(k Kind) bool {
	_, ok := p.shape(k)
	return ok
}

// wire says that the request needs the bare connection.
func (p *plan) wire() bool {
	return p.end.Kind.wire() || slices.ContainsFunc(p.shapes, func(f Fault) bool { return f.Kind.wire() })
}

// script is what was set by SetFaults.
type script struct {
	mu    sync.Mutex // guards all below
	rules []rule
	count uint64 // requests so far
	seed  uint64
}

type rule struct {
	Fault
	left int // strikes left, for Times > 0
}

func (s *script) set(faults []Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = nil
	for _, f := range faults {
		s.rules = append(s.rules, rule{f, f.Times})
	}
}

// plan draws what strikes r. Request number i of a host draws the same whatever else runs.
func (s *script) plan(r *http.Request) *plan {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	p := &plan{rng: rand.New(rand.NewPCG(s.seed, s.count))} //nolint:gosec // faults are to be repeatable
	for i := range s.rules {
		f := &s.rules[i]
		hit := f.P == 0 || p.rng.Float64() < f.P // drawn even if it does not apply
		switch {
		case f.Kind == Refuse || !hit || f.Times > 0 && f.left == 0:
		case f.Path == "" && r.Method != http.MethodPost, !strings.HasPrefix(r.URL.Path, f.Path):
		default:
			f.left--
			p.add(f.Fault)
		}
	}
	return p
}
