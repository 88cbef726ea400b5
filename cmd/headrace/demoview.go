package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/term"

	"headrace/router"
	"headrace/router/endpoint"
)

// view is what the demo prints, and the load it prints about.
type view struct {
	app    *app
	market *market
	out    io.Writer
	client *http.Client
	began  time.Time
	screen bool // out is a terminal: paint over

	opened time.Time // the market; zero before

	mu       sync.Mutex // guards all below
	news     []string   // last events, oldest first
	requests int        // settled, of these:
	answered int
	moved    int // answered by another host than the first one tried
	wentOn   int // begun by one host and gone on with by another
	broken   int // cut after their first token
	failed   int // ended with an error before it
	refused  int // the caller's fault
	gone     int // whose caller left
	unended  int // of these, those of the load that were under way at the stop
	compared int // of the load, whole ones, with what the fake model says; of these:
	wrong    int // with a token lost, doubled or altered
	tokens   int64
	usd      float64
	spent    map[endpoint.ID]float64 // USD
	struck   map[endpoint.ID]*strike
	cut      map[endpoint.ID]cuts

	strikes            int
	pauses             []time.Duration // of answers that went on elsewhere
	leaving, returning []time.Duration // from the strike until out of rotation, and until back in
}

func newView(a *app, m *market, out io.Writer) *view {
	return &view{
		app: a, market: m, out: out, began: time.Now(), screen: isTerminal(out),
		spent: map[endpoint.ID]float64{}, struck: map[endpoint.ID]*strike{}, cut: map[endpoint.ID]cuts{},
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}},
	}
}

// isTerminal tells whether w is a screen that can be painted over.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd())) //nolint:gosec // a handful
}

// size is that of the screen; 0 by 0 when there is none, or it does not tell.
func (v *view) size() (width, height int) {
	if f, ok := v.out.(*os.File); ok && v.screen {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil { //nolint:gosec // a handful
			return w, h
		}
	}
	return 0, 0
}

const newsKept = 16

func (v *view) tell(format string, args ...any) {
	line := fmt.Sprintf("%6.1fs  ", time.Since(v.began).Seconds()) + fmt.Sprintf(format, args...)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.news = append(v.news, line); len(v.news) > newsKept {
		v.news = v.news[1:]
	}
	if !v.screen {
		_, _ = fmt.Fprintln(v.out, line) // a closed output ends the demo by its next table
	}
}

// prose prints text, broken between words where the screen ends.
func (v *view) prose(format string, args ...any) {
	width, _ := v.size()
	if width = min(width, proseWidth); width < 40 {
		width = proseWidth
	}
	for par := range strings.SplitSeq(fmt.Sprintf(format, args...), "\n") { // WrapSoft would join them
		for line := range strings.SplitSeq(text.WrapSoft(par, width), "\n") {
			_, _ = io.WriteString(v.out, strings.TrimRight(line, " ")+"\n") // a closed output ends the demo by its next table
		}
	}
}

const proseWidth = 110

// intro says what is shown, and what of it is made up.
func (v *view) intro(base string, o *demoOptions) {
	v.prose("Headrace demo, all of it on this machine: a fake RunPod and a fake Vast.ai with %d rented hosts, and the gateway at %s/v1, "+
		"which was given nothing but their keys.\n", len(v.market.Fleet()), base)
	bids := fmt.Sprintf("others outbid each of the interruptible instances every 6 h (%s) on average, at random; it is back at another port after about 10 min (%s)",
		brief(brought(outbidEvery, v.market.scale)), brief(brought(awayFor, v.market.scale)))
	if o.calm {
		bids = "nobody bids against you (--calm)"
	}
	v.prose("The market is in fast motion, 1 h of market = %s: %s. RunPod's cold starts are %.3g times as fast as in life, and the gateway "+
		"looks at both clouds that much more often; hosts answer at the speed of life. Seed %d.\n", brief(o.hour), bids, v.market.runpodScale, o.seed)
	v.prose("Prices and speeds come from the fakes' built-in tables and are not today's: Vast.ai's are illustrative figures of late 2023 " +
		"and early 2024, RunPod's serverless prices those of June 2026.\n")
}

// show prints the table until ctx is done: each second on a screen, each five in a file.
func (v *view) show(ctx context.Context, base string) {
	if !v.screen {
		_, _ = fmt.Fprintf(v.out, "%s", v.hints(base))
	}
	every := 5 * time.Second
	if v.screen {
		every = time.Second
	}
	for ctx.Err() == nil {
		hosts := v.app.router.Hosts()
		v.mu.Lock()
		var page string
		if v.screen {
			page = v.paint(hosts, base)
		} else {
			page = "\n" + v.table(hosts, 0) + "\n" + v.totals() + "\n\n"
		}
		_, err := io.WriteString(v.out, page)
		v.mu.Unlock()
		if err != nil {
			return
		}
		wait(ctx, every)
	}
}

func (v *view) hints(base string) string {
	s := fmt.Sprintf("Try it:  curl -N %s/v1/chat/completions -H 'Content-Type: application/json' -d '{\"model\":\"%s\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}'\n", base, demoLlama)
	if v.app.admin != nil {
		s += fmt.Sprintf("Look in: curl http://%s/admin/v1/requests?n=3   ", reachable(v.app.admin.Addr()))
	}
	return s + "Ctrl-C stops.\n"
}

// paint renders a screen over the last one. The caller holds mu.
func (v *view) paint(hosts []router.HostView, base string) string {
	width, height := v.size()
	head := strings.Split(v.table(hosts, width)+"\n"+v.totals()+"\n", "\n")
	foot := strings.Split(strings.TrimSuffix("\n"+v.hints(base), "\n"), "\n")
	room := newsKept
	if height > 0 {
		room = max(3, height-1-rows(head, width)-rows(foot, width))
	}
	var news []string
	for _, n := range slices.Backward(v.news) { // the newest, as far as they fit
		if lines := folded(n, width); len(lines)+len(news) <= room {
			news = append(lines, news...)
			continue
		}
		break
	}
	var b strings.Builder
	b.WriteString("\x1b[H")
	for _, part := range [][]string{head, news, foot} {
		for _, line := range part {
			b.WriteString(line + "\x1b[K\n")
		}
	}
	b.WriteString("\x1b[J") // what the last screen had below
	return b.String()
}

// rows is how many rows of a screen lines take.
func rows(lines []string, width int) (n int) {
	for _, l := range lines {
		n++
		if w := text.StringWidthWithoutEscSequences(l); width > 0 && w > width {
			n += (w - 1) / width
		}
	}
	return n
}

// folded breaks a line of news between words, further lines below its text.
func folded(line string, width int) []string {
	const indent = 9 // of the time
	if width < 40 || text.StringWidthWithoutEscSequences(line) <= width {
		return []string{line}
	}
	lines := strings.Split(text.WrapSoft(strings.TrimSpace(line[indent:]), width-indent), "\n")
	for i := range lines {
		lines[i] = strings.Repeat(" ", indent) + strings.TrimRight(lines[i], " ")
	}
	lines[0] = line[:indent] + strings.TrimSpace(lines[0])
	return lines
}

// column is one of the table.
type column struct {
	name  string
	right bool
	spare int // where there is no room, the highest goes first; 0 stays
	least int // width, so that the columns behind it stay where they are
	cell  func(v *view, h *router.HostView) string
}

func columns() []column {
	return []column{
		{"endpoint", false, 0, 0, func(_ *view, h *router.HostView) string { return string(h.ID) }},
		{"provider", false, 4, 0, func(_ *view, h *router.HostView) string { return h.Provider }},
		{"GPU", false, 2, 11, func(_ *view, h *router.HostView) string {
			if h.GPUCount > 1 {
				return fmt.Sprintf("%dx %s", h.GPUCount, h.GPU)
			}
			return h.GPU
		}},
		{"tenure", false, 5, 0, func(_ *view, h *router.HostView) string { return strings.ReplaceAll(h.Tenure, "_", " ") }},
		{"model", false, 1, 0, func(_ *view, h *router.HostView) string { return firstOf(h.Models) }},
		{"state", false, 0, 9, func(v *view, h *router.HostView) string { return v.state(h) }},
		{"$/h", true, 0, 0, func(_ *view, h *router.HostView) string { return figure(h.USDPerHour, "%.2f") }},
		{"$/Mtok", true, 3, 0, func(_ *view, h *router.HostView) string { return figure(h.FullLoadUSDPerMTok, "%.2f") }},
		{"TTFT ms", true, 0, 7, func(_ *view, h *router.HostView) string { return figure(h.TTFTMillis, "%.0f") }},
		{"TPS", true, 0, 5, func(_ *view, h *router.HostView) string { return figure(h.TPS, "%.1f") }},
		{"in flight", true, 0, 0, func(_ *view, h *router.HostView) string { return strconv.FormatInt(h.InFlight, 10) }},
		{"requests", true, 0, 0, func(_ *view, h *router.HostView) string { return strconv.FormatInt(h.Requests, 10) }},
		{"cost", true, 0, 0, func(v *view, h *router.HostView) string { return fmt.Sprintf("$%.5f", v.spent[h.ID]) }},
	}
}

// table renders the hosts, within width if it is above 0. The caller holds mu.
func (v *view) table(hosts []router.HostView, width int) string {
	cols := columns()
	for spare := 6; ; spare-- { // columns that are spared go one after the other
		t := plainTable()
		var head table.Row
		var configs []table.ColumnConfig
		for _, c := range cols {
			if c.spare < spare {
				head = append(head, c.name)
				cc := table.ColumnConfig{Number: len(head), WidthMin: c.least}
				if c.right {
					cc.Align, cc.AlignHeader = text.AlignRight, text.AlignRight
				}
				configs = append(configs, cc)
			}
		}
		t.AppendHeader(head)
		t.SetColumnConfigs(configs)
		for i := range hosts {
			var row table.Row
			for _, c := range cols {
				if c.spare < spare {
					row = append(row, c.cell(v, &hosts[i]))
				}
			}
			t.AppendRow(row)
		}
		s := t.Render()
		if width <= 0 || spare == 1 || text.LongestLineLen(s) <= width {
			return s
		}
	}
}

// state is how a host is, for people. The caller holds mu.
func (v *view) state(h *router.HostView) string {
	switch s := v.struck[h.ID]; {
	case h.State == "ready" && h.Breaker == "probing":
		return "probed"
	case h.State == "ready" && !rotates(h):
		return "breaker " + h.Breaker
	case s != nil && !s.left && !s.again:
		return "outbid"
	}
	return h.State
}

func figure(f *float64, format string) string {
	if f == nil {
		return "–"
	}
	return fmt.Sprintf(format, *f)
}

func firstOf(s []string) string {
	if len(s) == 0 {
		return "–"
	}
	return s[0]
}

// totals is the line below the table. The caller holds mu.
func (v *view) totals() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d answered, %d of them after a move before the first token, %d after one in mid-sentence, %d cut in mid-sentence",
		count(int64(v.requests), "request"), v.answered, v.moved, v.wentOn, v.broken)
	for _, p := range []struct {
		n    int
		what string
	}{{v.failed, "failed"}, {v.refused, "refused"}, {max(0, v.gone-v.unended), "left by their callers"}, {v.unended, "under way at the stop"}} {
		if p.n > 0 {
			fmt.Fprintf(&b, ", %d %s", p.n, p.what)
		}
	}
	fmt.Fprintf(&b, "\n%d tokens for $%.5f · market time %s", v.tokens, v.usd, brief(v.marketTime()))
	return b.String()
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func (v *view) marketTime() time.Duration {
	if v.opened.IsZero() {
		return 0
	}
	return time.Duration(float64(time.Since(v.opened)) * v.market.scale)
}

// summary is what remains.
func (v *view) summary() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.prose("\nStopped after %s.\n%s", brief(time.Since(v.began)), v.totals())
	if v.strikes > 0 {
		s := fmt.Sprintf("Instances were outbid %s.", times(v.strikes))
		if len(v.leaving) > 0 {
			s += fmt.Sprintf(" Each was out of rotation after %s", brief(median(v.leaving)))
			if len(v.returning) > 0 {
				s += fmt.Sprintf(" and back in it after %s", brief(median(v.returning)))
			}
			s += " (median)."
		}
		v.prose("%s", s)
	}
	if v.wentOn > 0 {
		v.prose("%s moved to another host in mid-sentence, with a pause of %s (median).", count(int64(v.wentOn), "answer"), brief(median(v.pauses)))
	}
	switch {
	case v.wrong > 0:
		v.prose("%d of %s did not have each token once: please report this with the seed.", v.wrong, count(int64(v.compared), "answer"))
	case v.compared > 0:
		v.prose("%s %s compared with what the fake model says, word by word: each token came once.", count(int64(v.compared), "whole answer"), were(v.compared))
	}
	if v.broken > 0 {
		v.prose("%s %s cut in mid-sentence and ended with an error event: nobody could go on with them.", count(int64(v.broken), "answer"), were(v.broken))
	}
}
