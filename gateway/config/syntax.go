package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxFileBytes bounds what is read: a configuration is written by hand.
const maxFileBytes = 1 << 20

// parseTree returns the content of the one document in src, nil when there is none, or the problem
// that keeps src from being YAML.
func parseTree(src []byte) (*yaml.Node, *Problem) {
	if len(src) > maxFileBytes {
		return nil, &Problem{Line: 1, Column: 1, What: fmt.Sprintf("is larger than %d bytes", maxFileBytes), Hint: "is this the right file?"}
	}
	if at, what, hint := notText(src); at >= 0 {
		line, column := lineColumn(src, at)
		return nil, &Problem{Line: line, Column: column, What: what, Hint: hint}
	}
	docs, err := documents(src)
	if err != nil {
		return nil, syntaxProblem(src, err)
	}
	switch len(docs) {
	case 0:
		return nil, nil
	case 1:
		return docs[0].Content[0], nil
	default:
		return nil, &Problem{
			Line: max(docs[1].Line, 1), Column: max(docs[1].Column, 1),
			What: "a second YAML document starts here", Hint: `remove this line; the configuration is one document`,
		}
	}
}

// documents parses all of src and returns its first two documents.
func documents(src []byte) (docs []*yaml.Node, err error) {
	defer func() {
		if r := recover(); r != nil { // the parser panics where its author took a state for impossible
			err = fmt.Errorf("%v", r)
		}
	}()
	for dec := yaml.NewDecoder(bytes.NewReader(src)); ; {
		var doc yaml.Node
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			return docs, nil
		} else if err != nil {
			return nil, err
		}
		if len(docs) < 2 && len(doc.Content) > 0 && doc.Content[0] != nil {
			docs = append(docs, &doc)
		}
	}
}

// searchBudget bounds the bytes that syntaxProblem parses again, which is well below a second.
const searchBudget = 8 << 20

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?`)

// syntaxProblem says where src stops being YAML. The parser names the line loosely, often where the
// section around the mistake begins, and never a column. Any beginning of the file that contains the
// mistake fails too, so the mistake is right after the longest beginning that parses.
func syntaxProblem(src []byte, err error) *Problem {
	prefix := yamlLine.FindStringSubmatch(err.Error())
	message := strings.TrimPrefix(err.Error(), prefix[0])

	starts := lineStarts(src)
	line, budget := len(starts), searchBudget
	for ; line > 1 && budget > 0; line-- {
		budget -= starts[line-1]
		if _, err := documents(src[:starts[line-1]]); err == nil {
			break
		}
	}
	if budget <= 0 {
		line = 1
		if n, err := strconv.Atoi(prefix[1]); err == nil {
			line = min(max(n, 1), len(starts))
		}
	}
	text := lineText(src, starts, line)
	indent := len(text) - len(strings.TrimLeft(text, " \t"))
	p := &Problem{Line: line, Column: indent + 1}
	if tab := strings.IndexByte(text[:indent], '\t'); tab >= 0 {
		p.Column = tab + 1
		p.What, p.Hint = "a tab in the indentation", "YAML indents with spaces only"
		return p
	}
	for end := len(text) - 1; end > indent && budget > 0; end-- {
		if !utf8.RuneStart(text[end]) {
			continue
		}
		at := starts[line-1] + end
		budget -= at
		if _, err := documents(src[:at]); err == nil {
			p.Column = utf8.RuneCountInString(text[:end]) + 1
			break
		}
	}
	if at := strings.Index(quoted.ReplaceAllStringFunc(text, blank), "${"); at >= 0 && strings.ContainsAny(text[:at], "{[") {
		p.Column = utf8.RuneCountInString(text[:at]) + 1
		p.What = `is not valid YAML: the "{" of a "${NAME}" is taken for the beginning of a map`
		p.Hint = `inside { } and [ ] put "${NAME}" in quotes`
		return p
	}
	p.What, p.Hint = explainSyntax(message, string([]rune(text)[:p.Column-1]))
	return p
}

var quoted = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|'[^']*'`)

func blank(s string) string { return strings.Repeat(" ", len(s)) }

// explainSyntax puts the parser's message into words of the file. Neither it nor the hint repeats
// text of the file: that may be a key. before is what stands in front of the mistake in its line.
func explainSyntax(message, before string) (what, hint string) {
	has := func(s string) bool { return strings.Contains(message, s) }
	switch {
	case has("mapping values are not allowed") && strings.Contains(before, ": "):
		return `is not valid YAML: a second ": " in one line`, "put the text after the first one in quotes"
	case has("mapping values are not allowed"):
		return `is not valid YAML: a ":" where no key can stand`, `indent this line like its neighbours; see that the line above has its ":"`
	case has("could not find expected ':'"), has("simple key"):
		return `is not valid YAML: a key without ":"`, `write "key: value", with a space after the colon`
	case has("unknown anchor"):
		return "is not valid YAML: an alias (*) of an anchor (&) that is not defined above", "put the text in quotes if no alias is meant"
	case has("undefined tag handle"), has("while scanning a tag"), has("tag"):
		return `is not valid YAML: "!" starts a tag`, "put the text in quotes if it begins with !"
	case has("found unexpected end of stream"), has("end of stream"), has("unexpected end"):
		return "is not valid YAML: a quote is opened here and not closed", `close it; inside double quotes write \" for a quote`
	case has("found unknown escape character"), has("escape"):
		return `is not valid YAML: a "\" in double quotes starts an escape that YAML does not know`, `write \\ for a backslash, or use single quotes`
	case has("',' or"):
		return `is not valid YAML: a "{" or "[" is opened and not closed, or a "," is missing`, `close it with "}" or "]"`
	case has("did not find expected"), has("block sequence entries"), has("block collection"):
		return "is not valid YAML: this line does not fit the lines above it", "indent it like its neighbours; check quotes and brackets before it"
	case has("cannot start any token"):
		return "is not valid YAML: a value cannot begin with this character", "put the value in quotes"
	case has("exceeded max depth"):
		return "is nested too deeply", ""
	}
	return "is not valid YAML", "check indentation, quotes and brackets here"
}

// keepInside moves positions that are behind the end of src, as that of a value left out on the last
// line can be, to the end.
func keepInside(src []byte, problems []Problem) {
	starts := lineStarts(src)
	widths := make(map[int]int)
	for i := range problems {
		p := &problems[i]
		if p.Line == 0 {
			continue
		}
		if p.Line > len(starts) {
			p.Line, p.Column = len(starts), len(src)+1
		}
		width, known := widths[p.Line]
		if !known {
			width = utf8.RuneCountInString(lineText(src, starts, p.Line))
			widths[p.Line] = width
		}
		p.Column = min(p.Column, width+1)
	}
}

// notText returns the offset of the first byte that belongs into no text file, or -1.
func notText(src []byte) (at int, what, hint string) {
	for i := 0; i < len(src); {
		r, n := utf8.DecodeRune(src[i:])
		switch {
		case r == utf8.RuneError && n <= 1:
			return i, "is not UTF-8 text", "save the file as UTF-8"
		case r < ' ' && r != '\t' && r != '\n' && r != '\r', r == 0x7f:
			return i, "holds a control character here", `remove it; in double quotes "\x1b" stands for one`
		}
		i += n
	}
	return -1, "", ""
}

// lineStarts returns the offset of every line, breaking where the YAML parser does: LF, CR, CR LF,
// NEL, LS and PS.
func lineStarts(src []byte) []int {
	starts := []int{0}
	for i := 0; i < len(src); {
		r, n := utf8.DecodeRune(src[i:])
		if r == '\r' && i+1 < len(src) && src[i+1] == '\n' {
			n = 2
		}
		i += n
		switch r {
		case '\n', '\r', '\u0085', '\u2028', '\u2029':
			if i < len(src) {
				starts = append(starts, i)
			}
		}
	}
	return starts
}

// lineText returns a line, counted from 1, without its break.
func lineText(src []byte, starts []int, line int) string {
	end := len(src)
	if line < len(starts) {
		end = starts[line]
	}
	return strings.TrimRight(string(src[starts[line-1]:end]), "\r\n\u0085\u2028\u2029")
}

// lineColumn returns the position of an offset.
func lineColumn(src []byte, at int) (line, column int) {
	starts := lineStarts(src[:at+1])
	line = len(starts)
	return line, utf8.RuneCount(src[starts[line-1]:at]) + 1
}
