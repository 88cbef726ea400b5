package resume_test

import (
	"strings"
	"testing"

	"headrace/gateway/openai"
	"headrace/gateway/resume"
	"headrace/gateway/sse"
)

const firstChunk = `{"id":"chatcmpl-0d2f8a6c4b1e4f6d9a7c","object":"chat.completion.chunk","created":1764000000,` +
	`"model":"meta-llama/Llama-3.1-70B-Instruct","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}`

const chatChunk = `{"id":"chatcmpl-0d2f8a6c4b1e4f6d9a7c","object":"chat.completion.chunk","created":1764000000,` +
	`"model":"meta-llama/Llama-3.1-70B-Instruct","choices":[{"index":0,"delta":{"content":" world"},"logprobs":null,"finish_reason":null,"token_ids":null}]}`

func parsed(data string) (*openai.Chunk, *sse.Event) {
	ev := &sse.Event{Data: []byte(data), HasData: true}
	c := new(openai.Chunk)
	c.Parse(nil, ev.Data)
	return c, ev
}

func BenchmarkAllowed(b *testing.B) {
	var q openai.Request
	if err := q.Scan([]byte(`{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}`)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if r := resume.Allowed("/chat/completions", &q); r != resume.None {
			b.Fatal(r)
		}
	}
}

// One answer of 500 tokens, kept.
func BenchmarkSee(b *testing.B) {
	for name, gather := range map[string]bool{"stream": false, "gathered": true} {
		b.Run(name, func(b *testing.B) {
			const tokens = 500
			first, firstEvent := parsed(firstChunk)
			c, ev := parsed(chatChunk)
			var s resume.Story
			b.ReportAllocs()
			for b.Loop() {
				s.Begin(true, gather, 1<<20)
				s.See(first, firstEvent)
				for range tokens {
					s.See(c, ev)
				}
				s.Release()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/tokens, "ns/event")
		})
	}
}

func BenchmarkContinue(b *testing.B) {
	c, ev := parsed(strings.Replace(chatChunk, "0d2f8a", "ffffff", 1))
	var s resume.Story
	begun(&s, 1<<30)
	dst := make([]byte, 0, 1<<10)
	b.ReportAllocs()
	for b.Loop() {
		if dst, _ = s.Continue(dst[:0], c, ev, true); len(dst) == 0 {
			b.Fatal("nothing")
		}
		if s.Size() > 1<<16 {
			begun(&s, 1<<30)
		}
	}
}

// begun is a story at its seam.
func begun(s *resume.Story, limit int) {
	s.Begin(true, false, limit)
	s.See(parsed(firstChunk))
	s.See(parsed(chatChunk))
	s.Ask(nil, []byte(`{"messages":[{"role":"user","content":"hi"}]}`), nil, 1, false)
	s.Seam()
}

func TestNothingIsAllocatedPerEvent(t *testing.T) {
	first, firstEvent := parsed(firstChunk)
	c, ev := parsed(chatChunk)
	for name, gather := range map[string]bool{"stream": false, "gathered": true} {
		var s resume.Story
		answer := func() {
			s.Begin(true, gather, 1<<20)
			s.See(first, firstEvent)
			for range 1000 {
				s.See(c, ev)
			}
			s.Release()
		}
		answer()
		// The garbage collector may empty the pools in between, and the race detector has them forget: far less than one allocation an event is
		// what counts.
		if n := testing.AllocsPerRun(50, answer); n > 50 {
			t.Errorf("%s: an answer of 1000 events allocates %v times", name, n)
		}
	}
	var s resume.Story
	begun(&s, 1<<30)
	defer s.Release()
	dst := make([]byte, 0, 1<<10)
	if n := testing.AllocsPerRun(500, func() { dst, _ = s.Continue(dst[:0], c, ev, true) }); n > 0 {
		t.Errorf("Continue allocates %v times", n)
	}
}
