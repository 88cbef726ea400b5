package sim

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Call is a request of a trace.
type Call struct {
	At      float64 // seconds since the trace's first
	Prompt  int     // tokens
	Output  int     // tokens
	Session string  // "" for one of its own
}

// Spot is how many instances of a kind somebody held over time, one number every Gap seconds.
type Spot struct {
	Gap  float64
	Held []int
}

const byteOrderMark = "\xef\xbb\xbf" // of UTF-8, as spreadsheets write it

const (
	mostCalls  = 5_000_000
	mostTokens = 10_000_000
	mostTicks  = 10_000_000
	mostHeld   = 1_000_000
)

// LineError says what is wrong in a file, and where.
type LineError struct {
	Line int // from 1
	Err  error
}

// Error names the line.
func (e *LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }

// Unwrap returns what is wrong.
func (e *LineError) Unwrap() error { return e.Err }

// ReadCalls reads a trace of requests: CSV with a header that names a time, prompt tokens, output tokens and perhaps a
// session, in any order and among others, as the traces of Azure's LLM services are; or without a header those three or
// four in this order. Semicolons or tabs may part them as well; rows that say nothing are left out. Times are seconds, since
// 1970 in smaller units too, or dates, as in RFC 3339 or with a blank for the T. Rows need not be by time. The error is a
// *LineError, or r's.
func ReadCalls(r io.Reader) ([]Call, error) {
	in := bufio.NewReader(r)
	if bom, err := in.Peek(len(byteOrderMark)); err == nil && string(bom) == byteOrderMark {
		in.Discard(len(byteOrderMark)) //nolint:errcheck // peeked
	}
	rows := csv.NewReader(in)
	var err error
	if rows.Comma, err = comma(in); err != nil {
		return nil, err
	}
	rows.ReuseRecord, rows.TrimLeadingSpace, rows.FieldsPerRecord = true, rows.Comma != '\t', -1
	var (
		calls []Call
		p     *places
		width int  // of all rows
		dates bool // of the first row
		first time.Time
	)
	for {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if p, ok := errors.AsType[*csv.ParseError](err); ok {
				return nil, &LineError{p.Line, p.Err}
			}
			return nil, fmt.Errorf("read trace: %w", err)
		}
		if !slices.ContainsFunc(row, func(cell string) bool { return !blank(cell) }) {
			continue
		}
		line, _ := rows.FieldPos(0)
		if p == nil {
			width = len(row)
			header, err := locate(row)
			if err != nil {
				return nil, &LineError{line, err}
			}
			if p = header; p != nil {
				continue
			}
			if len(row) != 3 && len(row) != 4 {
				return nil, &LineError{line, fmt.Errorf("%d columns without a header, want time, prompt tokens, output tokens and perhaps a session", len(row))}
			}
			p = &places{at: [numColumns]int{0, 1, 2, -1}}
			if len(row) == 4 {
				p.at[colSession] = 3
			}
		}
		if len(row) != width {
			return nil, &LineError{line, fmt.Errorf("wrong number of fields: %d, and %d in the first row", len(row), width)}
		}
		c, date, err := p.call(row)
		switch {
		case err != nil:
			return nil, &LineError{line, err}
		case len(calls) == 0:
			dates, first = !date.IsZero(), date
		case dates != !date.IsZero():
			return nil, &LineError{line, errors.New("some times are dates and some are seconds")}
		case len(calls) == mostCalls:
			return nil, &LineError{line, fmt.Errorf("more than %d requests", mostCalls)}
		}
		if dates {
			c.At = date.Sub(first).Seconds()
		}
		calls = append(calls, c)
	}
	if len(calls) == 0 {
		return nil, errors.New("the trace has no requests")
	}
	slices.SortStableFunc(calls, func(a, b Call) int { return cmp.Compare(a.At, b.At) })
	for i, from := 0, calls[0].At; i < len(calls); i++ {
		calls[i].At -= from
	}
	return calls, nil
}

func (p *places) call(row []string) (c Call, date time.Time, err error) {
	if c.At, date, err = p.time(row[p.at[colTime]]); err != nil {
		return c, date, err
	}
	if c.Prompt, err = readTokens("prompt", row[p.at[colPrompt]]); err != nil {
		return c, date, err
	}
	if c.Output, err = readTokens("output", row[p.at[colOutput]]); err != nil {
		return c, date, err
	}
	if i := p.at[colSession]; i >= 0 {
		c.Session = strings.Clone(strings.TrimSpace(row[i]))
	}
	return c, date, nil
}

// ReadSpot reads a trace of spot instances as the SkyPilot project publishes them:
//
//	{"metadata": {"gap_seconds": 600}, "data": [1, 0, 0, 1]}
//
// where a falling number is a preemption. The error is a *LineError, or r's.
func ReadSpot(r io.Reader) (Spot, error) {
	data, err := io.ReadAll(io.LimitReader(r, 64<<20))
	if err != nil {
		return Spot{}, fmt.Errorf("read trace: %w", err)
	}
	var file struct {
		Metadata struct {
			Gap float64 `json:"gap_seconds"`
		} `json:"metadata"`
		Data []float64 `json:"data"`
	}
	data = bytes.TrimPrefix(data, []byte(byteOrderMark))
	if err := json.Unmarshal(data, &file); err != nil {
		at := int64(len(data))
		if e, ok := errors.AsType[*json.SyntaxError](err); ok {
			at = e.Offset
		} else if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			at = e.Offset
		}
		return Spot{}, &LineError{1 + bytes.Count(data[:min(at, int64(len(data)))], []byte("\n")), err}
	}
	s := Spot{Gap: file.Metadata.Gap}
	switch {
	case !(s.Gap > 0 && s.Gap <= 1e9): //nolint:staticcheck // NaN
		return Spot{}, &LineError{1, fmt.Errorf("metadata.gap_seconds is %g, want more than 0", s.Gap)}
	case len(file.Data) == 0:
		return Spot{}, &LineError{1, errors.New("data is empty")}
	case len(file.Data) > mostTicks:
		return Spot{}, &LineError{1, fmt.Errorf("more than %d numbers", mostTicks)}
	}
	s.Held = make([]int, len(file.Data))
	for i, n := range file.Data {
		switch {
		case n < 0:
			return Spot{}, &LineError{1, fmt.Errorf("data[%d] is %g: nobody holds fewer than no instances", i, n)}
		case n > mostHeld || n != math.Trunc(n):
			return Spot{}, &LineError{1, fmt.Errorf("data[%d] is %g, want a whole number of instances up to %d", i, n, mostHeld)}
		}
		s.Held[i] = int(n)
	}
	return s, nil
}

// replay hands out a trace's calls, again and again.
type replay struct {
	calls    []Call
	rand     *rand.Rand
	i        int
	from     float64 // when the present round began
	span     float64 // of a round
	scale    float64 // of the trace's seconds
	count    int     // of sessions
	sessions map[string]*conversation
}

func newReplay(l *Load, seed uint64) *replay {
	r := &replay{calls: l.Trace, rand: dice(seed, "load", 0), scale: 1, sessions: map[string]*conversation{}}
	n := float64(len(r.calls))
	r.span = r.calls[len(r.calls)-1].At
	r.span += r.span / max(1, n-1) // one mean gap after the last
	if l.PerSecond > 0 && r.span > 0 {
		r.scale = n / r.span / l.PerSecond
		r.span *= r.scale
	}
	return r
}

func (r *replay) next() (call, bool) {
	if r.i == len(r.calls) {
		if r.span <= 0 {
			return call{}, false
		}
		r.i, r.from = 0, r.from+r.span
		clear(r.sessions)
	}
	t := &r.calls[r.i]
	r.i++
	c := call{
		at: r.from + t.At*r.scale, prompt: max(1, t.Prompt), output: max(1, t.Output), resumable: r.rand.Float64() < resumables, door: r.rand.Float64(),
	}
	v := r.sessions[t.Session]
	if v == nil || t.Session == "" {
		r.count++
		v = &conversation{session: r.count}
		r.sessions[t.Session] = v
	}
	c.session, c.shared = v.session, min(v.tokens, c.prompt)
	v.turn(&c)
	return c, true
}
