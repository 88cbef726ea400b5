package fakecloud_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/ssestream"
	"github.com/openai/openai-go/v3/responses"
	"github.com/openai/openai-go/v3/shared"

	"headrace/providers/fakecloud"
)

// The official Go SDK judges the wire shapes.

func sdk(h *fakecloud.Host, key string) openai.Client {
	return openai.NewClient(option.WithBaseURL(h.URL()+"/v1/"), option.WithAPIKey(key), option.WithMaxRetries(0))
}

func params(tokens int64) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model: model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(prompt)}, MaxTokens: openai.Int(tokens),
	}
}

func all[T any](t *testing.T, s *ssestream.Stream[T]) (items []T) {
	t.Helper()
	for s.Next() {
		items = append(items, s.Current())
	}
	if err := errors.Join(s.Err(), s.Close()); err != nil {
		t.Fatal(err)
	}
	return items
}

func TestSDKChat(t *testing.T) {
	h := start(t, fakecloud.HostConfig{APIKey: "k"})
	p := params(50)
	p.Logprobs, p.TopLogprobs = openai.Bool(true), openai.Int(3)
	client := sdk(h, "k")
	a, err := client.Chat.Completions.New(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	want := fakecloud.Answer(model, prompt, 50)
	c := a.Choices[0]
	if c.Message.Content != want || c.FinishReason != "length" || a.Usage.CompletionTokens != 50 {
		t.Errorf("answer %s", a.RawJSON())
	}
	var joined strings.Builder
	for _, l := range c.Logprobs.Content {
		joined.WriteString(l.Token)
		if len(l.TopLogprobs) != 3 || l.Logprob > 0 || len(l.Bytes) != len(l.Token) {
			t.Errorf("logprob %s", l.RawJSON())
		}
	}
	if joined.String() != want {
		t.Errorf("tokens of the logprobs: %q", joined.String())
	}

	stranger := sdk(h, "wrong")
	_, err = stranger.Chat.Completions.New(t.Context(), p)
	if err == nil { // of no type that tells more: vLLM's body for this is not OpenAI's
		t.Error("the wrong key was taken")
	}
	p.Model = "none"
	_, err = client.Chat.Completions.New(t.Context(), p)
	if e, ok := errors.AsType[*openai.Error](err); !ok || e.StatusCode != 404 || e.Type != "NotFoundError" || !strings.Contains(e.Message, "`none`") {
		t.Errorf("unknown model: %v", err)
	}
}

func TestSDKStream(t *testing.T) {
	for _, chunking := range []fakecloud.Chunking{{}, {Ragged: true}, {SplitChars: true}, {Batched: true}, {Batched: true, Ragged: true, SplitChars: true}} {
		h := start(t, fakecloud.HostConfig{Chunking: chunking})
		client := sdk(h, "any")
		p := params(300)
		p.StreamOptions.IncludeUsage = openai.Bool(true)
		var acc openai.ChatCompletionAccumulator
		for _, c := range all(t, client.Chat.Completions.NewStreaming(t.Context(), p)) {
			if !acc.AddChunk(c) {
				t.Fatalf("a chunk that does not fit: %s", c.RawJSON())
			}
		}
		if acc.Choices[0].Message.Content != fakecloud.Answer(model, prompt, 300) || acc.Usage.CompletionTokens != 300 {
			t.Errorf("%+v: %q", chunking, acc.Choices[0].Message.Content)
		}
	}
}

func TestSDKTools(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	client := sdk(h, "any")
	tool := func(name string) openai.ChatCompletionToolUnionParam {
		return openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{Name: name, Parameters: shared.FunctionParameters{
			"type": "object", "properties": map[string]any{"city": map[string]any{"type": "string"}}, "required": []string{"city"},
		}})
	}
	p := params(60)
	p.Tools = []openai.ChatCompletionToolUnionParam{tool("first"), tool("second")}
	for name, tc := range map[string]struct {
		set          func(*openai.ChatCompletionNewParams)
		call, finish string
	}{
		"auto, not wanted": {func(*openai.ChatCompletionNewParams) {}, "", "length"},
		"auto, wanted": {func(p *openai.ChatCompletionNewParams) {
			p.Messages = []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Use the tool.")}
		}, "first", "tool_calls"},
		"required": {func(p *openai.ChatCompletionNewParams) { p.ToolChoice.OfAuto = openai.String("required") }, "first", "tool_calls"},
		"named": {func(p *openai.ChatCompletionNewParams) {
			p.ToolChoice.OfFunctionToolChoice = &openai.ChatCompletionNamedToolChoiceParam{Function: openai.ChatCompletionNamedToolChoiceFunctionParam{Name: "second"}}
		}, "second", "stop"},
		"none": {func(p *openai.ChatCompletionNewParams) { p.ToolChoice.OfAuto = openai.String("none") }, "", "length"},
	} {
		t.Run(name, func(t *testing.T) {
			p := p
			tc.set(&p)
			a, err := client.Chat.Completions.New(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			var acc openai.ChatCompletionAccumulator
			for i, c := range all(t, client.Chat.Completions.NewStreaming(t.Context(), p)) {
				if !acc.AddChunk(c) {
					t.Fatalf("a chunk that does not fit: %s", c.RawJSON())
				}
				calls := c.Choices[0].Delta.ToolCalls
				if tc.call != "" && i == 1 && (len(calls) != 1 || calls[0].ID == "" || calls[0].Function.Name != tc.call || calls[0].Function.Arguments != "") {
					t.Errorf("the call does not begin with id and name alone: %s", c.RawJSON())
				}
				if i > 1 && len(calls) > 0 && (calls[0].ID != "" || calls[0].Function.Name != "") {
					t.Errorf("id or name again: %s", c.RawJSON())
				}
			}
			for _, c := range []openai.ChatCompletionChoice{a.Choices[0], acc.Choices[0]} {
				if c.FinishReason != tc.finish || (len(c.Message.ToolCalls) == 1) != (tc.call != "") {
					t.Fatalf("finish %q, %d calls", c.FinishReason, len(c.Message.ToolCalls))
				}
				if tc.call == "" {
					continue
				}
				f := c.Message.ToolCalls[0].Function
				var args struct{ City string }
				if err := json.Unmarshal([]byte(f.Arguments), &args); err != nil || args.City == "" || f.Name != tc.call {
					t.Errorf("call of %q with %q: %v", f.Name, f.Arguments, err)
				}
			}
		})
	}
}

func TestSDKEmbeddings(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	client := sdk(h, "any")
	a, err := client.Embeddings.New(t.Context(), openai.EmbeddingNewParams{
		Model: model, Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"one", "two"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, in := range []string{"one", "two"} {
		for k, x := range fakecloud.Vector(model, in, fakecloud.DefaultDimensions) {
			if got := float32(a.Data[i].Embedding[k]); got != x {
				t.Fatalf("vector %d, element %d: %v, want %v", i, k, got, x)
			}
		}
	}
}

func TestSDKResponses(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	client := sdk(h, "any")
	p := responses.ResponseNewParams{Model: model, Input: responses.ResponseNewParamsInputUnion{OfString: openai.String(prompt)}, MaxOutputTokens: openai.Int(30)}
	want := fakecloud.Answer(model, prompt, 30)
	a, err := client.Responses.New(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if a.OutputText() != want || a.Usage.OutputTokens != 30 || a.Status != "incomplete" || a.IncompleteDetails.Reason != "max_output_tokens" {
		t.Errorf("answer %s", a.RawJSON())
	}
	var text strings.Builder
	var types []string
	events := all(t, client.Responses.NewStreaming(t.Context(), p))
	for _, e := range events {
		types = append(types, e.Type)
		if e.Type == "response.output_text.delta" {
			text.WriteString(e.Delta)
		}
	}
	last := events[len(events)-1]
	if text.String() != want || !slices.Contains(types, "response.created") || last.Type != "response.completed" || last.Response.OutputText() != want || last.Response.Usage.OutputTokens != 30 {
		t.Errorf("events %v, text %q", types, text.String())
	}
}

func TestSDKErrorInsideAStream(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	client := sdk(h, "any")
	if err := h.SetFaults(fakecloud.Fault{Kind: fakecloud.ErrorEvent, After: 5}); err != nil {
		t.Fatal(err)
	}
	s := client.Chat.Completions.NewStreaming(t.Context(), params(50))
	n := 0
	for s.Next() {
		n++
	}
	if err := s.Err(); err == nil || n != 6 {
		t.Errorf("%d chunks, then %v; want the role, five tokens and an error", n, err)
	}
}
