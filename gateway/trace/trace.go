// Package trace is the little of distributed tracing that a request needs while it runs: who it is, whether it is sampled, and
// what the hosts it asks are told of that (W3C Trace Context). Spans are made of its record, when it is over.
package trace

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
)

// ID names a trace; all zeros is none.
type ID [16]byte

// SpanID names a span of a trace; all zeros is none.
type SpanID [8]byte

// Context is where a request stands. The zero value is a request that is not traced.
type Context struct {
	ID      ID
	Span    SpanID // the request's own
	Parent  SpanID // its caller's, where callers are trusted; zero for the trace's first
	Sampled bool
	State   string // the trusted caller's tracestate, "" for none

	// The trace that a caller who is not trusted says it belongs to, to be linked; zero for none.
	LinkID   ID
	LinkSpan SpanID
}

// On tells whether the request is traced, sampled or not.
func (c *Context) On() bool { return c.ID != ID{} }

// Policy decides what becomes of requests. It is not changed while requests begin by it.
type Policy struct {
	On    bool
	Ratio float64 // of the requests that begin a trace: the share that is sampled, from 0 to 1
	// Trust lets callers put a request into a trace of theirs, and decide whether it is sampled.
	Trust bool
	// Rand returns random bits; nil is the runtime's. It is called by many goroutines.
	Rand func() uint64
}

// maxState bounds a tracestate that is kept, in bytes (W3C Trace Context section 3.3.1.5: at least 512 are to be passed on).
const maxState = 512

// Begin places a request that came with these headers, empty where they were missing. It keeps neither.
func (p *Policy) Begin(traceparent, tracestate []byte) Context {
	var c Context
	if !p.On {
		return c
	}
	c.Span = p.NewSpan()
	id, span, sampled, ok := Parse(traceparent)
	if ok && p.Trust {
		c.ID, c.Parent, c.Sampled = id, span, sampled
		if len(tracestate) <= maxState {
			c.State = string(tracestate)
		}
		return c
	}
	if ok {
		c.LinkID, c.LinkSpan = id, span
	}
	low := p.bits() | 1 // never all zeros
	binary.BigEndian.PutUint64(c.ID[:8], p.bits())
	binary.BigEndian.PutUint64(c.ID[8:], low)
	c.Sampled = float64(low>>11) < p.Ratio*(1<<53) // by its low bits, as OpenTelemetry's ratio sampler reads it
	return c
}

// NewSpan draws the name of a span.
func (p *Policy) NewSpan() (s SpanID) {
	binary.BigEndian.PutUint64(s[:], p.bits()|1)
	return s
}

func (p *Policy) bits() uint64 {
	if p.Rand != nil {
		return p.Rand()
	}
	return rand.Uint64() //nolint:gosec // names, no secrets
}

// traceparent is "00-" 32 hex digits "-" 16 hex digits "-" 2 hex digits.
const parentLen = 55

// Parse reads a traceparent; ok is false for one that must be ignored.
func Parse(b []byte) (id ID, span SpanID, sampled, ok bool) {
	if len(b) < parentLen || b[2] != '-' || b[35] != '-' || b[52] != '-' {
		return id, span, false, false
	}
	var version, flags [1]byte
	for _, f := range [...]struct{ to, from []byte }{{version[:], b[:2]}, {id[:], b[3:35]}, {span[:], b[36:52]}, {flags[:], b[53:55]}} {
		for _, c := range f.from {
			if c >= 'A' && c <= 'F' { // the standard has lower case only
				return ID{}, SpanID{}, false, false
			}
		}
		if _, err := hex.Decode(f.to, f.from); err != nil {
			return ID{}, SpanID{}, false, false
		}
	}
	later := version[0] != 0 && len(b) > parentLen && b[parentLen] == '-'
	if version[0] == 0xff || len(b) != parentLen && !later || id == (ID{}) || span == (SpanID{}) {
		return ID{}, SpanID{}, false, false
	}
	return id, span, flags[0]&1 != 0, true
}

// AppendParent appends the header lines by which a host learns that span of c has asked it.
func (c *Context) AppendParent(dst []byte, span SpanID) []byte {
	dst = append(dst, "Traceparent: 00-"...)
	dst = hex.AppendEncode(dst, c.ID[:])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, span[:])
	if c.Sampled {
		dst = append(dst, "-01\r\n"...)
	} else {
		dst = append(dst, "-00\r\n"...)
	}
	if c.State != "" {
		dst = append(dst, "Tracestate: "...)
		dst = append(dst, c.State...)
		dst = append(dst, "\r\n"...)
	}
	return dst
}
