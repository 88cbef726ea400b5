package openai

import (
	"bytes"
	"math"
)

// What Parts puts in. These are constants: nobody may write to them.
var (
	modelName       = []byte(`"model":`)
	streamMember    = []byte(`"stream":true`)
	usageMember     = []byte(`"stream_options":{"include_usage":true}`)
	usageObject     = []byte(`{"include_usage":true}`)
	usageFirst      = []byte(`"include_usage":true`)
	usageFirstComma = []byte(`"include_usage":true,`)
	trueWord        = []byte(`true`)
	comma           = []byte(`,`)
)

// Parts appends to dst the pieces of body, which r was scanned from, with the model replaced by
// modelJSON (a JSON string literal, added when body names no model; nil leaves the model alone) and,
// with injectUsage, stream_options.include_usage made true whether stream_options was absent, null,
// without it, or had it false; forceStream does so and makes stream true as well. Everything else stays
// as it was, byte for byte. The pieces alias body, modelJSON and constants: read them only. It returns
// the summed length as well.
func (r *Request) Parts(dst [][]byte, body, modelJSON []byte, injectUsage, forceStream bool) ([][]byte, int) {
	p := pieces{dst: dst, body: body}
	injectUsage = injectUsage || forceStream
	setModel, setStream, setUsage := modelJSON != nil, forceStream && !r.Stream, injectUsage && !r.IncludeUsage
	addModel := setModel && !r.ModelAt.Present()
	addStream := setStream && !r.StreamAt.Present()
	addUsage := setUsage && !r.StreamOptionsAt.Present()
	if addModel || addStream || addUsage {
		p.upTo(r.OpenAt)
		if addModel {
			p.put(modelName)
			p.put(modelJSON)
		}
		if addStream {
			p.next(addModel, streamMember)
		}
		if addUsage {
			p.next(addModel || addStream, usageMember)
		}
		if !r.Empty {
			p.put(comma)
		}
	}
	setModel, setStream, setUsage = setModel && !addModel, setStream && !addStream, setUsage && !addUsage
	for setModel || setStream || setUsage { // in the order in which they stand
		model, stream, usage := spot(setModel, r.ModelAt), spot(setStream, r.StreamAt), spot(setUsage, r.StreamOptionsAt)
		switch min(model, stream, usage) {
		case model:
			p.replace(r.ModelAt, modelJSON)
			setModel = false
		case stream:
			p.replace(r.StreamAt, trueWord)
			setStream = false
		default:
			r.setUsage(&p)
			setUsage = false
		}
	}
	p.upTo(len(body))
	return p.dst, p.n
}

// spot is where at begins, behind everything when it is not wanted.
func spot(wanted bool, at Span) int {
	if !wanted {
		return math.MaxInt
	}
	return at.From
}

// setUsage replaces what the value of stream_options lacks.
func (r *Request) setUsage(p *pieces) {
	at := r.StreamOptionsAt
	switch {
	case r.IncludeUsageAt.Present():
		p.replace(r.IncludeUsageAt, trueWord)
	case p.body[at.From] != '{': // null
		p.replace(at, usageObject)
	default:
		p.upTo(at.From + 1)
		if filled(p.body[at.From:at.To]) {
			p.put(usageFirstComma)
		} else {
			p.put(usageFirst)
		}
	}
}

// pieces collects the parts of a changed body, front to back.
type pieces struct {
	dst  [][]byte
	body []byte
	done int // bytes of body that are in dst or replaced
	n    int // bytes in dst
}

func (p *pieces) put(b []byte) {
	if len(b) > 0 {
		p.dst = append(p.dst, b)
		p.n += len(b)
	}
}

// next puts the member b, behind a comma unless it is the first one.
func (p *pieces) next(behind bool, b []byte) {
	if behind {
		p.put(comma)
	}
	p.put(b)
}

// upTo puts what is left of body in front of index end.
func (p *pieces) upTo(end int) {
	p.put(p.body[p.done:end])
	p.done = end
}

func (p *pieces) replace(at Span, by []byte) {
	p.upTo(at.From)
	p.put(by)
	p.done = at.To
}

// TokenIDs is the member by which engines are asked for the numbers of an answer's tokens, and of its prompt's (vLLM, SGLang).
const TokenIDs = "return_token_ids"

var tokenIDsMember = []byte(`,"` + TokenIDs + `":true`)

// AskTokenIDs puts that member at the end of a request in pieces, as Parts returns them, which has members and not this one. It returns
// the summed length as well; n is what it was.
func AskTokenIDs(parts [][]byte, n int) ([][]byte, int) {
	last := parts[len(parts)-1]
	end := bytes.LastIndexByte(last, '}')
	parts[len(parts)-1] = last[:end]
	return append(parts, tokenIDsMember, last[end:]), n + len(tokenIDsMember)
}
