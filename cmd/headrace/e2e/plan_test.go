package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"headrace/providers/fakecloud"
)

const (
	callerKey = "sk-e2e-caller-5d41402abc4b2a76" // what the SDKs send; no host may see it
	hostKey   = "host-key-7d793037a0760186574b"  // what the hosts ask for; no caller may see it
)

// plan tells an SDK where to go, what to ask and what it must be told. Its JSON is what the scripts read.
type plan struct {
	BaseURL string `json:"base_url"`
	APIKey  string `json:"api_key"`
	Secret  string `json:"secret"` // must not appear in any answer
	Model   string `json:"model"`  // for all that is not chat: called alike by callers and hosts

	Chat       question   `json:"chat"`    // asked by an alias
	Choices    []string   `json:"choices"` // of Chat with n = 3
	Completion question   `json:"completion"`
	Emoji      question   `json:"emoji"` // comes in pieces that cut characters
	Big        question   `json:"big"`
	Slow       question   `json:"slow"` // takes a minute, unless the caller leaves
	Streams    []question `json:"streams"`
	Embeddings embeddings `json:"embeddings"`
	Upload     upload     `json:"upload"`
	Speech     speech     `json:"speech"`

	TooLong question `json:"too_long"`
	Unknown question `json:"unknown"`
	Locked  question `json:"locked"`
	Busy    question `json:"busy"`
	Broken  question `json:"broken"`
	Down    question `json:"down"`
	Cut     question `json:"cut"`    // breaks off after some tokens
	Mortal  question `json:"mortal"` // breaks off too, and is gone on with by another host
}

// question is a request and what must come of it.
type question struct {
	Model     string `json:"model"`
	Prompt    string `json:"prompt,omitempty"`
	Unit      string `json:"unit,omitempty"` // repeated Repeat times it is the prompt, when that is long
	Repeat    int    `json:"repeat,omitempty"`
	MaxTokens int64  `json:"max_tokens"`

	Text       string `json:"text,omitempty"`        // the whole answer
	Status     int    `json:"status,omitempty"`      // of the error, when there must be one
	RetryAfter int    `json:"retry_after,omitempty"` // seconds that the host asked for
}

func (q question) prompt() string { return q.Prompt + strings.Repeat(q.Unit, q.Repeat) }

// embeddings are texts and their vectors.
type embeddings struct {
	Inputs  []string    `json:"inputs"`
	Vectors [][]float32 `json:"vectors"`
}

// upload is a file of Bytes bytes, a multiple of 256, made by recording.
type upload struct {
	Model  string `json:"model"`
	Bytes  int    `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// speech is a text and what must be heard.
type speech struct {
	Model  string `json:"model"`
	Input  string `json:"input"`
	Bytes  int    `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// recording returns n bytes: byte i is i*31 mod 256.
func recording(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 31)
	}
	return b
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// tell is a question for model with the answer that a host gives, which knows it as served.
func tell(model, served, prompt string, tokens int) question {
	return question{Model: model, Prompt: prompt, MaxTokens: int64(tokens), Text: fakecloud.Answer(served, prompt, tokens)}
}

// newPlan is what the SDK of a language does with the fleet behind the gateway at baseURL.
func newPlan(baseURL, language string) plan {
	p := plan{
		BaseURL: baseURL, APIKey: callerKey, Secret: hostKey, Model: plainModel,
		Chat:       tell("chat", chatServed, "Why do mills have a headrace?", 48),
		Completion: tell("chat", chatServed, "Water flows", 32),
		Emoji:      tell(raggedModel, raggedModel, "Cut me where it hurts.", 400),
		Slow:       question{Model: slowModel, Prompt: "Take your time.", MaxTokens: 2000},
		Upload:     upload{Model: plainModel, Bytes: 5 << 20, SHA256: sum(recording(5 << 20))},
		TooLong:    question{Model: smallModel, Unit: "too many words ", Repeat: 4000, MaxTokens: 16, Status: 400},
		Unknown:    question{Model: "nobody-serves-this", Prompt: "Hello?", MaxTokens: 16, Status: 404},
		Locked:     question{Model: lockedModel + language, Prompt: "Open up.", MaxTokens: 16, Status: 502},
		Busy:       question{Model: busyModel, Prompt: "Now?", MaxTokens: 16, Status: 429, RetryAfter: retryAfter},
		Broken:     question{Model: brokenModel, Prompt: "Still there?", MaxTokens: 16, Status: 502},
		Down:       question{Model: downModel, Prompt: "Anybody?", MaxTokens: 16, Status: 503},
		Cut:        tell(cutModel+language, cutModel+language, "Tell me more.", 64),
		Mortal:     tell(mortalModel+language, mortalModel+language, "Tell me all.", 64),
	}
	p.Big = question{Model: "chat", Unit: "head race ", Repeat: 3 << 20 / 10, MaxTokens: 32}
	p.Big.Text = fakecloud.Answer(chatServed, p.Big.prompt(), 32)
	for i := range 3 {
		p.Choices = append(p.Choices, fakecloud.Answer(chatServed, fakecloud.Choice(p.Chat.Prompt, i), int(p.Chat.MaxTokens)))
	}
	p.Embeddings.Inputs = []string{"one", "two 🦊"}
	for _, in := range p.Embeddings.Inputs {
		p.Embeddings.Vectors = append(p.Embeddings.Vectors, fakecloud.Vector(plainModel, in, fakecloud.DefaultDimensions))
	}
	sound := fakecloud.Speech(plainModel, "Mind the weir.")
	p.Speech = speech{Model: plainModel, Input: "Mind the weir.", Bytes: len(sound), SHA256: sum(sound)}
	for i := range 50 {
		p.Streams = append(p.Streams, tell("chat", chatServed, fmt.Sprintf("Stream %d of fifty.", i), 20+3*i))
	}
	return p
}
