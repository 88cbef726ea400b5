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
	"strconv"
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

const (
	mostCalls  = 5_000_000
	mostTokens = 10_000_000
	mostTicks  = 10_000_000
)

// columns are the names by which a trace's columns go, without case, blanks and punctuation.
var columns = [...][]string{ //nolint:gochecknoglobals // a table
	{"timestamp", "time", "ts", "arrivedat", "arrival", "arrivaltime"},
	{"contexttokens", "prompttokens", "inputtokens", "requesttokens", "prompt", "input", "numprefilltokens"},
	{"generatedtokens", "outputtokens", "completiontokens", "responsetokens", "output", "numdecodetokens"},
	{"session", "sessionid", "conversation", "conversationid", "chatid"},
}

const (
	colTime = iota
	colPrompt
	colOutput
	colSession
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
// four in this order. Times are seconds or dates, as in RFC 3339 or with a blank for the T. Rows need not be by time. The
// error is a *LineError, or r's.
func ReadCalls(r io.Reader) ([]Call, error) {
	in := bufio.NewReader(r)
	if bom, err := in.Peek(3); err == nil && bytes.Equal(bom, []byte("\xef\xbb\xbf")) {
		in.Discard(3) //nolint:errcheck // peeked
	}
	rows := csv.NewReader(in)
	rows.ReuseRecord, rows.TrimLeadingSpace = true, true
	var (
		calls []Call
		at    []int // where the columns are, -1 for nowhere
		dates bool  // of the first row
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
		line, _ := rows.FieldPos(0)
		if at == nil {
			header, err := locate(row)
			if err != nil {
				return nil, &LineError{line, err}
			}
			if at = header; at != nil {
				continue
			}
			if len(row) != 3 && len(row) != 4 {
				return nil, &LineError{line, fmt.Errorf("%d columns without a header, want time, prompt tokens, output tokens and perhaps a session", len(row))}
			}
			at = []int{0, 1, 2, -1}
			if len(row) == 4 {
				at[colSession] = 3
			}
		}
		c, date, err := readCall(row, at)
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

// locate finds the columns in a header; nil when the row is none.
func locate(row []string) ([]int, error) {
	at := []int{-1, -1, -1, -1}
	found := 0
	for i, name := range row {
		name = strings.Map(func(r rune) rune {
			if r >= 'A' && r <= 'Z' {
				return r + 'a' - 'A'
			}
			if r >= 'a' && r <= 'z' {
				return r
			}
			return -1
		}, name)
		for c, names := range columns {
			if !slices.Contains(names, name) {
				continue
			}
			if at[c] >= 0 {
				return nil, fmt.Errorf("columns %d and %d are both a %s", at[c]+1, i+1, names[0])
			}
			at[c] = i
			found++
		}
	}
	if found == 0 {
		if _, _, err := readTime(row[0]); err != nil {
			return nil, fmt.Errorf("neither a header with a timestamp, prompt and output tokens nor a row: %q", clip(row[0]))
		}
		return nil, nil
	}
	for c, want := range [...]string{"timestamp", "prompt tokens", "output tokens"} {
		if at[c] < 0 {
			return nil, fmt.Errorf("the header names no %s", want)
		}
	}
	return at, nil
}

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "..."
	}
	return s
}

func readCall(row []string, at []int) (c Call, date time.Time, err error) {
	if c.At, date, err = readTime(row[at[colTime]]); err != nil {
		return c, date, err
	}
	if c.Prompt, err = readTokens("prompt", row[at[colPrompt]]); err != nil {
		return c, date, err
	}
	if c.Output, err = readTokens("output", row[at[colOutput]]); err != nil {
		return c, date, err
	}
	if at[colSession] >= 0 {
		c.Session = strings.Clone(row[at[colSession]])
	}
	return c, date, nil
}

func readTokens(what, s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > mostTokens {
		return 0, fmt.Errorf("%s tokens are %q, want a whole number from 0 to %d", what, clip(s), mostTokens)
	}
	return n, nil
}

// readTime reads seconds, or a date.
func readTime(s string) (seconds float64, date time.Time, err error) {
	if v, err := strconv.ParseFloat(s, 64); err == nil {
		if math.IsNaN(v) || math.Abs(v) > 1e11 {
			return 0, time.Time{}, fmt.Errorf("time %q is out of range", clip(s))
		}
		return v, time.Time{}, nil
	}
	for _, layout := range [...]string{time.RFC3339Nano, "2006-01-02 15:04:05.999999999", "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02T15:04:05.999999999"} {
		if t, err := time.Parse(layout, s); err == nil {
			return 0, t, nil
		}
	}
	return 0, time.Time{}, fmt.Errorf("time %q is neither seconds nor a date such as 2023-11-16T18:15:46.68Z", clip(s))
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
		Data []int `json:"data"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		at := int64(len(data))
		if e, ok := errors.AsType[*json.SyntaxError](err); ok {
			at = e.Offset
		} else if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			at = e.Offset
		}
		return Spot{}, &LineError{1 + bytes.Count(data[:min(at, int64(len(data)))], []byte("\n")), err}
	}
	s := Spot{Gap: file.Metadata.Gap, Held: file.Data}
	switch i := slices.IndexFunc(s.Held, func(n int) bool { return n < 0 }); {
	case !(s.Gap > 0 && s.Gap <= 1e9): //nolint:staticcheck // NaN
		return Spot{}, &LineError{1, fmt.Errorf("metadata.gap_seconds is %g, want more than 0", s.Gap)}
	case len(s.Held) == 0:
		return Spot{}, &LineError{1, errors.New("data is empty")}
	case len(s.Held) > mostTicks:
		return Spot{}, &LineError{1, fmt.Errorf("more than %d numbers", mostTicks)}
	case i >= 0:
		return Spot{}, &LineError{1, fmt.Errorf("data[%d] is %d: nobody holds fewer than no instances", i, s.Held[i])}
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
