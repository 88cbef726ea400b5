package fakecloud

import (
	"encoding/json"
	"time"
)

// responseInput is the input of the Responses API: a text, or a list of items of which the messages count.
type responseInput []message

// UnmarshalJSON skips items that are no messages.
func (in *responseInput) UnmarshalJSON(b []byte) error {
	var one string
	if err := json.Unmarshal(b, &one); err == nil {
		*in = responseInput{{"user", partText(one)}}
		return nil
	}
	return json.Unmarshal(b, (*[]message)(in))
}

type responseRequest struct {
	Model           string        `json:"model"`
	Input           responseInput `json:"input"`
	Instructions    string        `json:"instructions"`
	MaxOutputTokens *int          `json:"max_output_tokens"`
	Stream          bool          `json:"stream"`
	Text            *struct {
		Format struct {
			Type   string `json:"type"`
			Schema any    `json:"schema"`
		} `json:"format"`
	} `json:"text"`
}

func (x *exchange) responses() {
	var q responseRequest
	if !x.decode(&q) {
		return
	}
	j, p := x.responseJob(&q)
	if p != nil {
		x.refuse(p)
		return
	}
	x.generate(j, &responseRenderer{
		job: j, id: x.newID("resp_"), item: x.newID("msg_"), created: time.Now().Unix(), limit: q.MaxOutputTokens, instructions: q.Instructions,
	})
}

func (x *exchange) responseJob(q *responseRequest) (*job, *problem) {
	if p := x.model(&q.Model); p != nil {
		return nil, p
	}
	if p := checkLimits(q.MaxOutputTokens, nil, q.Stream, nil); p != nil {
		return nil, p
	}
	if len(q.Input) == 0 {
		return nil, invalid("input", "input: nothing to answer")
	}
	prompt := promptOf(append([]message{{"system", partText(q.Instructions)}}, q.Input...))
	j := &job{model: q.Model, prompt: prompt, promptTokens: CountTokens(prompt), stream: q.Stream}
	w := wish{model: q.Model, prompt: prompt}
	if q.MaxOutputTokens != nil {
		w.limit = *q.MaxOutputTokens
	}
	if q.Text != nil && q.Text.Format.Type == "json_schema" {
		w.json = encode(sample(q.Text.Format.Schema, newOracle(q.Model, prompt)))
	}
	if p := x.check(j.promptTokens, w.limit); p != nil {
		return nil, p
	}
	j.outputs = []output{w.output()}
	return j, nil
}

// part of a message in the Responses API.
type responsePart struct {
	Type        string `json:"type"`
	Text        string `json:"text"`
	Annotations []any  `json:"annotations"`
	Logprobs    []any  `json:"logprobs"`
}

type responseItem struct {
	Type    string         `json:"type"`
	ID      string         `json:"id"`
	Role    string         `json:"role"`
	Status  string         `json:"status"`
	Content []responsePart `json:"content"`
}

type responseUsage struct {
	InputTokens  int `json:"input_tokens"`
	InputDetails struct {
		CachedTokens int `json:"cached_tokens"`
	} `json:"input_tokens_details"`
	OutputTokens  int `json:"output_tokens"`
	OutputDetails struct {
		ReasoningTokens int `json:"reasoning_tokens"`
	} `json:"output_tokens_details"`
	TotalTokens int `json:"total_tokens"`
}

type response struct {
	ID                string         `json:"id"`
	Object            string         `json:"object"`
	CreatedAt         int64          `json:"created_at"`
	Status            string         `json:"status"`
	Error             any            `json:"error"`
	IncompleteDetails any            `json:"incomplete_details"`
	Instructions      *string        `json:"instructions"`
	MaxOutputTokens   *int           `json:"max_output_tokens"`
	Metadata          any            `json:"metadata"`
	Model             string         `json:"model"`
	Output            []responseItem `json:"output"`
	ParallelToolCalls bool           `json:"parallel_tool_calls"`
	PreviousID        any            `json:"previous_response_id"`
	Temperature       float64        `json:"temperature"`
	ToolChoice        string         `json:"tool_choice"`
	Tools             []any          `json:"tools"`
	TopP              float64        `json:"top_p"`
	Truncation        string         `json:"truncation"`
	Usage             *responseUsage `json:"usage"`
}

// responseEvent has the fields of all events; those of others stay out.
type responseEvent struct {
	Type         string        `json:"type"`
	Sequence     int           `json:"sequence_number"`
	Response     *response     `json:"response,omitempty"`
	OutputIndex  *int          `json:"output_index,omitempty"`
	ContentIndex *int          `json:"content_index,omitempty"`
	ItemID       string        `json:"item_id,omitempty"`
	Item         *responseItem `json:"item,omitempty"`
	Part         *responsePart `json:"part,omitempty"`
	Delta        *string       `json:"delta,omitempty"`
	Text         *string       `json:"text,omitempty"`
	Logprobs     *[]any        `json:"logprobs,omitempty"`
}

// responseRenderer speaks the Responses API. Its streams end without [DONE].
type responseRenderer struct {
	job          *job
	id, item     string
	created      int64
	limit        *int
	instructions string
	sequence     int
}

func (r *responseRenderer) response(status string) *response {
	a := &response{
		ID: r.id, Object: "response", CreatedAt: r.created, Status: status, MaxOutputTokens: r.limit, Model: r.job.model,
		Output: []responseItem{}, ParallelToolCalls: true, Temperature: 1, ToolChoice: "auto", Tools: []any{}, TopP: 1, Truncation: "disabled",
	}
	if r.instructions != "" {
		a.Instructions = &r.instructions
	}
	return a
}

func (r *responseRenderer) message(status string, parts ...responsePart) *responseItem {
	if parts == nil {
		parts = []responsePart{}
	}
	return &responseItem{"message", r.item, "assistant", status, parts}
}

func textPart(text string) *responsePart {
	return &responsePart{"output_text", text, []any{}, []any{}}
}

func (r *responseRenderer) finished() *response {
	o := &r.job.outputs[0]
	a := r.response("completed")
	if o.finish == "length" {
		a.Status, a.IncompleteDetails = "incomplete", map[string]string{"reason": "max_output_tokens"}
	}
	a.Output = append(a.Output, *r.message("completed", *textPart(o.text(content))))
	u := r.job.usage()
	a.Usage = &responseUsage{InputTokens: u.PromptTokens, OutputTokens: u.CompletionTokens, TotalTokens: u.TotalTokens}
	a.Usage.InputDetails.CachedTokens = r.job.cached
	return a
}

func (r *responseRenderer) emit(emit emitter, events ...responseEvent) error {
	for _, e := range events {
		e.Sequence = r.sequence
		r.sequence++
		if err := emit(e.Type, encode(e)); err != nil {
			return err
		}
	}
	return nil
}

func (r *responseRenderer) begin(emit emitter) error {
	zero := 0
	return r.emit(
		emit,
		responseEvent{Type: "response.created", Response: r.response("in_progress")},
		responseEvent{Type: "response.in_progress", Response: r.response("in_progress")},
		responseEvent{Type: "response.output_item.added", OutputIndex: &zero, Item: r.message("in_progress")},
		responseEvent{Type: "response.content_part.added", OutputIndex: &zero, ContentIndex: &zero, ItemID: r.item, Part: textPart("")},
	)
}

func (r *responseRenderer) piece(emit emitter, _, i int) error {
	p := r.job.outputs[0].pieces[i]
	if p.part == eos {
		return nil
	}
	zero := 0
	return r.emit(emit, responseEvent{
		Type: "response.output_text.delta", OutputIndex: &zero, ContentIndex: &zero, ItemID: r.item, Delta: &p.text, Logprobs: &[]any{},
	})
}

func (r *responseRenderer) end(emit emitter) error {
	zero, text := 0, r.job.outputs[0].text(content)
	return r.emit(
		emit,
		responseEvent{Type: "response.output_text.done", OutputIndex: &zero, ContentIndex: &zero, ItemID: r.item, Text: &text, Logprobs: &[]any{}},
		responseEvent{Type: "response.content_part.done", OutputIndex: &zero, ContentIndex: &zero, ItemID: r.item, Part: textPart(text)},
		responseEvent{Type: "response.output_item.done", OutputIndex: &zero, Item: r.message("completed", *textPart(text))},
		responseEvent{Type: "response.completed", Response: r.finished()}, // its status tells of an answer cut short
	)
}

func (r *responseRenderer) whole() any { return r.finished() }
