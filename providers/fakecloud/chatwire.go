package fakecloud

import "encoding/json"

type usage struct {
	PromptTokens     int            `json:"prompt_tokens"`
	TotalTokens      int            `json:"total_tokens"`
	CompletionTokens int            `json:"completion_tokens"`
	PromptDetails    *promptDetails `json:"prompt_tokens_details,omitempty"`
}

type promptDetails struct {
	CachedTokens int `json:"cached_tokens"`
}

// usage counts a job; cached tokens are named when there are any, as with vLLM's --enable-prompt-tokens-details.
func (j *job) usage() *usage {
	out := j.made(j.steps())
	u := &usage{PromptTokens: j.promptTokens, CompletionTokens: out, TotalTokens: j.promptTokens + out}
	if j.cached > 0 {
		u.PromptDetails = &promptDetails{j.cached}
	}
	return u
}

type toolCall struct {
	Index    *int         `json:"index,omitempty"` // in streams only
	ID       string       `json:"id,omitempty"`
	Type     string       `json:"type,omitempty"`
	Function toolFunction `json:"function"`
}

type toolFunction struct {
	Name      string `json:"name,omitempty"`
	Arguments string `json:"arguments"`
}

type delta struct {
	Role      string     `json:"role,omitempty"`
	Content   *string    `json:"content,omitempty"`
	Reasoning *string    `json:"reasoning_content,omitempty"`
	ToolCalls []toolCall `json:"tool_calls,omitempty"`
}

type chunkChoice struct {
	Index        int             `json:"index"`
	Delta        delta           `json:"delta"`
	Logprobs     *logprobs       `json:"logprobs"`
	FinishReason *string         `json:"finish_reason"`
	StopReason   json.RawMessage `json:"stop_reason,omitempty"` // of the last chunk, null in most
	TokenIDs     json.RawMessage `json:"token_ids,omitempty"`   // null in recent versions
}

type chatChunk struct {
	ID      string        `json:"id"`
	Object  string        `json:"object"`
	Created int64         `json:"created"`
	Model   string        `json:"model"`
	Choices []chunkChoice `json:"choices"`
	Usage   *usage        `json:"usage,omitempty"`

	PromptIDs json.RawMessage `json:"prompt_token_ids,omitempty"` // of the first chunk
}

type logprobs struct {
	Content []tokenLogprob `json:"content"`
}

type tokenLogprob struct {
	Token   string         `json:"token"`
	Logprob float64        `json:"logprob"`
	Bytes   []int          `json:"bytes"`
	Top     []tokenLogprob `json:"top_logprobs,omitempty"`
}

// probable is what the model thought of a token and of the runners-up.
func probable(token string, top int) tokenLogprob {
	one := func(t string, p float64) tokenLogprob {
		l := tokenLogprob{Token: t, Logprob: p, Bytes: make([]int, len(t))}
		for i := range len(t) {
			l.Bytes[i] = int(t[i])
		}
		return l
	}
	h := hash(token)
	p := -float64(h%1000) / 500 // 0 to -2
	l := one(token, p)
	for i := range top {
		if i == 0 {
			l.Top = append(l.Top, one(token, p))
			continue
		}
		l.Top = append(l.Top, one(words[(h+uint64(i))%uint64(len(words))], p-float64(i)))
	}
	return l
}

// null is a JSON null that is there.
func null() json.RawMessage { return json.RawMessage("null") }

func (o *output) stopReason() json.RawMessage {
	if o.stop == "" {
		return null()
	}
	return encode(o.stop)
}

type chatRenderer struct {
	job      *job
	id       string
	created  int64
	options  streamOptions
	logprobs bool
	top      int
	plan     *plan
	legacy   bool
}

func (r *chatRenderer) chunk(c ...chunkChoice) chatChunk {
	if c == nil {
		c = []chunkChoice{}
	}
	return chatChunk{ID: r.id, Object: "chat.completion.chunk", Created: r.created, Model: r.job.model, Choices: c}
}

// running is usage after n pieces of a choice, when the request asked for it in every chunk.
func (r *chatRenderer) running(choice, n int) *usage {
	if !r.options.ContinuousUsage {
		return nil
	}
	out := r.job.outputs[choice].tokens(n)
	return &usage{PromptTokens: r.job.promptTokens, CompletionTokens: out, TotalTokens: r.job.promptTokens + out}
}

func (r *chatRenderer) begin(emit emitter) error {
	for c := range r.job.outputs {
		k := r.chunk(chunkChoice{Index: c, Delta: delta{Role: "assistant", Content: new("")}})
		if k.Usage = r.running(c, 0); r.job.numbered {
			k.PromptIDs = encode(r.job.promptIDs)
		}
		if err := emit("", encode(k)); err != nil {
			return err
		}
	}
	return nil
}

func (r *chatRenderer) piece(emit emitter, choice, i int) error {
	o := &r.job.outputs[choice]
	p := o.pieces[i]
	c := chunkChoice{Index: choice}
	switch {
	case r.job.numbered:
		c.TokenIDs = o.ids(i)
	case !r.legacy:
		c.TokenIDs = null()
	}
	switch p.part {
	case content, eos:
		c.Delta.Content = &p.text
	case reasoning:
		c.Delta.Reasoning = &p.text
	case toolHead:
		c.Delta.ToolCalls = []toolCall{{Index: new(0), ID: o.call, Type: "function", Function: toolFunction{Name: p.text}}}
	case toolArgs:
		c.Delta.ToolCalls = []toolCall{{Index: new(0), Function: toolFunction{Arguments: p.text}}}
	}
	if r.logprobs && p.part != eos {
		c.Logprobs = &logprobs{[]tokenLogprob{probable(p.text, r.top)}}
	}
	k := r.chunk(c)
	k.Usage = r.running(choice, i+1)
	if i == len(o.pieces)-1 {
		k.Choices[0].FinishReason = &o.finish
		k.Choices[0].StopReason = o.stopReason()
		if r.options.IncludeUsage && r.plan.has(UsageInLast) {
			k.Usage = r.job.usage()
		}
	}
	return emit("", encode(k))
}

func (r *chatRenderer) end(emit emitter) error {
	if r.options.IncludeUsage && !r.plan.has(UsageInLast) {
		k := r.chunk()
		k.Usage = r.job.usage()
		if err := emit("", encode(k)); err != nil {
			return err
		}
	}
	return done(r.plan, emit)
}

// done is the mark at the end of OpenAI's streams.
func done(p *plan, emit emitter) error {
	if p.has(NoDone) {
		return nil
	}
	return emit("", []byte("[DONE]"))
}

type chatMessage struct {
	Role        string     `json:"role"`
	Content     *string    `json:"content"`
	Refusal     *string    `json:"refusal"`
	Annotations any        `json:"annotations"`
	Audio       any        `json:"audio"`
	Function    any        `json:"function_call"`
	ToolCalls   []toolCall `json:"tool_calls,omitempty"`
	Reasoning   *string    `json:"reasoning_content"`
}

type chatChoice struct {
	Index        int             `json:"index"`
	Message      chatMessage     `json:"message"`
	Logprobs     *logprobs       `json:"logprobs"`
	FinishReason string          `json:"finish_reason"`
	StopReason   json.RawMessage `json:"stop_reason"`
	TokenIDs     any             `json:"token_ids"`
}

type chatCompletion struct {
	ID          string       `json:"id"`
	Object      string       `json:"object"`
	Created     int64        `json:"created"`
	Model       string       `json:"model"`
	Choices     []chatChoice `json:"choices"`
	ServiceTier any          `json:"service_tier"`
	Fingerprint any          `json:"system_fingerprint"`
	Usage       *usage       `json:"usage"`
	PromptProbs any          `json:"prompt_logprobs"`
	PromptIDs   any          `json:"prompt_token_ids"`
	KVTransfer  any          `json:"kv_transfer_params"`
}

func (r *chatRenderer) whole() any {
	a := chatCompletion{ID: r.id, Object: "chat.completion", Created: r.created, Model: r.job.model, Usage: r.job.usage()}
	for i := range r.job.outputs {
		o := &r.job.outputs[i]
		c := chatChoice{Index: i, FinishReason: o.finish, StopReason: o.stopReason(), Message: chatMessage{Role: "assistant"}}
		if text := o.text(content); text != "" || o.call == "" && o.text(reasoning) == "" {
			c.Message.Content = &text
		}
		if text := o.text(reasoning); text != "" {
			c.Message.Reasoning = &text
		}
		if r.job.numbered {
			a.PromptIDs, c.TokenIDs = r.job.promptIDs, o.allIDs()
		}
		if o.call != "" {
			c.Message.ToolCalls = []toolCall{{ID: o.call, Type: "function", Function: toolFunction{o.text(toolHead), o.text(toolArgs)}}}
		}
		if r.logprobs {
			c.Logprobs = &logprobs{Content: []tokenLogprob{}}
			for _, p := range o.pieces[:o.tokens(len(o.pieces))] {
				c.Logprobs.Content = append(c.Logprobs.Content, probable(p.text, r.top))
			}
		}
		a.Choices = append(a.Choices, c)
	}
	return a
}
