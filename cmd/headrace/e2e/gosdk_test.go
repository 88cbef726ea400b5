package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"
	"github.com/openai/openai-go/v3/packages/ssestream"
	"github.com/openai/openai-go/v3/shared"
	"golang.org/x/sync/errgroup"
)

// goSDK runs the checks of openai-go. The scripts for Node and Python have checks of the same names.
type goSDK struct {
	plan   plan
	client openai.Client
}

func newGoSDK(p plan) goSDK {
	return goSDK{p, openai.NewClient(option.WithBaseURL(p.BaseURL), option.WithAPIKey(p.APIKey), option.WithMaxRetries(0))}
}

// checks lists what every SDK is put through, in the order of the scripts.
func (s goSDK) checks() []check {
	return []check{
		{"chat", s.chat},
		{"chat_n", s.chatN},
		{"chat_logprobs", s.chatLogprobs},
		{"chat_structured", s.chatStructured},
		{"stream", s.stream},
		{"stream_usage", s.streamUsage},
		{"stream_continued", s.streamContinued},
		{"stream_tools", s.streamTools},
		{"stream_emoji", s.streamEmoji},
		{"streams_50", s.streams50},
		{"stream_abort", s.streamAbort},
		{"big_prompt", s.bigPrompt},
		{"completions", s.completions},
		{"completions_stream", s.completionsStream},
		{"embeddings", s.embeddings},
		{"responses", s.responses},
		{"responses_stream", s.responsesStream},
		{"transcription", s.transcription},
		{"speech", s.speech},
		{"image", s.image},
		{"moderation", s.moderation},
		{"models", s.models},
		{"error_bad_request", func(t *testing.T) { s.refused(t, s.plan.TooLong) }},
		{"error_not_found", s.errorNotFound},
		{"error_host_key_refused", func(t *testing.T) { s.refused(t, s.plan.Locked) }},
		{"error_rate_limit", s.errorRateLimit},
		{"error_upstream", func(t *testing.T) { s.refused(t, s.plan.Broken) }},
		{"error_unreachable", func(t *testing.T) { s.refused(t, s.plan.Down) }},
		{"error_stream_refused", s.errorStreamRefused},
		{"error_stream_cut", s.errorStreamCut},
	}
}

type check struct {
	name string
	run  func(t *testing.T)
}

func ask(q question) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:     q.Model,
		Messages:  []openai.ChatCompletionMessageParamUnion{openai.UserMessage(q.prompt())},
		MaxTokens: openai.Int(q.MaxTokens),
	}
}

func (s goSDK) answer(t *testing.T, params openai.ChatCompletionNewParams) *openai.ChatCompletion {
	t.Helper()
	answer, err := s.client.Chat.Completions.New(t.Context(), params)
	if err != nil {
		t.Fatal(explain(err))
	}
	return answer
}

// explain shows what the SDK's short error text leaves out.
func explain(err error) string {
	if e, ok := errors.AsType[*openai.Error](err); ok {
		return err.Error() + ": " + e.RawJSON()
	}
	return err.Error()
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// first returns the first of what must not be empty.
func first[T any](t *testing.T, all []T) T {
	t.Helper()
	if len(all) == 0 {
		t.Fatalf("no %T where one is due", *new(T))
	}
	return all[0]
}

// drain reads a stream to its end.
func drain[T any](t *testing.T, s *ssestream.Stream[T]) []T {
	t.Helper()
	all, err := collect(s)
	if err != nil {
		t.Fatal(explain(err))
	}
	return all
}

func collect[T any](s *ssestream.Stream[T]) (all []T, err error) {
	for s.Next() {
		all = append(all, s.Current())
	}
	return all, errors.Join(s.Err(), s.Close())
}

func textOf(chunks []openai.ChatCompletionChunk) string {
	var b strings.Builder
	for _, c := range chunks {
		if len(c.Choices) > 0 {
			b.WriteString(c.Choices[0].Delta.Content)
		}
	}
	return b.String()
}

func (s goSDK) chat(t *testing.T) {
	q := s.plan.Chat
	answer := s.answer(t, ask(q))
	choice := first(t, answer.Choices)
	equal(t, "content", choice.Message.Content, q.Text)
	equal(t, "finish_reason", choice.FinishReason, "length")
	equal(t, "completion_tokens", answer.Usage.CompletionTokens, q.MaxTokens)
	equal(t, "total_tokens", answer.Usage.TotalTokens, answer.Usage.PromptTokens+q.MaxTokens)
}

func (s goSDK) chatN(t *testing.T) {
	params := ask(s.plan.Chat)
	params.N = openai.Int(3)
	answer := s.answer(t, params)
	if len(answer.Choices) != 3 {
		t.Fatalf("%d choices, want 3", len(answer.Choices))
	}
	for i, c := range answer.Choices {
		equal(t, "index", c.Index, int64(i))
		equal(t, "content", c.Message.Content, s.plan.Choices[i])
	}
}

func (s goSDK) chatLogprobs(t *testing.T) {
	q := s.plan.Chat
	params := ask(q)
	params.Logprobs, params.TopLogprobs = openai.Bool(true), openai.Int(2)
	var joined strings.Builder
	content := first(t, s.answer(t, params).Choices).Logprobs.Content
	for _, c := range content {
		joined.WriteString(c.Token)
		if c.Logprob > 0 || len(c.TopLogprobs) != 2 {
			t.Errorf("token %q: logprob %v, %d top_logprobs", c.Token, c.Logprob, len(c.TopLogprobs))
		}
	}
	equal(t, "tokens", int64(len(content)), q.MaxTokens)
	equal(t, "tokens joined", joined.String(), q.Text)
}

func (s goSDK) chatStructured(t *testing.T) {
	params := ask(s.plan.Chat)
	params.MaxTokens = param.Opt[int64]{} // the whole object, however long
	params.ResponseFormat.OfJSONSchema = &shared.ResponseFormatJSONSchemaParam{
		JSONSchema: shared.ResponseFormatJSONSchemaJSONSchemaParam{Name: "person", Strict: openai.Bool(true), Schema: map[string]any{
			"type": "object",
			"properties": map[string]any{
				"name": map[string]any{"type": "string"},
				"age":  map[string]any{"type": "integer"},
				"tags": map[string]any{"type": "array", "items": map[string]any{"type": "string"}},
			},
			"required":             []string{"name", "age", "tags"},
			"additionalProperties": false,
		}},
	}
	var person struct {
		Name *string  `json:"name"`
		Age  *int     `json:"age"`
		Tags []string `json:"tags"`
	}
	content := first(t, s.answer(t, params).Choices).Message.Content
	dec := json.NewDecoder(strings.NewReader(content))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&person); err != nil || person.Name == nil || person.Age == nil || person.Tags == nil {
		t.Errorf("content %q does not follow the schema: %v", content, err)
	}
}

func (s goSDK) stream(t *testing.T) {
	q := s.plan.Chat
	chunks := drain(t, s.client.Chat.Completions.NewStreaming(t.Context(), ask(q)))
	equal(t, "text", textOf(chunks), q.Text)
	var finish []string
	for _, c := range chunks {
		if c.JSON.Usage.Valid() {
			t.Errorf("usage though nobody asked for it: %s", c.RawJSON())
		}
		if len(c.Choices) == 0 {
			t.Errorf("a chunk without choices: %s", c.RawJSON())
		} else if c.Choices[0].FinishReason != "" {
			finish = append(finish, c.Choices[0].FinishReason)
		}
	}
	if !slices.Equal(finish, []string{"length"}) {
		t.Errorf("finish reasons %q, want length once", finish)
	}
}

func (s goSDK) streamUsage(t *testing.T) {
	q := s.plan.Chat
	params := ask(q)
	params.StreamOptions.IncludeUsage = openai.Bool(true)
	chunks := drain(t, s.client.Chat.Completions.NewStreaming(t.Context(), params))
	equal(t, "text", textOf(chunks), q.Text)
	first(t, chunks)
	for i, c := range chunks {
		equal(t, "usage in chunk "+strconv.Itoa(i), c.JSON.Usage.Valid(), i == len(chunks)-1)
	}
	last := chunks[len(chunks)-1]
	equal(t, "choices of the last chunk", len(last.Choices), 0)
	equal(t, "completion_tokens", last.Usage.CompletionTokens, q.MaxTokens)
}

// streamContinued reads the answer of a host that is lost in the middle of it.
func (s goSDK) streamContinued(t *testing.T) {
	q := s.plan.Mortal
	params := ask(q)
	params.StreamOptions.IncludeUsage = openai.Bool(true)
	chunks := drain(t, s.client.Chat.Completions.NewStreaming(t.Context(), params))
	equal(t, "text", textOf(chunks), q.Text)
	var finishes []string
	roles := 0
	for _, c := range chunks {
		equal(t, "id", c.ID, chunks[0].ID)
		for _, choice := range c.Choices {
			if choice.FinishReason != "" {
				finishes = append(finishes, choice.FinishReason)
			}
			if choice.Delta.Role != "" {
				roles++
			}
		}
	}
	equal(t, "finish reasons", strings.Join(finishes, " "), "length")
	equal(t, "roles", roles, 1)
	equal(t, "completion_tokens", chunks[len(chunks)-1].Usage.CompletionTokens, q.MaxTokens)
}

func (s goSDK) streamTools(t *testing.T) {
	params := ask(s.plan.Chat)
	params.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{
		Name: "get_weather",
		Parameters: shared.FunctionParameters{
			"type": "object", "properties": map[string]any{"city": map[string]any{"type": "string"}}, "required": []string{"city"},
		},
	})}
	params.ToolChoice.OfAuto = openai.String("required")
	var acc openai.ChatCompletionAccumulator
	for _, c := range drain(t, s.client.Chat.Completions.NewStreaming(t.Context(), params)) {
		if !acc.AddChunk(c) {
			t.Fatalf("a chunk that does not fit: %s", c.RawJSON())
		}
	}
	choice := first(t, acc.Choices)
	equal(t, "finish_reason", choice.FinishReason, "tool_calls")
	calls := choice.Message.ToolCalls
	if len(calls) != 1 {
		t.Fatalf("%d tool calls, want 1", len(calls))
	}
	equal(t, "name", calls[0].Function.Name, "get_weather")
	var args struct{ City string }
	if err := json.Unmarshal([]byte(calls[0].Function.Arguments), &args); err != nil || calls[0].ID == "" {
		t.Errorf("call %q, arguments %q: %v", calls[0].ID, calls[0].Function.Arguments, err)
	}
}

func (s goSDK) streamEmoji(t *testing.T) {
	text := textOf(drain(t, s.client.Chat.Completions.NewStreaming(t.Context(), ask(s.plan.Emoji))))
	equal(t, "text", text, s.plan.Emoji.Text)
	if !strings.ContainsFunc(text, func(r rune) bool { return r > 0xFFFF }) {
		t.Error("the plan's text has no emoji")
	}
}

func (s goSDK) streams50(t *testing.T) {
	equal(t, "streams in the plan", len(s.plan.Streams), 50)
	var g errgroup.Group
	for _, q := range s.plan.Streams {
		g.Go(func() error {
			chunks, err := collect(s.client.Chat.Completions.NewStreaming(t.Context(), ask(q)))
			if err == nil && textOf(chunks) != q.Text {
				err = errors.New("got " + strconv.Quote(textOf(chunks)) + ", want " + strconv.Quote(q.Text))
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(explain(err))
	}
}

func (s goSDK) streamAbort(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	chunks := s.client.Chat.Completions.NewStreaming(ctx, ask(s.plan.Slow))
	for got := 0; got < 3; {
		if !chunks.Next() {
			t.Fatalf("%d tokens, then %v", got, chunks.Err())
		}
		if c := chunks.Current(); len(c.Choices) > 0 && c.Choices[0].Delta.Content != "" {
			got++
		}
	}
	cancel()
	if rest, err := collect(chunks); !errors.Is(err, context.Canceled) {
		t.Errorf("%d more chunks, then %v, want a cancellation", len(rest), err)
	}
}

func (s goSDK) bigPrompt(t *testing.T) {
	equal(t, "content", first(t, s.answer(t, ask(s.plan.Big)).Choices).Message.Content, s.plan.Big.Text)
}
