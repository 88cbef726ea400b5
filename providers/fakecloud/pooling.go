package fakecloud

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"time"
)

// maxDimensions is the longest embedding a request may ask for.
const maxDimensions = 8192

type embeddingRequest struct {
	Model      string  `json:"model"`
	Input      prompts `json:"input"`
	Format     string  `json:"encoding_format"`
	Dimensions *int    `json:"dimensions"`
}

type embedding struct {
	Index     int    `json:"index"`
	Object    string `json:"object"`
	Embedding any    `json:"embedding"` // numbers, or base64 of little-endian float32
}

func (x *exchange) embeddings() {
	var q embeddingRequest
	if !x.decode(&q) {
		return
	}
	dimensions := DefaultDimensions
	if q.Dimensions != nil {
		dimensions = *q.Dimensions
	}
	p := x.model(&q.Model)
	switch {
	case p != nil:
	case len(q.Input) == 0:
		p = invalid("input", "input: nothing to embed")
	case q.Format != "" && q.Format != "float" && q.Format != "base64":
		p = invalid("encoding_format", "encoding_format: Input should be 'float' or 'base64'")
	case dimensions < 1 || dimensions > maxDimensions:
		p = invalid("dimensions", "dimensions must be between 1 and %d, got %d.", maxDimensions, dimensions)
	}
	tokens := 0
	for _, in := range q.Input {
		if p == nil {
			p = x.check(CountTokens(in.text), 0)
		}
		tokens += CountTokens(in.text)
	}
	if p != nil {
		x.refuse(p)
		return
	}
	data := make([]embedding, 0, len(q.Input))
	for i, in := range q.Input {
		v := Vector(q.Model, in.text, dimensions)
		e := embedding{i, "embedding", v}
		if q.Format == "base64" {
			var b []byte
			for _, f := range v {
				b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
			}
			e.Embedding = base64.StdEncoding.EncodeToString(b)
		}
		data = append(data, e)
	}
	x.pooled(x.newID("embd-"), "list", q.Model, "data", data, tokens)
}

// pooled answers what took only the reading of a prompt; the batch is not asked.
func (x *exchange) pooled(id, object, model, key string, data any, tokens int) {
	x.h.books.update(func(s *Stats) { s.PromptTokens += tokens })
	if Pause(x.ctx, x.h.engine.scaled(x.h.engine.speed.ttft)) != nil {
		return
	}
	x.json(map[string]any{
		"id": id, "object": object, "created": time.Now().Unix(), "model": model, key: data,
		"usage": map[string]any{"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": nil},
	})
}

// documents are texts, or objects with a text.
type documents []string

// UnmarshalJSON takes one text, a list of texts or a list of objects.
func (d *documents) UnmarshalJSON(b []byte) error {
	var l stringOrList
	if err := json.Unmarshal(b, &l); err == nil {
		*d = documents(l)
		return nil
	}
	var objects []struct {
		Text string `json:"text"`
	}
	if err := json.Unmarshal(b, &objects); err != nil {
		return err
	}
	*d = nil
	for _, o := range objects {
		*d = append(*d, o.Text)
	}
	return nil
}

// relevance of a text to a query, in (0,1): it grows with the words they share, and is never the same for two texts.
func relevance(model, query, text string) float64 {
	shared := 0
	known := strings.Fields(strings.ToLower(query))
	for w := range strings.FieldsSeq(strings.ToLower(text)) {
		if slices.Contains(known, w) {
			shared++
		}
	}
	jitter := float64(hash(model, query, text)>>11) / (1 << 53)
	return (float64(shared) + 0.1 + 0.5*jitter) / (float64(shared) + 1)
}

type rerankRequest struct {
	Model     string    `json:"model"`
	Query     string    `json:"query"`
	Documents documents `json:"documents"`
	TopN      int       `json:"top_n"`
}

type rerankResult struct {
	Index    int `json:"index"`
	Document struct {
		Text string `json:"text"`
	} `json:"document"`
	Score float64 `json:"relevance_score"`
}

func (x *exchange) rerank() {
	var q rerankRequest
	if !x.decode(&q) {
		return
	}
	if p := x.model(&q.Model); p != nil {
		x.refuse(p)
		return
	}
	results := []rerankResult{}
	tokens := 0
	for i, text := range q.Documents {
		r := rerankResult{Index: i, Score: relevance(q.Model, q.Query, text)}
		r.Document.Text = text
		results = append(results, r)
		tokens += CountTokens(q.Query) + CountTokens(text)
	}
	slices.SortStableFunc(results, func(a, b rerankResult) int {
		if a.Score > b.Score {
			return -1
		}
		return 1
	})
	if q.TopN > 0 {
		results = results[:min(q.TopN, len(results))]
	}
	x.pooled(x.newID("rerank-"), "list", q.Model, "results", results, tokens)
}

type scoreRequest struct {
	Model string    `json:"model"`
	Text1 documents `json:"text_1"`
	Text2 documents `json:"text_2"`
}

type scoreResult struct {
	Index  int     `json:"index"`
	Object string  `json:"object"`
	Score  float64 `json:"score"`
}

func (x *exchange) score() {
	var q scoreRequest
	if !x.decode(&q) {
		return
	}
	p := x.model(&q.Model)
	if p == nil && len(q.Text1) != 1 && len(q.Text1) != len(q.Text2) {
		p = invalid("", "Input lengths must be either 1:1, 1:N or N:N")
	}
	if p != nil {
		x.refuse(p)
		return
	}
	scores := []scoreResult{}
	tokens := 0
	for i, b := range q.Text2 {
		a := q.Text1[min(i, len(q.Text1)-1)]
		scores = append(scores, scoreResult{i, "score", relevance(q.Model, a, b)})
		tokens += CountTokens(a) + CountTokens(b)
	}
	x.pooled(x.newID("score-"), "list", q.Model, "data", scores, tokens)
}

// moderations is OpenAI's own, which vLLM lacks: a text is flagged when it contains "violence".
func (x *exchange) moderations() {
	var q struct {
		Model string    `json:"model"`
		Input documents `json:"input"`
	}
	if !x.decode(&q) {
		return
	}
	if p := x.model(&q.Model); p != nil {
		x.refuse(p)
		return
	}
	results := []any{}
	for _, in := range q.Input {
		bad := strings.Contains(strings.ToLower(in), "violence")
		results = append(results, map[string]any{
			"flagged":         bad,
			"categories":      map[string]bool{"violence": bad, "harassment": false},
			"category_scores": map[string]float64{"violence": relevance(q.Model, "violence", in) / 2, "harassment": 0.01},
		})
	}
	x.json(map[string]any{"id": x.newID("modr-"), "model": q.Model, "results": results})
}
