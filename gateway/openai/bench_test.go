package openai_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"headrace/gateway/openai"
	"headrace/gateway/sse"
)

const chatChunk = `{"id":"chatcmpl-0d2f8a6c4b1e4f6d9a7c","object":"chat.completion.chunk","created":1764000000,` +
	`"model":"meta-llama/Llama-3.1-70B-Instruct","choices":[{"index":0,"delta":{"content":" world"},` +
	`"logprobs":null,"finish_reason":null}]}`

// chatRequest is a chat request of about size bytes whose prompt is English text with line breaks.
func chatRequest(size int) []byte {
	line := `The quick brown fox jumps over the lazy dog, and then it reads \"the news\" in the evening sun.\n`
	head := `{"model":"llama-70b","stream":true,"max_tokens":512,"temperature":0.7,"top_p":0.95,` +
		`"messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"`
	tail := `"}],"stop":["###"],"user":"u-123","stream_options":{"include_usage":false},"seed":42}`
	n := max(1, (size-len(head)-len(tail))/len(line))
	return []byte(head + strings.Repeat(line, n) + tail)
}

// tokenRequest is a completion request whose prompt is a list of token ids.
func tokenRequest(size int) []byte {
	return []byte(`{"model":"llama-70b","prompt":[` + strings.TrimSuffix(strings.Repeat("12345,", size/6), ",") + `]}`)
}

func BenchmarkScan(b *testing.B) {
	for name, body := range map[string][]byte{
		"1K": chatRequest(1 << 10), "1M": chatRequest(1 << 20), "tokens/1M": tokenRequest(1 << 20),
		"plain/1M": []byte(`{"model":"m","prompt":"` + strings.Repeat("a", 1<<20) + `"}`),
	} {
		b.Run(name, func(b *testing.B) {
			var r openai.Request
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				if err := r.Scan(body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkParts(b *testing.B) {
	body := chatRequest(1 << 10)
	var r openai.Request
	if err := r.Scan(body); err != nil {
		b.Fatal(err)
	}
	model := []byte(`"meta-llama/Llama-3.1-70B-Instruct"`)
	var dst [][]byte
	b.ReportAllocs()
	for b.Loop() {
		dst, _ = r.Parts(dst[:0], body, model, true, false)
	}
}

func BenchmarkChunk(b *testing.B) {
	usage := `{"id":"chatcmpl-0d2f8a6c4b1e4f6d9a7c","object":"chat.completion.chunk","created":1764000000,"model":"llama","choices":[],` +
		`"usage":{"prompt_tokens":14,"total_tokens":24,"completion_tokens":10,"prompt_tokens_details":{"cached_tokens":8}}}`
	response := `{"type":"response.output_text.delta","sequence_number":12,"item_id":"msg_68a1","output_index":0,"content_index":0,"delta":" world","logprobs":[]}`
	for name, data := range map[string]string{"chat": chatChunk, "usage": usage, "response": response} {
		b.Run(name, func(b *testing.B) {
			data := []byte(data)
			var c openai.Chunk
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				c.Parse(nil, data)
			}
			if c.Malformed {
				b.Fatal("the data is malformed")
			}
		})
	}
}

func BenchmarkEmbeddingBody(b *testing.B) {
	vector := strings.TrimSuffix(strings.Repeat("-0.0123456789,", 1024), ",")
	item := fmt.Sprintf(`{"object":"embedding","index":0,"embedding":[%s]}`, vector)
	body := []byte(`{"object":"list","data":[` + item + strings.Repeat(","+item, 31) + `],"usage":{"prompt_tokens":9,"total_tokens":9}}`)
	var c openai.Chunk
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		c.ParseBody(body)
	}
	if !c.Content || c.Usage.Prompt != 9 {
		b.Fatalf("read as %+v", c)
	}
}

// One event of a 16 KiB burst, found and read.
func BenchmarkEvent(b *testing.B) {
	one := []byte("data: " + chatChunk + "\n\n")
	burst := bytes.Repeat(one, 16<<10/len(one))
	events := len(burst) / len(one)
	var s sse.Scanner
	var c openai.Chunk
	b.ReportAllocs()
	b.SetBytes(int64(len(burst)))
	for b.Loop() {
		n := 0
		for rest := burst; ; n++ {
			ev, ok := s.Next(rest)
			if !ok {
				break
			}
			if c.Parse(ev.Name, ev.Data); !c.Content {
				b.Fatal("an event without content")
			}
			rest = rest[ev.Size:]
		}
		if n != events {
			b.Fatalf("%d events, want %d", n, events)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(events), "ns/event")
}
