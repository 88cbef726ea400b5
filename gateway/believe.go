package gateway

import (
	"context"
	"log/slog"

	"headrace/gateway/openai"
)

const (
	// believed is what a request's tokens may be in any case: contexts of a million are on offer.
	believed = 10_000_000
	// unseenPrompt is what a prompt may have in tokens beyond its bytes: templates, tools, images that are named by addresses.
	unseenPrompt = 1 << 20
	// overLimit is how many times a limit of tokens may be passed: not every host counts as the caller does.
	overLimit = 4
)

// believe drops what the host reports of tokens where that cannot be: hosts are strangers' machines, and what they say is summed up, charged and
// taken off callers' limits. What is dropped is estimated, as where they report nothing.
func (x *exchange) believe() {
	if !x.m.hasUsage || !x.leased {
		return
	}
	u := &x.m.usage
	n, prompt, output := max(1, x.sought.n), int64(believed), int64(believed)
	if x.rec.BytesIn > 0 {
		prompt = min(prompt, x.rec.BytesIn+unseenPrompt)
	}
	if most := int64(x.lease.MaxContext()); most > 0 {
		prompt, output = min(prompt, 2*most), min(output, 2*most*n)
	}
	if most := x.sought.most; most > 0 && most < believed {
		output = min(output, overLimit*n*(most+1024))
	}
	was := *u
	if u.Prompt > prompt {
		u.Prompt, u.Cached = -1, -1
	}
	if u.Cached > u.Prompt {
		u.Cached = -1
	}
	if u.Completion > output {
		u.Completion, u.Reasoning = -1, -1
	}
	if u.Reasoning > u.Completion {
		u.Reasoning = -1
	}
	if *u == was {
		return
	}
	x.s.disbelieved.Add(1)
	level := slog.LevelDebug
	if _, said := x.s.disbelief.LoadOrStore(x.lease.Endpoint.ID, struct{}{}); !said {
		level = slog.LevelWarn
	}
	x.s.log.Log(context.Background(), level, "a host reports more tokens than there can have been: they are estimated", "endpoint", x.lease.Endpoint.ID, "request_id", x.rec.ID, "prompt_tokens", was.Prompt,
		"cached_tokens", was.Cached, "completion_tokens", was.Completion, "reasoning_tokens", was.Reasoning)
	if *u == openai.NoUsage() {
		x.m.hasUsage = false
	}
}

// Disbelieved counts attempts whose host reported more tokens than there can have been.
func (s *Server) Disbelieved() int64 { return s.disbelieved.Load() }
