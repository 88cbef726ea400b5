// Package promql finds out which metrics and labels a Prometheus query names, so that dashboards and rules can be held to the
// table of instruments. It is no parser of PromQL: whether a query is well formed, promtool says.
package promql

import (
	"fmt"
	"slices"
	"strings"

	"headrace/telemetry"
)

// Metrics are the metrics that queries may name, each with its labels.
type Metrics map[string][]string

// Known returns Headrace's metrics as they stand in Prometheus, with the labels that a scrape adds, some of what client_golang tells of
// every Go process, and what Prometheus says about its scrapes.
func Known() Metrics {
	scrape := []string{"job", "instance"}
	m := Metrics{}
	for _, name := range []string{
		"up", "go_goroutines", "go_memstats_heap_inuse_bytes", "go_gc_duration_seconds_sum", "process_cpu_seconds_total",
		"process_resident_memory_bytes", "process_open_fds", "process_max_fds", "process_start_time_seconds",
	} {
		m[name] = scrape
	}
	for _, i := range telemetry.Instruments() {
		labels := slices.Clone(scrape)
		for _, l := range i.Labels {
			labels = append(labels, telemetry.PrometheusLabel(l))
		}
		name := i.Prometheus()
		if i.Kind != telemetry.Histogram {
			m[name] = labels
			continue
		}
		m[name+"_sum"], m[name+"_count"] = labels, labels
		m[name+"_bucket"] = append(slices.Clip(labels), "le")
	}
	return m
}

// Record adds what a recording rule yields: name, with the labels that the outermost aggregations of expr keep.
func (m Metrics) Record(name, expr string) error {
	q, err := parse(expr)
	if err != nil {
		return err
	}
	var labels []string
	for _, g := range q.groups {
		inner := slices.ContainsFunc(q.groups, func(o group) bool { return o.keeps && o.from < g.from && g.to < o.to })
		if g.keeps && !inner {
			labels = append(labels, g.labels...)
		}
	}
	slices.Sort(labels)
	m[name] = slices.Compact(labels)
	return nil
}

// Check returns an error for the first metric in expr that is not known and the first label that its metrics do not have. further are
// labels named outside of expr, such as in a legend or an annotation.
func (m Metrics) Check(expr string, further ...string) error {
	q, err := parse(expr)
	if err != nil {
		return err
	}
	if len(q.metrics) == 0 {
		return fmt.Errorf("%s: names no metric", expr)
	}
	for _, s := range q.metrics {
		labels, ok := m[s.name]
		if !ok {
			return fmt.Errorf("%s: there is no metric %s", expr, s.name)
		}
		for _, l := range s.labels {
			if !slices.Contains(labels, l) {
				return fmt.Errorf("%s: %s has no label %s, but %v", expr, s.name, l, labels)
			}
		}
	}
	has := func(label string, from, to int) bool {
		return slices.ContainsFunc(q.metrics, func(s selector) bool {
			return s.at >= from && s.at < to && slices.Contains(m[s.name], label)
		})
	}
	for _, g := range q.groups {
		for _, l := range g.labels {
			if !has(l, g.from, g.to) {
				return fmt.Errorf("%s: label %s is of no metric in its scope", expr, l)
			}
		}
	}
	for _, l := range further {
		if !has(l, 0, len(expr)) {
			return fmt.Errorf("%s: label %s is of no metric in it", expr, l)
		}
	}
	return nil
}

type query struct {
	metrics []selector
	groups  []group
}

// selector is a metric with the labels it is filtered by; at is its place in the query.
type selector struct {
	name   string
	labels []string
	at     int
}

// group is a list of labels and the part of the query that it is about.
type group struct {
	labels   []string
	from, to int
	keeps    bool // the labels are all that is left
}

func parse(expr string) (query, error) {
	var q query
	toks, err := scan(expr)
	if err != nil {
		return q, err
	}
	for i := 0; i < len(toks); i++ {
		t := toks[i]
		switch {
		case t.text == "{":
			return q, fmt.Errorf("%s: a selector without a metric", expr)
		case !t.word:
		case slices.Contains([]string{"by", "without", "on", "ignoring", "group_left", "group_right"}, t.text):
			end, labels := list(toks, i+1)
			g := group{labels: labels, from: 0, to: len(expr), keeps: t.text == "by"}
			if t.text == "by" || t.text == "without" {
				if end < len(toks) && toks[end].text == "(" { // sum by (a) (…)
					g.from, g.to = toks[end].at, toks[closing(toks, end)].at
				} else if open := opening(toks, i-1); open >= 0 { // sum(…) by (a)
					g.from, g.to = toks[open].at, t.at
				}
			}
			q.groups = append(q.groups, g)
			i = max(i, end-1)
		case slices.Contains([]string{"and", "or", "unless", "bool", "offset", "atan2", "inf", "nan", "Inf", "NaN"}, t.text):
		case i+1 < len(toks) && (toks[i+1].text == "(" || slices.Contains([]string{"by", "without"}, toks[i+1].text)): // a function
		default:
			s := selector{name: t.text, at: t.at}
			if i+1 < len(toks) && toks[i+1].text == "{" {
				for i += 2; i < len(toks) && toks[i].text != "}"; i++ {
					if toks[i].word {
						s.labels = append(s.labels, toks[i].text)
					}
				}
			}
			q.metrics = append(q.metrics, s)
		}
	}
	return q, nil
}

// list reads "(a, b)" from toks[i] on; end is the token behind it, or i where there is no list.
func list(toks []token, i int) (end int, labels []string) {
	if i >= len(toks) || toks[i].text != "(" {
		return i, nil
	}
	for i++; i < len(toks) && toks[i].text != ")"; i++ {
		if toks[i].word {
			labels = append(labels, toks[i].text)
		}
	}
	return i + 1, labels
}

// closing returns the place of the bracket that closes toks[i], or the last token.
func closing(toks []token, i int) int {
	depth := 0
	for ; i < len(toks); i++ {
		switch toks[i].text {
		case "(":
			depth++
		case ")":
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return len(toks) - 1
}

// opening returns the place of the bracket that toks[i] closes, or -1.
func opening(toks []token, i int) int {
	depth := 0
	for ; i >= 0; i-- {
		switch toks[i].text {
		case ")":
			depth++
		case "(":
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

type token struct {
	text string
	at   int
	word bool // a name
}

// scan leaves out text in quotes, numbers and durations.
func scan(expr string) ([]token, error) {
	var toks []token
	for i := 0; i < len(expr); {
		c := expr[i]
		switch {
		case c == '"' || c == '\'' || c == '`':
			n := i + 1
			for ; n < len(expr) && expr[n] != c; n++ {
				if expr[n] == '\\' && c != '`' {
					n++
				}
			}
			if n >= len(expr) {
				return nil, fmt.Errorf("%s: a string without an end", expr)
			}
			i = n + 1
		case letter(c) || digit(c) || c == '$':
			n := i + 1
			for n < len(expr) && (letter(expr[n]) || digit(expr[n]) || expr[n] == '.' && digit(c)) {
				n++
			}
			if letter(c) {
				toks = append(toks, token{expr[i:n], i, true})
			}
			i = n
		default:
			if !strings.ContainsRune(" \t\n", rune(c)) {
				toks = append(toks, token{expr[i : i+1], i, false})
			}
			i++
		}
	}
	return toks, nil
}

func letter(c byte) bool { return c == '_' || c == ':' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

func digit(c byte) bool { return c >= '0' && c <= '9' }
