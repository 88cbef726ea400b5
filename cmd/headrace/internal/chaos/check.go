package chaos

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"headrace/providers/fakecloud"
)

// End is how an answer ended for its caller.
type End string

// Ends.
const (
	Complete End = "complete" // all of it, properly ended
	Failed   End = "failed"   // with an error, in the open
	Refused  End = "refused"  // before it began, to be tried again later: 429 or 503
	Cut      End = "cut"      // as though it were complete, or without a word
)

// Verdict is what a caller got.
type Verdict struct {
	End    End
	Code   string // of the error
	Status int

	Lost, Doubled, Altered int // tokens

	Resumed  int // seams that were told of
	Tokens   int // events with text
	Problems []string
}

// bad notes what no answer may be.
func (v *Verdict) bad(format string, args ...any) {
	const most = 8
	if len(v.Problems) < most {
		v.Problems = append(v.Problems, fmt.Sprintf(format, args...))
	}
}

// Check reads one answer and finds what is wrong with it. Make one with NewCheck; it is for one goroutine.
type Check struct {
	// Gap is told of each pause between two events with text, and whether a seam lies in it; nil for nobody.
	Gap func(d time.Duration, seam bool)

	ask   *Ask
	meant []meant
	v     Verdict

	data  []byte // of the event that is being read
	has   bool   // it has data
	id    string
	model string
	born  int64
	said  []strings.Builder // by choice
	roles []int
	ends  []string // finish_reason by choice
	usage *usageSeen
	last  time.Time // of the last event with text
	seam  bool      // one was told of since
	done  bool      // [DONE]
	erred bool
	after bool // something came behind the end
}

type usageSeen struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
}

// NewCheck begins to check the answer to a.
func NewCheck(a *Ask) *Check {
	m := a.meant()
	return &Check{ask: a, meant: m, said: make([]strings.Builder, len(m)), roles: make([]int, len(m)), ends: make([]string, len(m))}
}

// Line takes a line of a stream, without its end, and when it came.
func (c *Check) Line(line []byte, at time.Time) {
	switch {
	case len(line) == 0:
		if c.has {
			c.event(c.data, at)
		}
		c.data, c.has = c.data[:0], false
	case line[0] == ':':
		if bytes.HasPrefix(line, []byte(": resumed")) {
			c.v.Resumed++
			c.seam = true
		}
	case bytes.HasPrefix(line, []byte("data:")):
		if c.has {
			c.data = append(c.data, '\n')
		}
		c.data, c.has = append(c.data, bytes.TrimPrefix(line[len("data:"):], []byte(" "))...), true
	}
}

type errorSeen struct {
	Message string
	Code    any // a word, or a number with some
	Type    string
}

type eventSeen struct {
	ID      string
	Object  string
	Created int64
	Model   string
	Choices []struct {
		Index int
		Delta struct {
			Role    string
			Content *string
		}
		Text         *string
		FinishReason *string `json:"finish_reason"`
	}
	Usage *usageSeen
	Error *errorSeen
}

func (c *Check) event(data []byte, at time.Time) {
	if c.done || c.erred {
		if !c.after {
			c.v.bad("an event behind the end: %.80s", data)
		}
		c.after = true
		return
	}
	if string(data) == "[DONE]" {
		c.done = true
		return
	}
	var e eventSeen
	if err := json.Unmarshal(data, &e); err != nil {
		c.v.bad("an event that is no JSON: %.80s", data)
		return
	}
	if e.Error != nil {
		c.erred = true
		c.v.Code = fmt.Sprint(e.Error.Code)
		return
	}
	c.names(&e)
	for i := range e.Choices {
		k := &e.Choices[i]
		if k.Index < 0 || k.Index >= len(c.said) {
			c.v.bad("choice %d, which nobody asked for", k.Index)
			continue
		}
		if k.Delta.Role != "" {
			if c.roles[k.Index]++; c.said[k.Index].Len() > 0 {
				c.v.bad("a role behind the first token")
			}
		}
		text := k.Delta.Content
		if !c.ask.Chat {
			text = k.Text
		}
		if text != nil && *text != "" {
			c.text(k.Index, *text, at)
		}
		if k.FinishReason != nil {
			if c.ends[k.Index] != "" {
				c.v.bad("finish_reason twice: %s, then %s", c.ends[k.Index], *k.FinishReason)
			}
			c.ends[k.Index] = *k.FinishReason
		}
	}
	if e.Usage != nil {
		if c.usage != nil {
			c.v.bad("usage twice")
		}
		c.usage = e.Usage
	}
}

// names holds every event to one id, time, object and model.
func (c *Check) names(e *eventSeen) {
	object := "text_completion"
	if c.ask.Chat {
		object = "chat.completion.chunk"
	}
	if c.id == "" {
		c.id, c.model, c.born = e.ID, e.Model, e.Created
	}
	switch {
	case e.ID == "" || e.ID != c.id:
		c.v.bad("id %q after %q", e.ID, c.id)
	case e.Model != c.model:
		c.v.bad("model %q after %q", e.Model, c.model)
	case e.Created != c.born:
		c.v.bad("created %d after %d", e.Created, c.born)
	case e.Object != object:
		c.v.bad("object %q", e.Object)
	}
}

func (c *Check) text(choice int, text string, at time.Time) {
	if c.ends[choice] != "" {
		c.v.bad("text behind finish_reason")
	}
	c.said[choice].WriteString(text)
	c.v.Tokens++
	if !c.last.IsZero() && c.Gap != nil {
		c.Gap(at.Sub(c.last), c.seam)
	}
	c.last, c.seam = at, false
}

// End closes a stream that ended with err, nil for its proper end, and tells what to make of it.
func (c *Check) End(err error) Verdict {
	v := &c.v
	v.Status = 200
	if c.has {
		v.bad("the last event is not ended")
	}
	finished := true
	for _, f := range c.ends {
		finished = finished && f != ""
	}
	whole := c.done && finished && err == nil && !c.erred
	c.compare(whole)
	switch {
	case c.erred:
		v.End = Failed
		if finished {
			v.bad("an error behind finish_reason")
		}
	case !whole:
		v.End = Cut
		switch {
		case err != nil:
			v.bad("the connection broke: %v", err)
		case c.done:
			v.bad("[DONE] without finish_reason")
		case finished:
			v.bad("no [DONE]")
		default:
			v.bad("the stream ended without finish_reason and [DONE]")
		}
	case v.Lost > 0:
		v.End = Cut
		v.bad("a clean end of an answer that is not complete")
	default:
		v.End = Complete
	}
	if whole {
		c.finished()
	}
	c.bound()
	return *v
}

// finished holds a complete stream to what belongs to one.
func (c *Check) finished() {
	for i, n := range c.roles {
		if want := 1; c.ask.Chat && n != want {
			c.v.bad("%d deltas with a role", n)
		}
		if c.ends[i] != c.meant[i].finish {
			c.v.bad("finish_reason %s instead of %s", c.ends[i], c.meant[i].finish)
		}
	}
	switch {
	case c.ask.Usage && c.usage == nil:
		c.v.bad("no usage, though it was asked for")
	case !c.ask.Usage && c.usage != nil:
		c.v.bad("usage that nobody asked for")
	case c.ask.Usage:
		c.counts(c.usage)
	}
}

// stopSlack is how many tokens without a text, being part of a stop string, may be counted at a seam once more.
const stopSlack = 2

func (c *Check) counts(u *usageSeen) {
	prompt, out := fakecloud.CountTokens(c.ask.whole()), 0
	for _, m := range c.meant {
		out += m.counts
	}
	slack := 0
	if c.ask.Stop != "" && c.v.Resumed > 0 {
		slack = stopSlack
	}
	if u.Prompt != prompt || u.Completion < out || u.Completion > out+slack || u.Total != u.Prompt+u.Completion {
		c.v.bad("usage %d + %d = %d instead of %d + %d", u.Prompt, u.Completion, u.Total, prompt, out)
	}
}

func (c *Check) compare(whole bool) {
	for i := range c.meant {
		lost, doubled, altered := compare(c.meant[i].tokens, c.said[i].String(), whole)
		c.v.Lost += lost
		c.v.Doubled += doubled
		c.v.Altered += altered
	}
	if c.v.Lost+c.v.Doubled+c.v.Altered > 0 {
		c.v.bad("%d tokens lost, %d doubled, %d altered of %d", c.v.Lost, c.v.Doubled, c.v.Altered, len(c.meant[0].tokens))
	}
}

func (c *Check) bound() {
	if c.ask.Bound != Free && c.v.Resumed > 0 {
		c.v.bad("continued, though %s forbids it", c.ask.Bound)
	}
}

// Whole judges an answer in one piece, and one that is an error.
func (c *Check) Whole(status int, body []byte, err error) Verdict {
	v := &c.v
	v.Status = status
	var a struct {
		eventSeen
		Choices []struct {
			Index   int
			Message *struct {
				Role    string
				Content *string
			}
			Text         *string
			FinishReason *string `json:"finish_reason"`
		}
	}
	switch bad := json.Unmarshal(body, &a); {
	case err != nil:
		v.End = Cut
		v.bad("the connection broke: %v", err)
		return *v
	case status != 200:
		v.End = Failed
		if status == 429 || status == 503 {
			v.End = Refused
		}
		if bad != nil || a.Error == nil || a.Error.Message == "" {
			v.bad("status %d with %.80q", status, body)
			return *v
		}
		v.Code = fmt.Sprint(a.Error.Code)
		return *v
	case bad != nil:
		v.End = Cut
		v.bad("an answer that is no JSON: %.80q", body)
		return *v
	}
	object := "text_completion"
	if c.ask.Chat {
		object = "chat.completion"
	}
	if a.ID == "" || a.Object != object || a.Created == 0 || a.Model == "" || len(a.Choices) != len(c.meant) {
		v.bad("an answer with id %q, object %q, model %q, %d choices", a.ID, a.Object, a.Model, len(a.Choices))
	}
	for _, k := range a.Choices {
		if k.Index < 0 || k.Index >= len(c.said) {
			continue
		}
		text := k.Text
		if c.ask.Chat && k.Message != nil {
			if text = k.Message.Content; k.Message.Role != "assistant" {
				v.bad("role %q", k.Message.Role)
			}
		}
		if text != nil {
			c.said[k.Index].WriteString(*text)
		}
		if k.FinishReason == nil || *k.FinishReason != c.meant[k.Index].finish {
			v.bad("finish_reason is not %s", c.meant[k.Index].finish)
		}
	}
	c.compare(true)
	if v.End = Complete; v.Lost > 0 {
		v.End = Cut
		v.bad("a clean end of an answer that is not complete")
	}
	if a.Usage == nil {
		v.bad("no usage")
	} else {
		if c.ask.Stop != "" {
			v.Resumed++ // whether it was is not told: the slack of counts
			defer func() { c.v.Resumed-- }()
		}
		c.counts(a.Usage)
	}
	return *v
}

// compare finds what is wrong with a text that should consist of tokens: how many are missing, are there once more, or are
// others. A text that is not whole may end anywhere.
func compare(tokens []string, said string, whole bool) (lost, doubled, altered int) {
	text := strings.Join(tokens, "")
	if said == text || !whole && strings.HasPrefix(text, said) {
		return 0, 0, 0
	}
	at := make([]int, len(tokens)+1) // where tokens begin
	for i, t := range tokens {
		at[i+1] = at[i] + len(t)
	}
	// fits says that rest goes on as the text does from token i.
	fits := func(rest string, i int) bool {
		const enough = 24 // bytes: several tokens
		if i < 0 || i >= len(tokens) || rest == "" {
			return false
		}
		want := text[at[i]:min(len(text), at[i]+enough)]
		return strings.HasPrefix(rest, want) || len(rest) < enough && strings.HasPrefix(text[at[i]:], rest)
	}
	for i := 0; ; {
		switch {
		case i < len(tokens) && strings.HasPrefix(said, tokens[i]):
			said = said[len(tokens[i]):]
			i++
			continue
		case said == "":
			if whole {
				lost += len(tokens) - i
			}
			return lost, doubled, altered
		case i < len(tokens) && strings.HasPrefix(tokens[i], said): // it ends in the middle of a token
			if whole {
				lost += len(tokens) - i
			}
			return lost, doubled, altered
		}
		if k := nearest(i, len(tokens), func(k int) bool { return fits(said, k) }); k >= 0 {
			lost += max(0, k-i)
			doubled += max(0, i-k)
			i = k
			continue
		}
		// Something else stands there: until where?
		altered++
		skip, next := len(said), i+1
		for s := 1; s < len(said); s++ {
			if k := nearest(i+1, len(tokens), func(k int) bool { return fits(said[s:], k) }); k >= 0 {
				skip, next = s, k
				break
			}
		}
		if skip == len(said) {
			return lost, doubled, altered
		}
		lost += max(0, next-i-1)
		doubled += max(0, i+1-next)
		said, i = said[skip:], next
	}
}

// nearest finds the number in [0,n) closest to i for which ok is true, -1 for none.
func nearest(i, n int, ok func(int) bool) int {
	for d := range n + 1 {
		if i-d >= 0 && i-d < n && ok(i-d) {
			return i - d
		}
		if d > 0 && i+d < n && ok(i+d) {
			return i + d
		}
	}
	return -1
}
