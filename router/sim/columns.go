package sim

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Columns of a trace.
const (
	colTime = iota
	colPrompt
	colOutput
	colSession
	numColumns
)

// column is what one goes by in a header, without case, blanks, digits and punctuation.
type column struct {
	title string   // for errors
	names []string // the first is told to whom none is found
	vague []string // that may mean something else: they count where none of names is there
}

var columns = [numColumns]column{ //nolint:gochecknoglobals // a table
	{
		"timestamp",
		[]string{"timestamp", "time", "ts", "arrivedat", "arrival", "arrivaltime", "arrivaltimestamp", "requesttime", "requesttimestamp"},
		[]string{"datetime", "date", "epoch", "unixtime", "starttime", "startedat", "start", "createdat", "created", "receivedat", "sentat", "when"},
	},
	{
		"prompt tokens",
		[]string{
			"prompttokens", "contexttokens", "inputtokens", "requesttokens", "numprompttokens", "numinputtokens", "numcontexttokens", "numprefilltokens",
			"prefilltokens", "promptlength", "inputlength", "contextlength", "promptlen", "inputlen", "contextlen", "tokensin", "intokens",
		},
		[]string{"prompt", "input", "context"},
	},
	{
		"output tokens",
		[]string{
			"outputtokens", "generatedtokens", "completiontokens", "responsetokens", "numoutputtokens", "numgeneratedtokens", "numcompletiontokens",
			"numdecodetokens", "decodetokens", "generationtokens", "outputlength", "generatedlength", "completionlength", "responselength", "outputlen",
			"generatedlen", "completionlen", "responselen", "generationlen", "tokensout", "outtokens",
		},
		[]string{"output", "generated", "completion"},
	},
	{
		"session",
		[]string{"session", "sessionid", "conversation", "conversationid", "convid", "chatid", "threadid", "thread"},
		[]string{"user", "userid", "client", "clientid"},
	},
}

// headerWords is what a header may say instead of "prompt_tokens", as locate's errors name it.
var headerWords = [...]string{"timestamp", "prompt_tokens", "output_tokens"} //nolint:gochecknoglobals // a table

// units of a timestamp by what follows its name, in seconds.
var units = []struct { //nolint:gochecknoglobals // a table
	words   []string
	seconds float64
}{
	{[]string{"s", "sec", "secs", "second", "seconds", "inseconds"}, 1},
	{[]string{"ms", "msec", "millis", "milliseconds", "inms", "inmilliseconds"}, 1e-3},
	{[]string{"us", "usec", "micros", "microseconds"}, 1e-6},
	{[]string{"ns", "nsec", "nanos", "nanoseconds"}, 1e-9},
	{[]string{"utc", "gmt", "iso"}, 0},
}

// places is where a trace's columns are, -1 for nowhere.
type places struct {
	at     [numColumns]int
	unit   float64 // of times that are numbers, in seconds; 0 leaves it to their size
	layout string  // of the last date
}

// letters is a name in a header as columns has it.
func letters(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		if r >= 'a' && r <= 'z' {
			return r
		}
		return -1
	}, name)
}

// means tells which column a name stands for, -1 for none; vague ones give way to others. unit is a timestamp's.
func means(name string) (col int, vague bool, unit float64) {
	for c := range columns {
		if slices.Contains(columns[c].names, name) {
			return c, false, 0
		}
		if slices.Contains(columns[c].vague, name) {
			return c, true, 0
		}
	}
	for _, u := range units {
		for _, w := range u.words {
			base, ok := strings.CutSuffix(name, w)
			if !ok {
				continue
			}
			if t := &columns[colTime]; slices.Contains(t.names, base) {
				return colTime, false, u.seconds
			} else if slices.Contains(t.vague, base) {
				return colTime, true, u.seconds
			}
		}
	}
	return -1, false, 0
}

// locate finds the columns in a header; nil when the row is none.
func locate(row []string) (*places, error) {
	p := &places{at: [numColumns]int{-1, -1, -1, -1}}
	var vague [numColumns]bool
	found := 0
	for i, name := range row {
		c, unsure, unit := means(letters(name))
		switch {
		case c < 0:
			continue
		case p.at[c] >= 0 && unsure == vague[c]:
			return nil, fmt.Errorf("columns %d and %d are both a column of %s: %q, %q", p.at[c]+1, i+1, columns[c].title, clip(row[p.at[c]]), clip(name))
		case p.at[c] >= 0 && unsure:
			continue
		}
		p.at[c], vague[c] = i, unsure
		if c == colTime {
			p.unit = unit
		}
		found++
	}
	if found == 0 {
		if _, _, err := p.time(row[0]); err != nil {
			return nil, fmt.Errorf("neither a header with a timestamp, prompt and output tokens nor a row: %q", clip(row[0]))
		}
		return nil, nil
	}
	for c, word := range headerWords {
		if p.at[c] < 0 {
			return nil, fmt.Errorf("the header names no %s (%s): call one of its columns %s", columns[c].title, quoted(row), word)
		}
	}
	return p, nil
}

// quoted lists some names.
func quoted(names []string) string {
	const most = 12
	var b strings.Builder
	for i, n := range names[:min(most, len(names))] {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(strconv.Quote(clip(n)))
	}
	if len(names) > most {
		b.WriteString(", ...")
	}
	return b.String()
}

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "..."
	}
	return s
}

func readTokens(what, s string) (int, error) {
	s = strings.TrimSpace(s)
	n, err := strconv.Atoi(s)
	if err != nil { // a table that has empty cells elsewhere writes 374.0
		if v, err2 := strconv.ParseFloat(s, 64); err2 == nil && v == math.Trunc(v) && math.Abs(v) <= mostTokens {
			n, err = int(v), nil
		}
	}
	if err != nil || n < 0 || n > mostTokens {
		return 0, fmt.Errorf("%s tokens are %q, want a whole number from 0 to %d", what, clip(s), mostTokens)
	}
	return n, nil
}

// dates are the layouts of a trace's times. A fraction of a second may follow each second.
var dates = [...]string{ //nolint:gochecknoglobals // a table
	time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04:05Z07:00", "2006-01-02T15:04:05", "2006-01-02T15:04:05-0700", "2006-01-02 15:04:05-0700",
	"2006-01-02 15:04:05 -0700", "2006-01-02 15:04:05 -0700 MST", "2006-01-02 15:04", "2006-01-02T15:04", "2006/01/02 15:04:05", "2006/01/02 15:04",
}

// Sizes from which a time in numbers can only be in smaller units: seconds since 1970 reach the first in the year 5138.
const (
	millisFrom = 1e11
	microsFrom = 1e14
	nanosFrom  = 1e17
	mostTime   = 1e19
)

// time reads seconds, or smaller units since 1970, or a date.
func (p *places) time(s string) (seconds float64, date time.Time, err error) {
	s = strings.TrimSpace(s)
	if v, err := strconv.ParseFloat(s, 64); err == nil {
		size := math.Abs(v)
		if !(size <= mostTime) { //nolint:staticcheck // NaN
			return 0, time.Time{}, fmt.Errorf("time %q is out of range", clip(s))
		}
		switch {
		case p.unit > 0:
			v *= p.unit
		case size >= nanosFrom:
			v /= 1e9
		case size >= microsFrom:
			v /= 1e6
		case size >= millisFrom:
			v /= 1e3
		}
		return v, time.Time{}, nil
	}
	word := strings.TrimSuffix(strings.TrimSuffix(s, " UTC"), " GMT")
	if p.layout != "" {
		if t, err := time.Parse(p.layout, word); err == nil {
			return 0, t, nil
		}
	}
	for _, layout := range dates {
		if t, err := time.Parse(layout, word); err == nil {
			p.layout = layout
			return 0, t, nil
		}
	}
	return 0, time.Time{}, fmt.Errorf("time %q is neither seconds nor a date such as 2023-11-16T18:15:46.68Z", clip(s))
}

// comma tells what parts the columns: a comma, or a semicolon or tab where the first line that says anything has more of these.
func comma(in *bufio.Reader) (rune, error) {
	head, err := in.Peek(in.Size())
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("read trace: %w", err)
	}
	best, most := ',', 0
	for line := range strings.Lines(string(head)) {
		if blank(line) {
			continue
		}
		for _, c := range [...]rune{',', ';', '\t'} {
			if n := strings.Count(line, string(c)); n > most {
				best, most = c, n
			}
		}
		break
	}
	return best, nil
}

// blank tells whether a line or cell says nothing.
func blank(s string) bool { return strings.Trim(s, " \t\r\n,;\"") == "" }
