package fakecloud

import "net/http"

type messagesRequest struct {
	Model         string       `json:"model"`
	Messages      []message    `json:"messages"`
	System        partText     `json:"system"`
	MaxTokens     *int         `json:"max_tokens"`
	StopSequences stringOrList `json:"stop_sequences"`
	Stream        bool         `json:"stream"`
}

type anthropicError struct {
	Type  string `json:"type"`
	Error struct {
		Type    string `json:"type"`
		Message string `json:"message"`
	} `json:"error"`
}

// messages is Anthropic's API as vLLM serves it.
func (x *exchange) messages() {
	var q messagesRequest
	if !x.decode(&q) {
		return
	}
	j, p := x.messagesJob(&q)
	if p != nil {
		x.h.books.update(func(s *Stats) { s.Refusals++ })
		e := anthropicError{Type: "error"}
		e.Error.Type, e.Error.Message = "invalid_request_error", p.message
		if p.status == http.StatusNotFound {
			e.Error.Type = "not_found_error"
		}
		x.answer(p.status, "application/json", encode(e))
		return
	}
	x.generate(j, &messagesRenderer{job: j, id: x.newID("chatcmpl-")})
}

func (x *exchange) messagesJob(q *messagesRequest) (*job, *problem) {
	if p := x.model(&q.Model); p != nil {
		return nil, p
	}
	switch {
	case q.MaxTokens == nil:
		return nil, invalid("max_tokens", "max_tokens: field required")
	case len(q.Messages) == 0:
		return nil, invalid("messages", "messages: at least one message is needed")
	}
	if p := checkLimits(q.MaxTokens, nil, q.Stream, nil); p != nil {
		return nil, p
	}
	prompt := promptOf(append([]message{{"system", q.System}}, q.Messages...))
	j := &job{model: q.Model, prompt: prompt, promptTokens: CountTokens(prompt), stream: q.Stream}
	if p := x.check(j.promptTokens, *q.MaxTokens); p != nil {
		return nil, p
	}
	w := wish{model: q.Model, prompt: prompt, limit: *q.MaxTokens, stops: q.StopSequences}
	j.outputs = []output{w.output()}
	return j, nil
}

type textBlock struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

type messagesUsage struct {
	InputTokens  int `json:"input_tokens"`
	OutputTokens int `json:"output_tokens"`
}

type messagesAnswer struct {
	ID           string        `json:"id"`
	Type         string        `json:"type"`
	Role         string        `json:"role"`
	Content      []textBlock   `json:"content"`
	Model        string        `json:"model"`
	StopReason   *string       `json:"stop_reason"`
	StopSequence *string       `json:"stop_sequence"`
	Usage        messagesUsage `json:"usage"`
}

type messagesRenderer struct {
	job *job
	id  string
}

func (r *messagesRenderer) answer() messagesAnswer {
	return messagesAnswer{
		ID: r.id, Type: "message", Role: "assistant", Content: []textBlock{}, Model: r.job.model,
		Usage: messagesUsage{InputTokens: r.job.promptTokens},
	}
}

func (r *messagesRenderer) stop() (reason string, sequence *string) {
	switch o := &r.job.outputs[0]; {
	case o.stop != "":
		return "stop_sequence", &o.stop
	case o.finish == "length":
		return "max_tokens", nil
	}
	return "end_turn", nil
}

func (r *messagesRenderer) begin(emit emitter) error {
	if err := emit("message_start", encode(struct {
		Type    string         `json:"type"`
		Message messagesAnswer `json:"message"`
	}{"message_start", r.answer()})); err != nil {
		return err
	}
	return emit("content_block_start", encode(struct {
		Type  string    `json:"type"`
		Index int       `json:"index"`
		Block textBlock `json:"content_block"`
	}{"content_block_start", 0, textBlock{"text", ""}}))
}

func (r *messagesRenderer) piece(emit emitter, _, i int) error {
	p := r.job.outputs[0].pieces[i]
	if p.part == eos {
		return nil
	}
	return emit("content_block_delta", encode(struct {
		Type  string    `json:"type"`
		Index int       `json:"index"`
		Delta textBlock `json:"delta"`
	}{"content_block_delta", 0, textBlock{"text_delta", p.text}}))
}

func (r *messagesRenderer) end(emit emitter) error {
	if err := emit("content_block_stop", []byte(`{"type":"content_block_stop","index":0}`)); err != nil {
		return err
	}
	type stopDelta struct {
		StopReason   string  `json:"stop_reason"`
		StopSequence *string `json:"stop_sequence"`
	}
	reason, sequence := r.stop()
	if err := emit("message_delta", encode(struct {
		Type  string        `json:"type"`
		Delta stopDelta     `json:"delta"`
		Usage messagesUsage `json:"usage"`
	}{"message_delta", stopDelta{reason, sequence}, messagesUsage{r.job.promptTokens, r.job.made(r.job.steps())}})); err != nil {
		return err
	}
	return emit("message_stop", []byte(`{"type":"message_stop"}`))
}

func (r *messagesRenderer) whole() any {
	a := r.answer()
	reason, sequence := r.stop()
	a.Content = append(a.Content, textBlock{"text", r.job.outputs[0].text(content)})
	a.StopReason, a.StopSequence = &reason, sequence
	a.Usage.OutputTokens = r.job.made(r.job.steps())
	return a
}
