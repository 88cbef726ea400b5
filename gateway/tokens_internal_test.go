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
	raw := strings.Repeat("A", 1<<20)
	source := `{"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"` + raw + `"}}]}]}`
	sound := `{"messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{"format":"wav", "data" : "` + raw + `"}}]}]}`
	table := `{"messages":[{"role":"user","content":[{"type":"document","source":{"type":"text","data":"` + strings.Repeat("word ", 1<<18) + `"}}]}]}`
	for name, tc := range map[string]struct {
		body string
		low  int
		high int
	}{
		"an image": {image, 100, 4000}, "a long text": {text, 300_000, 340_000},
		"a text that speaks of one": {spokenOf, 300_000, 340_000}, "a long text and an image": {both, 300_000, 340_000},
		"an image in Anthropic's shape": {source, 100, 4000}, "sound": {sound, 100, 4000}, "a text that is called data": {table, 300_000, 340_000},
		"a short text": {`{"messages":[]}`, 0, 4},
	} {
		if n := promptTokens([]byte(tc.body), len(tc.body)); n < tc.low || n > tc.high {
			t.Errorf("%s: %d tokens", name, n)
		}
	}
}
