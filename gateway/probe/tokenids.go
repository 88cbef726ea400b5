package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"headrace/gateway/openai"
	"headrace/gateway/sse"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// A host that tells the numbers of its tokens, and takes them, is asked for a short answer as a stream, for callers are served so, and then
// for the second half of that by the numbers of prompt and first half. It has to say what it has said before: one that reads the
// numbers as something else, or tells others than it reads, says something else.

// Tokens of both answers, beside those of the other test.
const (
	numberedTokens = 12
	behindTokens   = 4
)

// takesTokens tells whether the host goes on with an answer by the numbers of its tokens. In doubt it does not.
func (p *Prober) takesTokens(ctx context.Context, ep *endpoint.Endpoint, served string) bool {
	if ep.Routes != nil && !slices.Contains(ep.Routes, completionsPath) {
		return false
	}
	q := question{
		Model: name(ep, served), Messages: []message{{"user", questions[0]}}, MaxTokens: numberedTokens, Temperature: new(0.0), TokenIDs: true, Stream: true,
	}
	a := p.post(ctx, ep, chatPath, &q, time.Now().Add(p.within(ep)))
	if a.class != outcome.Success {
		return false
	}
	prompt, told := numbered(a.body)
	half := len(told) / 2
	if len(prompt) == 0 || half == 0 || strings.TrimSpace(told[half-1].text) == "" { // what is kept back of a character comes later
		return false
	}
	ids := prompt
	for i := range told[:half] {
		ids = append(ids, told[i].ids...)
	}
	rest := text(told[half:])
	if len(strings.TrimSpace(rest)) < 2 {
		return false
	}
	q = question{Model: q.Model, Prompt: ids, MaxTokens: behindTokens, Temperature: new(0.0), TokenIDs: true, Stream: true}
	a = p.post(ctx, ep, completionsPath, &q, time.Now().Add(p.within(ep)))
	if a.class != outcome.Success {
		return false
	}
	_, behind := numbered(a.body)
	return agree(rest, text(behind))
}

// numberedText is an event's text and the numbers of its tokens.
type numberedText struct {
	text string
	ids  []int64
}

// text is what events say together.
func text(told []numberedText) string {
	var b strings.Builder
	for i := range told {
		b.WriteString(told[i].text)
	}
	return b.String()
}

// numbered reads a stream of either path with numbers: those of the prompt, and the events with text or tokens. It is nil where an event
// with text has none, or lies over several lines.
func numbered(body []byte) (prompt []int64, told []numberedText) {
	var events sse.Scanner
	var c openai.Chunk
	for rest := body; ; {
		ev, ok := events.Next(rest)
		if !ok {
			return prompt, told
		}
		raw := rest[:ev.Size]
		rest = rest[ev.Size:]
		if !ev.HasData {
			continue
		}
		c.Parse(ev.Name, ev.Data)
		var one numberedText
		if at := c.PromptIDsAt; at.Present() && json.Unmarshal(ev.Data[at.From:at.To], &prompt) != nil {
			return nil, nil
		}
		if at := c.TokenIDsAt; at.Present() && json.Unmarshal(ev.Data[at.From:at.To], &one.ids) != nil {
			return nil, nil
		}
		if at := c.TextAt; at.Present() && json.Unmarshal(ev.Data[at.From:at.To], &one.text) != nil {
			return nil, nil
		}
		switch {
		case one.text != "" && len(one.ids) == 0, c.Reasoning, c.Other, !bytes.Contains(raw, ev.Data):
			return nil, nil
		case len(one.ids) > 0:
			told = append(told, one)
		}
	}
}
