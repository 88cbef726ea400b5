package gateway

import (
	"strings"
	"testing"
)

func TestPromptTokens(t *testing.T) {
	image := `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` + strings.Repeat("A", 1<<20) + `"}}]}]}`
	text := `{"messages":[{"role":"user","content":"` + strings.Repeat("word ", 1<<18) + `"}]}`
	for name, tc := range map[string]struct {
		body string
		low  int
		high int
	}{"an image": {image, 100, 4000}, "a long text": {text, 300_000, 340_000}, "a short text": {`{"messages":[]}`, 0, 4}} {
		if n := promptTokens([]byte(tc.body), len(tc.body)); n < tc.low || n > tc.high {
			t.Errorf("%s: %d tokens", name, n)
		}
	}
}
