package probe

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// A host goes on with an unfinished answer when it is given its own answer's first half as the last message and then says what
// it has said before. One that closes the message begins anew, or says something that fits the words but not the place: it would
// do so in the middle of a caller's stream. So the cut is made inside a word, where nobody begins by himself, and before white
// space, where a new answer has none. A cut behind white space shows whether the host's template drops it.
//
// Engines do not compute the same twice when other requests run beside: a first "no" is asked again with other words.

// Tokens of answers: all of a self-test's together stay below 64.
const (
	wholeTokens = 16
	restTokens  = 4
)

// questions are asked in this order. Their answers hold long words that follow from those before, and little else.
var questions = [...]string{
	"Count from one to twenty in English words, separated by commas. Write nothing else.",
	"Name the months of the year in English, separated by commas. Write nothing else.",
}

// verdict is what a self-test has found.
type verdict struct {
	router.Prefill
	why   string        // one of a closed set
	class outcome.Class // of the request that kept it from a result; Success where there is one
}

// Why a host does not go on with an answer, or why nobody knows.
const (
	whyNoChat   = "it answers no chat requests"
	whyThinks   = "it thinks before it answers"
	whyRefuses  = "it refuses continue_final_message"
	whyFails    = "it fails when asked to"
	whyRestarts = "it begins its answer anew"
	whyOther    = "it goes on with something else than its own answer"
	whySpace    = "it loses white space where the answer goes on"
	whyUnread   = "it does not read the unfinished answer"
	whyShort    = "its answers are too short to tell"
	whyOdd      = "its answers cannot be read"
	whyNoAnswer = "it gave no answer to the test"
	whyTested   = "tested"
)

func no(why string) verdict { return verdict{Prefill: router.Prefill{Known: true}, why: why} }

// unknown is no verdict, for class.
func unknown(why string, class outcome.Class) verdict { return verdict{why: why, class: class} }

// said is a host's answer to a question.
type said struct {
	text    string
	thought bool
	prompt  int // tokens of the question, 0 when it does not tell
}

// selfTest finds out whether the host goes on with unfinished answers, for this replica or for all. The class is of the
// request that kept it from a result, or Success.
func (p *Prober) selfTest(ctx context.Context, d *router.Probe) outcome.Class {
	v := p.sharedTest(ctx, d.Endpoint, d.Served)
	if ctx.Err() == nil && v.class != outcome.Unserved && v.class != outcome.Moved {
		p.learn(d, v)
	}
	return v.class
}

// testSharedFor is how long what one replica's self-test has found is good for others, which have seen the host come up at about
// the same time.
const testSharedFor = 5 * time.Second

// sharedVerdict is a verdict on its way to other replicas.
type sharedVerdict struct {
	Prefill router.Prefill
	Why     string
	Class   string
}

func (p *Prober) sharedTest(ctx context.Context, ep *endpoint.Endpoint, served string) verdict {
	if p.opt.Share == nil {
		return p.test(ctx, ep, served)
	}
	b, err := p.opt.Share.Once(ctx, "self-test:"+string(ep.ID)+":"+served, testSharedFor, func(ctx context.Context) ([]byte, error) {
		v := p.test(ctx, ep, served)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return json.Marshal(sharedVerdict{v.Prefill, v.why, v.class.String()})
	})
	var s sharedVerdict
	if err != nil || json.Unmarshal(b, &s) != nil {
		return unknown(whyNoAnswer, outcome.Unserved)
	}
	class, _ := outcome.Named(s.Class) // another version may know more words
	return verdict{s.Prefill, s.Why, class}
}

// test asks until it knows, twice at most.
func (p *Prober) test(ctx context.Context, ep *endpoint.Endpoint, served string) (v verdict) {
	for i, q := range questions {
		if v = p.try(ctx, ep, served, q); v.OK || ctx.Err() != nil || i > 0 || v.why == whyRefuses {
			break
		}
		switch v.why {
		case whyNoChat, whyThinks, whyNoAnswer:
			return v
		}
	}
	if v.Known && p.set.Load().TokenIDs && ctx.Err() == nil {
		v.Tokens = p.takesTokens(ctx, ep, served)
	}
	return v
}

// try asks with one question.
func (p *Prober) try(ctx context.Context, ep *endpoint.Endpoint, served, q string) verdict {
	asked := func(begun string, tokens int) (said, answer) {
		body := question{Model: name(ep, served), Messages: []message{{"user", q}}, MaxTokens: tokens, Temperature: new(0.0)}
		if begun != "" {
			body.Messages = append(body.Messages, message{"assistant", begun})
			body.Continue, body.AddPrompt = true, new(false)
		}
		a := p.post(ctx, ep, chatPath, &body, time.Now().Add(p.within(ep)))
		return read(a.body), a
	}
	whole, a := asked("", wholeTokens)
	switch {
	case a.class == outcome.CallerFault:
		return no(whyNoChat)
	case a.class != outcome.Success:
		return unknown(whyNoAnswer, a.class)
	case whole.thought:
		return no(whyThinks)
	case whole.text == "":
		return unknown(whyOdd, outcome.Success)
	}
	inWord, atSpace, ok := cuts(whole.text)
	if !ok {
		return unknown(whyShort, outcome.Success)
	}
	var before said // the white space
	for _, at := range []int{inWord, atSpace} {
		rest, a := asked(whole.text[:at], restTokens)
		switch {
		case a.class == outcome.CallerFault:
			return no(whyRefuses)
		case a.class == outcome.UpstreamFault || a.class == outcome.Opaque: // having answered well without
			return no(whyFails)
		case a.class != outcome.Success:
			return unknown(whyNoAnswer, a.class)
		}
		if why := differs(&whole, &rest, at); why != "" {
			return no(why)
		}
		before = rest
	}
	behind, a := asked(whole.text[:atSpace+1], restTokens)
	if a.class != outcome.Success {
		return unknown(whyNoAnswer, a.class)
	}
	return verdict{Prefill: router.Prefill{Known: true, OK: true, Trims: trims(whole.text[atSpace:], &before, &behind)}, why: whyTested}
}

// read takes the text out of a chat completion.
func read(body []byte) (s said) {
	var a struct {
		Choices []struct {
			Message struct {
				Content          string `json:"content"`
				Reasoning        string `json:"reasoning"`
				ReasoningContent string `json:"reasoning_content"`
			} `json:"message"`
		} `json:"choices"`
		Usage struct {
			Prompt int `json:"prompt_tokens"`
		} `json:"usage"`
	}
	if json.Unmarshal(body, &a) != nil || len(a.Choices) == 0 {
		return s
	}
	m := &a.Choices[0].Message
	s.text, s.prompt = m.Content, a.Usage.Prompt
	s.thought = m.Reasoning != "" || m.ReasoningContent != "" || strings.HasPrefix(strings.TrimSpace(m.Content), "<think")
	return s
}

// cuts finds where a text is cut: inside a word, and before a single space; ok is false where there is no such place.
func cuts(text string) (inWord, atSpace int, ok bool) {
	letter := func(i int) bool { c := text[i] | 0x20; return 'a' <= c && c <= 'z' }
	plain := func(i int) bool { return text[i] > ' ' && text[i] < 0x7f }
	inWord, atSpace = -1, -1
	// From the middle on, and no further than leaves something to be compared.
	for i := len(text) / 3; i < len(text)-leftOver; i++ {
		if inWord < 0 && i >= 2 && letter(i-2) && letter(i-1) && letter(i) && letter(i+1) {
			inWord = i
		}
		if atSpace < 0 && i > 0 && text[i] == ' ' && plain(i-1) && plain(i+1) {
			atSpace = i
		}
	}
	return inWord, atSpace, inWord >= 0 && atSpace >= 0
}

const (
	leftOver = 6 // bytes behind a cut, at least
	enough   = 6 // bytes that agree are no chance
)

// differs says how what a host has made of the first at bytes of its answer is not the rest of it; "" when it is.
func differs(whole, rest *said, at int) string {
	want := whole.text[at:]
	switch {
	case rest.thought:
		return whyThinks
	case agree(want, rest.text) && whole.prompt > 0 && rest.prompt > 0 && rest.prompt <= whole.prompt:
		return whyUnread
	case agree(want, rest.text):
		return ""
	case agree(strings.TrimLeft(want, " "), rest.text):
		return whySpace
	case agree(whole.text, strings.TrimLeft(rest.text, " \n")):
		return whyRestarts
	}
	return whyOther
}

// agree tells whether got begins as want does, or is the beginning of it.
func agree(want, got string) bool {
	n := min(len(want), len(got), enough)
	return n > 1 && want[:n] == got[:n]
}

// trims tells whether white space at the end of an unfinished answer was dropped. want is the answer from the white space on; before
// and behind is what came after cuts before and behind it. In doubt it was.
func trims(want string, before, behind *said) bool {
	if before.prompt > 0 && behind.prompt > before.prompt {
		return false // it was read
	}
	return !agree(want[1:], behind.text)
}
