package fakecloud_test

import (
	"encoding/json"
	"strings"
	"testing"

	"headrace/providers/fakecloud"
)

// TestConversationIsHeld shows that a conversation's next turn finds all of the turns before in the prefix cache, what the
// host itself said as well.
func TestConversationIsHeld(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	first := strings.Repeat("tell me of the mill and its race. ", 20)
	var a struct {
		Choices []struct {
			Message struct{ Content string }
		}
	}
	ask(t, h, "/v1/chat/completions", chatBody(first, `,"max_tokens":100`), &a)
	said := a.Choices[0].Message.Content
	body, err := json.Marshal(map[string]any{"max_tokens": 1, "messages": []map[string]string{
		{"role": "user", "content": first}, {"role": "assistant", "content": said}, {"role": "user", "content": "and the wheel?"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	ask(t, h, "/v1/chat/completions", string(body), &a)
	const block = 16 // tokens
	whole := fakecloud.CountTokens(first+"\n"+said) / block * block
	if got := h.Stats().CachedTokens; got != whole || whole <= fakecloud.CountTokens(first) {
		t.Errorf("%d tokens were held, want %d: the first prompt has %d", got, whole, fakecloud.CountTokens(first))
	}
}
