package fakecloud

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// prompts is a prompt, or a list of them, each a text or a list of token numbers.
type prompts []promptText

type promptText struct {
	text string // of numbers their JSON
	ids  []int  // nil for a text
}

// UnmarshalJSON takes each of the forms.
func (p *prompts) UnmarshalJSON(b []byte) error {
	var one string
	if err := json.Unmarshal(b, &one); err == nil {
		*p = prompts{{text: one}}
		return nil
	}
	var texts []string
	if err := json.Unmarshal(b, &texts); err == nil {
		*p = nil
		for _, t := range texts {
			*p = append(*p, promptText{text: t})
		}
		return nil
	}
	var lists [][]int
	if err := json.Unmarshal(b, &lists); err == nil {
		*p = nil
		for _, l := range lists {
			*p = append(*p, promptText{string(encode(l)), l})
		}
		return nil
	}
	var ids []int
	if err := json.Unmarshal(b, &ids); err != nil {
		return err
	}
	*p = prompts{{string(encode(ids)), ids}}
	return nil
}

type completionRequest struct {
	Model         string         `json:"model"`
	Prompt        prompts        `json:"prompt"`
	Stream        bool           `json:"stream"`
	StreamOptions *streamOptions `json:"stream_options"`
	MaxTokens     *int           `json:"max_tokens"`
	N             *int           `json:"n"`
	Logprobs      *int           `json:"logprobs"`
	Echo          bool           `json:"echo"`
	Stop          stringOrList   `json:"stop"`
	IncludeStop   bool           `json:"include_stop_str_in_output"`
	TokenIDs      bool           `json:"return_token_ids"`
}

// answerMark ends the question of a completion's prompt: what is behind it is an answer that was begun elsewhere.
const answerMark = "\nA:"

// begun parts a completion's prompt into question and beginning of the answer. No answer has the mark.
func begun(prompt string) (question, sent string) {
	i := strings.LastIndex(prompt, answerMark)
	if i < 0 {
		return prompt, ""
	}
	i += len(answerMark)
	return prompt[:i], prompt[i:]
}

// defaultCompletion is vLLM's max_tokens for completions.
const defaultCompletion = 16

func (x *exchange) completionJob(q *completionRequest) (*job, *problem) {
	if p := x.model(&q.Model); p != nil {
		return nil, p
	}
	if p := checkLimits(q.MaxTokens, q.N, q.Stream, q.StreamOptions); p != nil {
		return nil, p
	}
	if len(q.Prompt) == 0 {
		return nil, invalid("prompt", "Either prompt or prompt_embeds must be provided and non-empty.")
	}
	limit := defaultCompletion
	if q.MaxTokens != nil {
		limit = *q.MaxTokens
	}
	j := &job{model: q.Model, stream: q.Stream, numbered: q.TokenIDs && !x.h.cfg.NoTokenIDs}
	for i, p := range q.Prompt {
		prompt := p.text
		question, sent := begun(prompt)
		if len(p.ids) > 0 && !x.h.cfg.NoTokenIDs {
			if slices.Max(p.ids) >= wordIDs+2*pieceIDs {
				return nil, invalid("prompt", "Token id %d is out of vocabulary", slices.Max(p.ids))
			}
			if q, s, ok := spelled(p.ids); ok && q != "" { // else they are somebody's example, and no tokens of ours
				question, sent, prompt = q, s, q+s
			}
		}
		if i == 0 {
			j.prompt = prompt
			if j.numbered {
				j.promptIDs = PromptIDs(q.Model, question, sent)
			}
		}
		n, ok := countBegun(q.Model, question, sent)
		if p := x.check(n, limit); p != nil {
			return nil, p
		}
		j.promptTokens += n
		switch {
		case !ok:
			j.badSeam = true
			question, sent = prompt, ""
		case sent != "":
			j.continued = true
		}
		for i := range choices(q.N) {
			w := wish{model: q.Model, prompt: Choice(question, i), limit: limit, stops: q.Stop, keepStop: q.IncludeStop, sent: sent}
			o := w.output()
			if q.Echo {
				o.pieces[0].text = prompt + o.pieces[0].text
			}
			j.outputs = append(j.outputs, o)
		}
	}
	return j, nil
}

func (x *exchange) completions() {
	var q completionRequest
	if !x.decode(&q) {
		return
	}
	j, p := x.completionJob(&q)
	if p != nil {
		x.refuse(p)
		return
	}
	r := &completionRenderer{job: j, id: x.newID("cmpl-"), created: time.Now().Unix(), plan: x.plan, top: -1}
	if q.StreamOptions != nil {
		r.options = *q.StreamOptions
	}
	if q.Logprobs != nil {
		r.top = *q.Logprobs
	}
	x.generate(j, r)
}

type completionChoice struct {
	Index        int             `json:"index"`
	Text         string          `json:"text"`
	Logprobs     *textLogprobs   `json:"logprobs"`
	FinishReason *string         `json:"finish_reason"`
	StopReason   json.RawMessage `json:"stop_reason"`
	PromptIDs    json.RawMessage `json:"prompt_token_ids,omitempty"` // of the first chunk
	TokenIDs     json.RawMessage `json:"token_ids,omitempty"`
}

type textLogprobs struct {
	TextOffset    []int                `json:"text_offset"`
	TokenLogprobs []float64            `json:"token_logprobs"`
	Tokens        []string             `json:"tokens"`
	TopLogprobs   []map[string]float64 `json:"top_logprobs"`
}

func (l *textLogprobs) add(offset int, token string, top int) {
	p := probable(token, top)
	l.TextOffset = append(l.TextOffset, offset)
	l.TokenLogprobs = append(l.TokenLogprobs, p.Logprob)
	l.Tokens = append(l.Tokens, token)
	best := map[string]float64{}
	for _, t := range p.Top {
		best[t.Token] = t.Logprob
	}
	l.TopLogprobs = append(l.TopLogprobs, best)
}

type completion struct {
	ID      string             `json:"id"`
	Object  string             `json:"object"`
	Created int64              `json:"created"`
	Model   string             `json:"model"`
	Choices []completionChoice `json:"choices"`
	Usage   *usage             `json:"usage,omitempty"`
}

type completionRenderer struct {
	job     *job
	id      string
	created int64
	options streamOptions
	plan    *plan
	top     int // logprobs asked for, -1 for none
	offsets []int
}

func (r *completionRenderer) answer(cs []completionChoice) completion {
	return completion{r.id, "text_completion", r.created, r.job.model, cs, nil}
}

func (r *completionRenderer) begin(emitter) error {
	r.offsets = make([]int, len(r.job.outputs))
	return nil
}

func (r *completionRenderer) piece(emit emitter, choice, i int) error {
	o := &r.job.outputs[choice]
	p := o.pieces[i]
	c := completionChoice{Index: choice, Text: p.text, StopReason: null()}
	if r.top >= 0 && p.part != eos {
		c.Logprobs = new(textLogprobs)
		c.Logprobs.add(r.offsets[choice], p.text, r.top)
	}
	if r.job.numbered {
		c.TokenIDs = o.ids(i)
		if c.PromptIDs = null(); i == 0 {
			c.PromptIDs = encode(r.job.promptIDs)
		}
	}
	r.offsets[choice] += len(p.text)
	k := r.answer([]completionChoice{c})
	if r.options.ContinuousUsage {
		out := o.tokens(i + 1)
		k.Usage = &usage{PromptTokens: r.job.promptTokens, CompletionTokens: out, TotalTokens: r.job.promptTokens + out}
	}
	if i == len(o.pieces)-1 {
		k.Choices[0].FinishReason = &o.finish
		k.Choices[0].StopReason = o.stopReason()
		if r.options.IncludeUsage && r.plan.has(UsageInLast) {
			k.Usage = r.job.usage()
		}
	}
	return emit("", encode(k))
}

func (r *completionRenderer) end(emit emitter) error {
	if r.options.IncludeUsage && !r.plan.has(UsageInLast) {
		k := r.answer([]completionChoice{})
		k.Usage = r.job.usage()
		if err := emit("", encode(k)); err != nil {
			return err
		}
	}
	return done(r.plan, emit)
}

func (r *completionRenderer) whole() any {
	var cs []completionChoice
	for i := range r.job.outputs {
		o := &r.job.outputs[i]
		c := completionChoice{Index: i, Text: o.text(content), FinishReason: &o.finish, StopReason: o.stopReason()}
		if r.job.numbered {
			c.PromptIDs, c.TokenIDs = encode(r.job.promptIDs), encode(o.allIDs())
		}
		if r.top >= 0 {
			c.Logprobs = new(textLogprobs)
			at := 0
			for _, p := range o.pieces[:o.tokens(len(o.pieces))] {
				c.Logprobs.add(at, p.text, r.top)
				at += len(p.text)
			}
		}
		cs = append(cs, c)
	}
	a := r.answer(cs)
	a.Usage = r.job.usage()
	return a
}
