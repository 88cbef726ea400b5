package page

import (
	"fmt"
	"html"
	"strings"
)

// Markup is HTML as it grows. It is not a template of html/template, whose use keeps every method of every type in the
// binary: eleven megabytes of the gateway's.
type Markup struct{ strings.Builder }

// Raw writes s as it is.
func (b *Markup) Raw(s string) { b.WriteString(s) }

// Put writes a format with its text escaped.
func (b *Markup) Put(format string, text ...any) {
	for i, t := range text {
		if s, ok := t.(string); ok {
			text[i] = html.EscapeString(s)
		}
	}
	fmt.Fprintf(&b.Builder, format, text...)
}

// Row writes cells of a table.
func (b *Markup) Row(class string, cells ...string) {
	b.Put(`<tr class="%s">`, class)
	for _, c := range cells {
		b.Put("<td>%s</td>", c)
	}
	b.Raw("</tr>\n")
}
