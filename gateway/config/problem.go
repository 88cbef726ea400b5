package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one mistake in the configuration. None of its texts holds a secret or the value of an
// environment variable.
type Problem struct {
	Source string // file name, "environment variable NAME", "flag --name", or "" when nothing was given
	Line   int    // in the file, from 1; 0 outside of one
	Column int    // characters, from 1; 0 outside of a file
	Path   string // key, such as "providers.static[0].base_url"; "" for the whole
	What   string // what is wrong
	Hint   string // how to put it right, "" when What says it all
	Err    error  // what a file operation returned, nil otherwise
}

// String is the problem on one line (more when Hint holds an example):
// "file:line:column: path: what; hint".
func (p Problem) String() string {
	var b strings.Builder
	if p.Source != "" {
		b.WriteString(p.Source)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
		}
		b.WriteString(": ")
	}
	if p.Path != "" {
		b.WriteString(p.Path)
		b.WriteString(": ")
	}
	b.WriteString(p.What)
	if p.Hint != "" {
		b.WriteString("; ")
		b.WriteString(p.Hint)
	}
	return b.String()
}

// Problems is the error of Load, Parse and Validate: every mistake found, those in the file first
// and in its order.
type Problems struct {
	List []Problem // never empty
}

// Error is all problems, one a line.
func (ps *Problems) Error() string {
	lines := make([]string, len(ps.List))
	for i, p := range ps.List {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.Is reach what a file operation returned, such as fs.ErrNotExist.
func (ps *Problems) Unwrap() []error {
	var errs []error
	for _, p := range ps.List {
		if p.Err != nil {
			errs = append(errs, p.Err)
		}
	}
	return errs
}

// asError sorts the problems; it is nil when there are none.
func asError(list []Problem) error {
	if len(list) == 0 {
		return nil
	}
	slices.SortStableFunc(list, func(a, b Problem) int {
		if aOut, bOut := a.Line == 0, b.Line == 0; aOut != bOut {
			if aOut {
				return 1
			}
			return -1
		}
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return &Problems{List: list}
}

// origin is where a value was given.
type origin struct {
	source string // as Problem.Source
	line   int
	column int
	env    string // the variables that the value came from, as "${A}" or "${A} and ${B}"
	bad    bool   // it could not be read: the field still holds its default
	short  bool   // a plain value that stands for a section
}
