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
	"strings"
	"sync"
	"time"

	"headrace/gateway/ledger"
	"headrace/providers/fakecloud"
)

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

// sseData returns the data of an event line, nil for other lines.
func sseData(line []byte) []byte {
	d, ok := bytes.CutPrefix(line, []byte("data: "))
	if !ok {
		return nil
	}
	return bytes.TrimSpace(d)
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

// firstAnswer streams one answer to the screen and says what it took; nil too when ctx is done.
func (v *view) firstAnswer(ctx context.Context, base string) error {
	v.prose("The first answer, streamed (the fake model says odd words on purpose: each is known beforehand, so that a lost or doubled one is found):\n\n> %s\n", demoPrompt)
	w := &wrapper{w: v.out, width: 70}
	id, err := v.ask(ctx, base, demoLlama, demoPrompt, 60, w.add)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("the first answer failed: %w", err)
	}
	var recs []ledger.Record
	for len(recs) == 0 && ctx.Err() == nil { // the record follows the last byte
		wait(ctx, time.Millisecond)
		recs = v.app.ring.Newest(1, func(r *ledger.Record) bool { return r.ID == id })
	}
	if len(recs) == 0 {
		return nil
	}
	r := recs[0]
	v.prose("\n\n%s answered: first token after %d ms, %.1f tokens per second, %d tokens for $%.6f (its share of the host's rent); the gateway's own part was %d µs.\n",
		r.Endpoint, r.TTFT.Milliseconds(), r.TPS, r.Output, r.USD, r.Overhead.Microseconds())
	if v.screen {
		wait(ctx, 3*time.Second) // to be read, before the table paints over it
	}
	return nil
}

// wrapper breaks lines of streamed text between words.
type wrapper struct {
	w     io.Writer
	width int
	at    int // characters on the line
}

func (w *wrapper) add(s string) {
	for _, r := range s {
		if r == '\n' || r == ' ' && w.at >= w.width {
			r, w.at = '\n', -1
		}
		w.at++
		_, _ = io.WriteString(w.w, string(r)) // a closed output ends the demo by its next table
	}
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
		model, tokens := demoLlama, 20+rng.IntN(120)
		switch rng.IntN(10) {
		case 0:
			model = demoCoder
		case 1, 2, 3:
			model = demoMixtral
		}
		prompt := fmt.Sprintf("Question %d: what did the %s say?", n, [...]string{"miller", "river", "wheel", "heron"}[rng.IntN(4)])
		wg.Go(func() {
			var text strings.Builder
			_, err := v.ask(ctx, base, model, prompt, tokens, func(s string) { text.WriteString(s) }) // settled tells of failures
			v.mu.Lock()
			defer v.mu.Unlock()
			switch {
			case err != nil && ctx.Err() != nil:
				v.unended++
			case err != nil:
			default:
				v.compared++
				if text.String() != fakecloud.Answer(model, prompt, tokens) {
					v.wrong++
				}
			}
		})
	}
}
