package e2e_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
)

// refused checks that q ends in its status with OpenAI's error object and without the hosts' key.
func (s goSDK) refused(t *testing.T, q question) *openai.Error {
	t.Helper()
	_, err := s.client.Chat.Completions.New(t.Context(), ask(q))
	return s.isRefusal(t, err, q)
}

func (s goSDK) isRefusal(t *testing.T, err error, q question) *openai.Error {
	t.Helper()
	e, ok := errors.AsType[*openai.Error](err)
	if !ok {
		t.Fatalf("error %v, want one of the API", err)
	}
	equal(t, "status", e.StatusCode, q.Status)
	if e.Message == "" || e.Type == "" {
		t.Errorf("not OpenAI's error object: %s", e.RawJSON())
	}
	if strings.Contains(string(e.DumpResponse(true))+e.RawJSON(), s.plan.Secret) {
		t.Error("the host's key leaked")
	}
	return e
}

func (s goSDK) errorNotFound(t *testing.T) {
	equal(t, "code", s.refused(t, s.plan.Unknown).Code, "model_not_found")
}

func (s goSDK) errorRateLimit(t *testing.T) {
	header := s.refused(t, s.plan.Busy).Response.Header.Get("Retry-After")
	if after, err := strconv.Atoi(header); err != nil || after < 1 || after > s.plan.Busy.RetryAfter+30 { // behind those who were told before
		t.Errorf("Retry-After %q, want 1 to %d", header, s.plan.Busy.RetryAfter+30)
	}
}

func (s goSDK) errorStreamRefused(t *testing.T) {
	_, err := collect(s.client.Chat.Completions.NewStreaming(t.Context(), ask(s.plan.Broken)))
	s.isRefusal(t, err, s.plan.Broken)
}

func (s goSDK) errorStreamCut(t *testing.T) {
	q := s.plan.Cut
	chunks, err := collect(s.client.Chat.Completions.NewStreaming(t.Context(), ask(q)))
	text := textOf(chunks)
	if err == nil {
		t.Fatalf("a clean end after %q", text)
	}
	if text == "" || !strings.HasPrefix(q.Text, text) {
		t.Errorf("text before the cut: %q, want a beginning of %q", text, q.Text)
	}
}
