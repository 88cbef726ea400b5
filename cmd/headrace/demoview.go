package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"headrace/gateway/ledger"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// view is what the demo prints, and the load it prints about.
type view struct {
	app    *app
	out    io.Writer
	client *http.Client
	began  time.Time
	screen bool // out is a terminal: paint over

	mu       sync.Mutex // guards all below
	news     []string   // last events, oldest first
	requests int
	moved    int // answered by another host than the first one tried
	broken   int // ended with an error
	tokens   int64
	usd      float64
	down     map[endpoint.ID]time.Time
}

func newView(a *app, out io.Writer) *view {
	return &view{
		app: a, out: out, began: time.Now(), screen: isTerminal(out), down: map[endpoint.ID]time.Time{},
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}},
	}
}

const newsKept = 8

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

// settled counts one request of the gateway.
func (v *view) settled(r *ledger.Record) {
	v.mu.Lock()
	v.requests++
	v.tokens += max(0, r.Output)
	v.usd += r.USD
	ok := r.Class == outcome.Success
	hosts := !ok && r.Class != outcome.ClientGone && r.Class != outcome.CallerFault // what the caller did is no fault of theirs
	if hosts {
		v.broken++
	}
	if ok && r.Tries > 1 {
		v.moved++
	}
	v.mu.Unlock()
	switch {
	case ok && r.Tries > 1:
		v.tell("a request moved from %s (%s) to %s before its first token; its caller saw nothing", r.Attempts[0].Endpoint, r.Attempts[0].Class, r.Endpoint)
	case r.Class == outcome.Truncated:
		v.tell("a stream broke off on %s after %d tokens; its caller got an error event", r.Endpoint, max(0, r.Output))
	case r.Class == outcome.CallerFault:
		v.tell("a request was refused: %s", r.Code)
	case hosts && r.Endpoint == "":
		v.tell("a request found no host: %s", r.Code)
	case hosts:
		v.tell("a request failed on %s: %s", r.Endpoint, r.Class)
	}
}

type chatChunk struct {
	Choices []struct {
		Delta struct {
			Content string `json:"content"`
		} `json:"delta"`
	} `json:"choices"`
	Error *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// ask streams one answer and hands each piece of text to each.
func (v *view) ask(ctx context.Context, base, model, prompt string, tokens int, each func(string)) (requestID string, err error) {
	body, _ := json.Marshal(map[string]any{
		"model": model, "stream": true, "max_tokens": tokens,
		"messages": []map[string]string{{"role": "user", "content": prompt}},
	}) // strings and numbers always encode
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/chat/completions", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := v.client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	requestID = res.Header.Get("X-Request-Id")
	sc := bufio.NewScanner(res.Body)
	for sc.Scan() {
		var c chatChunk
		d := sseData(sc.Bytes())
		if res.StatusCode != http.StatusOK {
			d = sc.Bytes() // an error in one piece
		}
		if d == nil || json.Unmarshal(d, &c) != nil {
			continue
		}
		if c.Error != nil {
			return requestID, errors.New(c.Error.Message)
		}
		for _, ch := range c.Choices {
			each(ch.Delta.Content)
		}
	}
	if res.StatusCode != http.StatusOK {
		return requestID, fmt.Errorf("status %d", res.StatusCode)
	}
	return requestID, sc.Err()
}

// firstAnswer streams one answer to the screen and says what it took.
func (v *view) firstAnswer(ctx context.Context, base string) error {
	_, _ = fmt.Fprintf(v.out, "A streamed answer (the fake model says odd words on purpose: each is known beforehand, so a lost or doubled one is found):\n\n> %s\n\n", demoPrompt)
	var recs []ledger.Record
	id, err := v.ask(ctx, base, demoModel, demoPrompt, 60, func(s string) { _, _ = io.WriteString(v.out, s) })
	if err != nil {
		return fmt.Errorf("the first answer failed: %w", err)
	}
	for len(recs) == 0 { // the record follows the last byte
		if err := ctx.Err(); err != nil {
			return err
		}
		wait(ctx, 5*time.Millisecond)
		recs = v.app.ring.Newest(1, func(r *ledger.Record) bool { return r.ID == id })
	}
	r := recs[0]
	_, _ = fmt.Fprintf(v.out, "\n\n%s answered: first token after %d ms, %.1f tokens per second, %d tokens for $%.6f (its share of the host's rent);\nthe gateway's own part was %d µs.\n\n",
		r.Endpoint, r.TTFT.Milliseconds(), r.TPS, r.Output, r.USD, r.Overhead.Microseconds())
	if v.screen {
		wait(ctx, 3*time.Second) // to be read, before the table paints over it
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// load sends requests at random moments, rate a second on average, until ctx is done.
func (v *view) load(ctx context.Context, base string, rate float64, rng *rand.Rand) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for n := 1; rate > 0; n++ {
		wait(ctx, min(10*time.Second, time.Duration(rng.ExpFloat64()/rate*float64(time.Second))))
		if ctx.Err() != nil {
			return
		}
		model, tokens := demoModel, 20+rng.IntN(120)
		if rng.IntN(3) == 0 {
			model = "mixtral"
		}
		prompt := fmt.Sprintf("Question %d: what did the %s say?", n, [...]string{"miller", "river", "wheel", "heron"}[rng.IntN(4)])
		wg.Go(func() {
			_, _ = v.ask(ctx, base, model, prompt, tokens, func(string) {}) // settled tells of failures
		})
	}
}

// preempt kills a cheap host again and again and brings it back: outbid every few hours, in fast motion.
func (v *view) preempt(ctx context.Context, c *cloud, every time.Duration) {
	var cheap []endpoint.ID
	for _, h := range c.hosts {
		if h.Endpoint().Tenure == endpoint.Interruptible {
			cheap = append(cheap, h.Endpoint().ID)
		}
	}
	for i := 0; ; i++ {
		wait(ctx, every*2/3)
		if ctx.Err() != nil {
			return
		}
		id := cheap[i%len(cheap)]
		v.tell("%s is outbid: its connections are reset, new ones refused", id)
		v.mark(id, true)
		c.byID[id].Kill()
		wait(ctx, every/3)
		if err := c.byID[id].Revive(); err != nil {
			v.tell("%s cannot come back: %v", id, err)
			return
		}
		v.mark(id, false)
		v.tell("%s is back", id)
	}
}

func (v *view) mark(id endpoint.ID, down bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if down {
		v.down[id] = time.Now()
		return
	}
	delete(v.down, id)
}

// show prints the table until ctx is done: each second on a screen, each five in a file.
func (v *view) show(ctx context.Context, base string) {
	every := 5 * time.Second
	if v.screen {
		every = time.Second
	}
	for ctx.Err() == nil {
		v.mu.Lock()
		var b bytes.Buffer
		if v.screen {
			b.WriteString("\x1b[H\x1b[2J")
		}
		fmt.Fprintf(&b, "\n%s\n", v.table())
		fmt.Fprintf(&b, "%d requests, %d moved to another host, %d broken · %d tokens · $%.5f\n", v.requests, v.moved, v.broken, v.tokens, v.usd)
		if v.screen {
			b.WriteByte('\n')
			for _, n := range v.news {
				fmt.Fprintln(&b, n)
			}
		}
		fmt.Fprintf(&b, "\nTry it:  curl -N %s/chat/completions -H 'Content-Type: application/json' -d '{\"model\":\"llama-70b\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}'\n", base)
		if v.app.admin != nil {
			fmt.Fprintf(&b, "Look in: curl http://%s/admin/v1/requests?n=3\n", reachable(v.app.admin.Addr()))
		}
		b.WriteString("Ctrl-C stops.\n")
		_, err := v.out.Write(b.Bytes())
		v.mu.Unlock()
		if err != nil {
			return
		}
		wait(ctx, every)
	}
}

// table renders the hosts. The caller holds mu.
func (v *view) table() string {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.AppendHeader(table.Row{"host", "GPU", "model", "$/h", "$/Mtok full", "$/Mtok one stream", "TTFT ms", "TPS", "in flight", "requests", "state"})
	for _, h := range v.app.router.Hosts() {
		t.AppendRow(table.Row{
			h.ID, h.Endpoint.Hardware.GPU, firstOf(h.Models), fmt.Sprintf("%.2f", h.Endpoint.Price.USDPerHour),
			figure(h.FullLoadUSDPerMTok, "%.2f"), figure(h.StreamUSDPerMTok, "%.2f"), figure(h.TTFTMillis, "%.0f"), figure(h.TPS, "%.1f"),
			h.InFlight, h.Requests, v.state(&h),
		})
	}
	var right []table.ColumnConfig
	for n := 4; n <= 10; n++ {
		right = append(right, table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(right)
	return t.Render()
}

func (v *view) state(h *router.HostView) string {
	_, down := v.down[h.ID]
	switch {
	case h.Breaker != "closed":
		return "breaker " + h.Breaker
	case down:
		return "dead, not noticed yet"
	default:
		return "up"
	}
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

func (v *view) summary() {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, _ = fmt.Fprintf(v.out, "\nStopped after %.0f s: %d requests, %d moved to another host, %d broken; %d tokens for $%.5f.\n",
		time.Since(v.began).Seconds(), v.requests, v.moved, v.broken, v.tokens, v.usd)
}
