package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"headrace/cmd/headrace/internal/chaos"
)

// chaosText is a report for people.
func chaosText(r *chaos.Report, width int) string {
	var b strings.Builder
	secure := ""
	if r.TLS {
		secure = " over TLS"
	}
	var faults []string
	for _, w := range r.Faulted() {
		faults = append(faults, fmt.Sprintf("%d × %s", r.Faults[w], w))
	}
	if len(faults) == 0 {
		faults = []string{"nothing"}
	}
	b.WriteString(wrapped(fmt.Sprintf("%s: %s. %s at once%s for %s, %s, seed %d. What befell them: %s.\n\n", r.Scenario, r.Title,
		count(int64(r.Streams), "caller"), secure, brief(seconds(r.Seconds)), count(int64(r.Hosts), "host"), r.Seed, strings.Join(faults, ", ")), width))
	if r.LeftOut != "" {
		fmt.Fprintf(&b, "Left out: %s.\n\n", r.LeftOut)
	}
	b.WriteString(groupsText(r, width))
	if r.TokenIDs {
		n := 0
		for i := range r.Groups {
			n += r.Groups[i].Exact
		}
		fmt.Fprintf(&b, "\nContinued by the numbers of their tokens: %d of the answers.", n)
	}
	fmt.Fprintf(&b, "\nTokens: %d in streams; %d lost, %d doubled, %d altered.\n", r.Tokens, r.Lost, r.Doubled, r.Altered)
	fmt.Fprintf(&b, "Gap between tokens: p50 %s, p99 %s, longest %s; %s paused for more than 1 s.\n",
		gap(r.Gaps.P50), gap(r.Gaps.P99), gap(r.Gaps.Max), count(int64(r.Stalled), "stream"))
	if r.Seams.N > 0 {
		fmt.Fprintf(&b, "Gap at a seam: p50 %s, p99 %s, longest %s (%s).\n", gap(r.Seams.P50), gap(r.Seams.P99), gap(r.Seams.Max), count(r.Seams.N, "seam"))
	}
	if r.Outages > 0 {
		fmt.Fprintf(&b, "Hosts were away %s; %s sent to one after its first failure.", times(r.Outages), requestsWere(r.Corpse))
		if r.Trusted.N > 0 {
			fmt.Fprintf(&b, " From a return to the first request served: p50 %s, p99 %s, longest %s.", gap(r.Trusted.P50), gap(r.Trusted.P99), gap(r.Trusted.Max))
		}
		if r.Unasked > 0 {
			fmt.Fprintf(&b, " %d of them got no request afterwards.", r.Unasked)
		}
		if r.Untold > 0 {
			fmt.Fprintf(&b, " After %d of these times there was too little time, or too few requests, to tell.", r.Untold)
		}
		b.WriteString("\n")
	}
	if r.Probes != nil {
		fmt.Fprintf(&b, "Probes sent by the gateway to static hosts: %d.\n", *r.Probes)
	}
	if len(r.Attempts) > 0 {
		fmt.Fprintf(&b, "Attempts that failed, by class: %s.\n", tallied(r.Attempts))
	}
	if len(r.NotContinued) > 0 {
		fmt.Fprintf(&b, "Broken off and not continued, by reason: %s.\n", tallied(r.NotContinued))
	}
	if len(r.Held) > 0 {
		held := map[string]int{}
		for id, n := range r.Held {
			held[id] = int(n)
		}
		fmt.Fprintf(&b, "Still in flight at the end, though no caller waits: %s.\n", tallied(held))
	}
	if len(r.Problems) > 0 {
		b.WriteString("\nWhat was not as it should be, the first of it:\n")
		for _, p := range r.Problems {
			fmt.Fprintf(&b, "  %s %s: %s\n    asked: %.200s\n    attempts: %s\n", p.Request, p.End, strings.Join(p.What, "; "), p.Asked, strings.Join(p.Attempts, ", "))
		}
	}
	b.WriteString("\n" + targetsText(r, width))
	return b.String()
}

func groupsText(r *chaos.Report, width int) string {
	cols := []textColumn{
		{name: "", most: 40},
		{name: "answers", right: true},
		{name: "complete", right: true},
		{name: "%", right: true},
		{name: "continued", right: true},
		{name: "moved", right: true, spare: 1},
		{name: "error", right: true},
		{name: "refused", right: true},
		{name: "silent cut", right: true},
		{name: "errors by code", spare: 2},
	}
	for i := range r.Groups {
		g := &r.Groups[i]
		share := unknownText
		if g.Answers > 0 {
			share = fmt.Sprintf("%.2f", 100*float64(g.Complete)/float64(g.Answers))
		}
		for j, cell := range []string{
			g.Name, strconv.Itoa(g.Answers), strconv.Itoa(g.Complete), share, strconv.Itoa(g.Continued), strconv.Itoa(g.Moved), strconv.Itoa(g.Failed), strconv.Itoa(g.Refused),
			strconv.Itoa(g.Cut), tallied(g.Errors),
		} {
			cols[j].cells = append(cols[j].cells, cell)
		}
	}
	return textTable(cols, width) + "\n"
}

func targetsText(r *chaos.Report, width int) string {
	cols := []textColumn{{name: "target"}, {name: "want", right: true}, {name: "found", right: true}, {name: ""}}
	for _, t := range r.Targets {
		verdict := "met"
		if !t.Met {
			verdict = "MISSED"
		}
		for j, cell := range []string{t.Name, t.Want, t.Found, verdict} {
			cols[j].cells = append(cols[j].cells, cell)
		}
	}
	return textTable(cols, width) + "\n"
}

// tallied lists counts by word, the highest first.
func tallied(m map[string]int) string {
	words := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		if m[a] != m[b] {
			return m[b] - m[a]
		}
		return strings.Compare(a, b)
	})
	var parts []string
	for _, w := range words {
		parts = append(parts, fmt.Sprintf("%d %s", m[w], w))
	}
	return strings.Join(parts, ", ")
}

func requestsWere(n int) string { return count(int64(n), "request") + " " + were(n) }

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// gap is a pause in milliseconds or seconds.
func gap(s float64) string {
	if s < 1 {
		return fmt.Sprintf("%.3g ms", 1000*s)
	}
	return fmt.Sprintf("%.3g s", s)
}
