package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"headrace/gateway/ledger/books"
)

// reportText is the report as people read it.
func reportText(r *books.Report) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s to %s UTC", hourText(r.Since), hourText(r.Until))
	if len(r.Replicas) > 1 {
		fmt.Fprintf(&b, ", %d ledgers", len(r.Replicas))
	}
	b.WriteString("\n\n")
	if len(r.Lines) == 0 {
		b.WriteString("The ledger has nothing of this time.\n")
		return b.String()
	}
	b.WriteString(linesText(r))
	b.WriteString("\n\n")
	b.WriteString(wasteText(r))
	if len(r.Alternatives) > 0 {
		fmt.Fprintf(&b, "\nThe same answers elsewhere (here: %s):\n", usdText(r.Total.Allocated()))
		for _, a := range r.Alternatives {
			fmt.Fprintf(&b, "  %-14s %s", a.Name, usdText(a.USD))
			if a.Tokens < a.All {
				fmt.Fprintf(&b, " for %.0f%% of the output tokens", 100*float64(a.Tokens)/float64(a.All))
			}
			b.WriteString("\n")
			for _, why := range a.Why {
				fmt.Fprintf(&b, "      %s\n", why)
			}
		}
	}
	b.WriteString(reportNotes(r))
	return b.String()
}

// reportNotes say what the figures have in them and what not, each in a paragraph.
func reportNotes(r *books.Report) string {
	var b strings.Builder
	for i, bill := range r.Bills {
		if i == 0 {
			b.WriteString("\nBills against the ledger:\n")
		}
		fmt.Fprintf(&b, "  %-14s billed %s, ledger %s (%+.1f%%), %s, %s to %s\n", bill.Account, usdText(bill.Billed), usdText(bill.Ledger), bill.ErrorPercent(),
			count(int64(bill.Hosts), "host"), bill.From.UTC().Format("01-02 15:04"), bill.To.UTC().Format("01-02 15:04"))
		if bill.LeftOut > 0 {
			fmt.Fprintf(&b, "  %-14s %s was billed for hosts and times that the ledger has not watched\n", "", usdText(bill.LeftOut))
		}
	}
	if r.BilledUSD > 0 {
		fmt.Fprintf(&b, "\nOf what hosts were paid for by time %s is as billed; it had been estimated at %s (%+.1f%%). The rest is an estimate.\n", usdText(r.BilledUSD),
			usdText(r.EstimatedUSD), 100*(r.EstimatedUSD-r.BilledUSD)/r.BilledUSD)
	}
	if n := r.Total.N[books.UnknownPrice]; n > 0 {
		fmt.Fprintf(&b, "\n%s went to hosts of unknown price: what they cost is not in it.\n", count(n, "attempt"))
	}
	if n := r.Total.N[books.EstimatedTokens]; n > 0 {
		fmt.Fprintf(&b, "\n%s and %s of these figures are estimates: their hosts reported no usage.\n", count(n, "token"), usdText(r.Total.F[books.GuessedUSD]))
	}
	if r.Dropped > 0 {
		fmt.Fprintf(&b, "\nOf %s only the sums were kept: they came faster than they could be written.\n", count(r.Dropped, "request"))
	}
	if r.Unwatched >= time.Minute {
		fmt.Fprintf(&b, "\nFor %s of this time no gateway ran: what hosts cost meanwhile is not in it.\n", brief(r.Unwatched))
	}
	return b.String()
}

func hourText(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") }

func linesText(r *books.Report) string {
	t := plainTable()
	head, foot := table.Row{}, table.Row{}
	var columns []table.ColumnConfig
	for i, d := range r.By {
		head = append(head, string(d))
		if i == 0 {
			foot = append(foot, "total")
		} else {
			foot = append(foot, "")
		}
	}
	billed := r.BilledUSD > 0 // else there is nothing to tell
	for _, name := range figureNames(billed) {
		head = append(head, name)
		columns = append(columns, table.ColumnConfig{Name: name, Align: text.AlignRight, AlignHeader: text.AlignRight, AlignFooter: text.AlignRight})
	}
	t.SetColumnConfigs(columns)
	t.AppendHeader(head)
	for i := range r.Lines {
		row := table.Row{}
		for _, g := range r.Lines[i].Group {
			row = append(row, shown(g))
		}
		t.AppendRow(append(row, figures(&r.Lines[i], billed)...))
	}
	if len(r.By) > 0 {
		t.AppendFooter(append(foot, figures(&r.Total, billed)...))
	}
	lines := strings.Split(t.Render(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

// shown is a name, quoted where it has what a terminal would obey: callers may have chosen it.
func shown(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(name)
	}
	return name
}

func figureNames(billed bool) []string {
	names := []string{"requests", "errors", "tokens in", "cached", "out", "marginal", "used", "idle", "allocated"}
	if billed {
		names = append(names, "as billed")
	}
	return append(names, "$/Mtok", "wasted", "of used")
}

func figures(l *books.Line, billed bool) table.Row {
	per, share := "-", "-"
	if usd, ok := l.PerMTok(); ok {
		per = fmt.Sprintf("%.3g", usd)
	}
	if u := l.Used(); u > 0 {
		share = fmt.Sprintf("%.1f%%", 100*l.WastedUSD()/u)
	}
	row := table.Row{
		l.N[books.Requests], l.N[books.Errors], l.N[books.PromptTokens], l.N[books.CachedTokens], l.N[books.OutputTokens], usdText(l.F[books.MarginalUSD]),
		usdText(l.Used()), usdText(l.IdleUSD), usdText(l.Allocated()),
	}
	if billed {
		row = append(row, usdText(l.BilledUSD))
	}
	return append(row, per, usdText(l.WastedUSD()), share)
}

// wasteText says why dollars were wasted. Idle hours are apart: they are in no request.
func wasteText(r *books.Report) string {
	var parts []string
	for _, why := range books.Reasons() {
		if usd := r.Total.F[books.Wasted+books.Amount(why)]; usd > 0 {
			parts = append(parts, strings.ReplaceAll(why.String(), "_", " ")+" "+usdText(usd))
		}
	}
	s := "Wasted by requests: nothing.\n"
	if len(parts) > 0 {
		s = "Wasted by requests: " + strings.Join(parts, ", ") + ".\n"
	}
	if r.Rented > 0 {
		s += fmt.Sprintf("Hosts were paid for by time with %s, of which %s (%.0f%%) while they did nothing", usdText(r.Rented), usdText(r.Total.IdleUSD), 100*r.Total.IdleUSD/r.Rented)
		if r.ColdUSD > 0 {
			s += ", workers' starts of " + usdText(r.ColdUSD) + " included"
		}
		s += ".\n"
	}
	return s
}
