package gateway

import (
	"strings"
	"testing"
)

func TestPromptTokens(t *testing.T) {
	image := `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` + strings.Repeat("A", 1<<20) + `"}}]}]}`
	text := `{"messages":[{"role":"user","content":"` + strings.Repeat("word ", 1<<18) + `"}]}`
	spokenOf := `{"messages":[{"role":"user","content":"a data URL has ;base64, in it, and ` + strings.Repeat("word ", 1<<18) + `"}]}`
	both := `{"messages":[{"role":"user","content":[{"type":"text","text":"` + strings.Repeat("word ", 1<<18) + `"},{"type":"image_url","image_url":{"url":"data:image/png;base64,` + strings.Repeat("A", 1<<20) + `"}}]}]}`
	for name, tc := range map[string]struct {
		body string
		low  int
		high int
	}{
		"an image": {image, 100, 4000}, "a long text": {text, 300_000, 340_000},
		"a text that speaks of one": {spokenOf, 300_000, 340_000}, "a long text and an image": {both, 300_000, 340_000},
		"a short text": {`{"messages":[]}`, 0, 4},
	} {
		if n := promptTokens([]byte(tc.body), len(tc.body)); n < tc.low || n > tc.high {
			t.Errorf("%s: %d tokens", name, n)
		}
	}
}
