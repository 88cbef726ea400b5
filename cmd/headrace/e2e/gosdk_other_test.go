package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"io"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
)

// Beyond chat.

func (s goSDK) completionParams() openai.CompletionNewParams {
	q := s.plan.Completion
	return openai.CompletionNewParams{
		Model:     openai.CompletionNewParamsModel(q.Model),
		Prompt:    openai.CompletionNewParamsPromptUnion{OfString: openai.String(q.Prompt)},
		MaxTokens: openai.Int(q.MaxTokens),
	}
}

func (s goSDK) completions(t *testing.T) {
	answer, err := s.client.Completions.New(t.Context(), s.completionParams())
	if err != nil {
		t.Fatal(explain(err))
	}
	equal(t, "text", first(t, answer.Choices).Text, s.plan.Completion.Text)
}

func (s goSDK) completionsStream(t *testing.T) {
	var text strings.Builder
	for _, c := range drain(t, s.client.Completions.NewStreaming(t.Context(), s.completionParams())) {
		text.WriteString(first(t, c.Choices).Text)
	}
	equal(t, "text", text.String(), s.plan.Completion.Text)
}

func (s goSDK) embeddings(t *testing.T) {
	params := openai.EmbeddingNewParams{
		Model:          s.plan.Model,
		Input:          openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: s.plan.Embeddings.Inputs},
		EncodingFormat: openai.EmbeddingNewParamsEncodingFormatFloat,
	}
	floats, err := s.client.Embeddings.New(t.Context(), params)
	if err != nil {
		t.Fatal(explain(err))
	}
	params.EncodingFormat = openai.EmbeddingNewParamsEncodingFormatBase64
	var coded struct { // the SDK has no type for base64
		Data []struct {
			Embedding []byte `json:"embedding"`
		} `json:"data"`
	}
	if _, err := s.client.Embeddings.New(t.Context(), params, option.WithResponseBodyInto(&coded)); err != nil {
		t.Fatal(explain(err))
	}
	want := s.plan.Embeddings.Vectors
	if len(floats.Data) != len(want) || len(coded.Data) != len(want) {
		t.Fatalf("%d vectors as floats, %d in base64, want %d", len(floats.Data), len(coded.Data), len(want))
	}
	for i, w := range want {
		d, b := floats.Data[i].Embedding, coded.Data[i].Embedding
		if len(d) != len(w) || len(b) != 4*len(w) {
			t.Fatalf("vector %d: %d floats, %d bytes, want %d floats", i, len(d), len(b), len(w))
		}
		for j, x := range w {
			if y := math.Float32frombits(binary.LittleEndian.Uint32(b[4*j:])); y != x || float32(d[j]) != x {
				t.Fatalf("vector %d, element %d: %v as float, %v in base64, want %v", i, j, d[j], y, x)
			}
		}
	}
}

func (s goSDK) responseParams() responses.ResponseNewParams {
	q := s.plan.Chat
	return responses.ResponseNewParams{
		Model:           q.Model,
		Input:           responses.ResponseNewParamsInputUnion{OfString: openai.String(q.Prompt)},
		MaxOutputTokens: openai.Int(q.MaxTokens),
	}
}

func (s goSDK) responses(t *testing.T) {
	answer, err := s.client.Responses.New(t.Context(), s.responseParams())
	if err != nil {
		t.Fatal(explain(err))
	}
	equal(t, "output text", answer.OutputText(), s.plan.Chat.Text)
	equal(t, "output_tokens", answer.Usage.OutputTokens, s.plan.Chat.MaxTokens)
}

func (s goSDK) responsesStream(t *testing.T) {
	var text strings.Builder
	var last responses.ResponseStreamEventUnion
	for _, e := range drain(t, s.client.Responses.NewStreaming(t.Context(), s.responseParams())) {
		last = e
		if e.Type == "response.output_text.delta" {
			text.WriteString(e.Delta)
		}
	}
	equal(t, "text", text.String(), s.plan.Chat.Text)
	if last.Type != "response.completed" && last.Type != "response.incomplete" {
		t.Errorf("the last event is %q", last.Type)
	}
	equal(t, "output_tokens", last.Response.Usage.OutputTokens, s.plan.Chat.MaxTokens)
}

func (s goSDK) transcription(t *testing.T) {
	answer, err := s.client.Audio.Transcriptions.New(t.Context(), openai.AudioTranscriptionNewParams{
		Model: s.plan.Upload.Model,
		File:  openai.File(bytes.NewReader(recording(s.plan.Upload.Bytes)), "talk.wav", "audio/wav"),
	})
	if err != nil {
		t.Fatal(explain(err))
	}
	if !strings.Contains(answer.RawJSON(), s.plan.Upload.SHA256) {
		t.Errorf("the host saw other bytes: %s", answer.RawJSON())
	}
}

func (s goSDK) speech(t *testing.T) {
	answer, err := s.client.Audio.Speech.New(t.Context(), openai.AudioSpeechNewParams{
		Model: s.plan.Speech.Model,
		Input: s.plan.Speech.Input,
		Voice: openai.AudioSpeechNewParamsVoiceUnion{OfString: openai.String("alloy")},
	})
	if err != nil {
		t.Fatal(explain(err))
	}
	defer answer.Body.Close()
	got, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(got)
	equal(t, "bytes", len(got), s.plan.Speech.Bytes)
	equal(t, "sha256", hex.EncodeToString(sum[:]), s.plan.Speech.SHA256)
}

func (s goSDK) image(t *testing.T) {
	answer, err := s.client.Images.Generate(t.Context(), openai.ImageGenerateParams{
		Model: s.plan.Model, Prompt: "a weir", ResponseFormat: openai.ImageGenerateParamsResponseFormatB64JSON,
	})
	if err != nil {
		t.Fatal(explain(err))
	}
	png, err := base64.StdEncoding.DecodeString(first(t, answer.Data).B64JSON)
	if err != nil || !bytes.HasPrefix(png, []byte("\x89PNG")) {
		t.Errorf("%d bytes that are no PNG: %v", len(png), err)
	}
}

func (s goSDK) moderation(t *testing.T) {
	answer, err := s.client.Moderations.New(t.Context(), openai.ModerationNewParams{
		Model: s.plan.Model, Input: openai.ModerationNewParamsInputUnion{OfString: openai.String("a weir")},
	})
	if err != nil {
		t.Fatal(explain(err))
	}
	if len(answer.Results) != 1 || !answer.Results[0].JSON.Flagged.Valid() {
		t.Errorf("no verdict: %s", answer.RawJSON())
	}
}

func (s goSDK) models(t *testing.T) {
	var ids []string
	pager := s.client.Models.ListAutoPaging(t.Context())
	for pager.Next() {
		ids = append(ids, pager.Current().ID)
	}
	if err := pager.Err(); err != nil {
		t.Fatal(explain(err))
	}
	if !slices.Contains(ids, s.plan.Model) || !slices.Contains(ids, s.plan.Chat.Model) {
		t.Errorf("models %q lack %q or %q", ids, s.plan.Model, s.plan.Chat.Model)
	}
	m, err := s.client.Models.Get(t.Context(), s.plan.Model)
	if err != nil {
		t.Fatal(explain(err))
	}
	equal(t, "id", m.ID, s.plan.Model)
}
