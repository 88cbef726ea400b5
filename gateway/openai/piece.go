package openai

import "bytes"

// PieceKind is what an event says a piece of.
type PieceKind uint8

// Kinds of pieces.
const (
	NoPiece        PieceKind = iota // nothing, several things, or more than a piece of one
	PieceText                       // of the answer, or of why there is none
	PieceReasoning                  // of what goes before it
	PieceArguments                  // of a tool call that has begun
)

// Piece is what an event of a stream says where that is a piece of one thing and nothing else that would be missed: no end, no name, no
// second choice. Its frame is many times as long.
type Piece struct {
	Kind  PieceKind
	Index int  // of the tool call; 0 otherwise
	At    Span // the string in the data, quotes included
}

// PieceOf reads the data of an event of Chat Completions, Completions, Responses or Anthropic Messages. It never fails and never allocates.
func PieceOf(data []byte) Piece {
	r := reader{b: data, lax: true}
	if !r.open('{') {
		return Piece{}
	}
	var p Piece
	var kind []byte
	var delta Span
	var block, item int
	for name, ok := r.member(); ok; name, ok = r.member() {
		switch string(name) {
		case "type":
			kind, _ = unquoted(r.skip())
		case "choices":
			p = r.choicePiece()
		case "delta":
			delta = r.span()
		case "index":
			block = int(r.count())
		case "output_index":
			item = int(r.count())
		default:
			r.skip()
		}
	}
	switch rest, ours := bytes.CutPrefix(kind, []byte("response.")); {
	case r.problem != fine:
		return Piece{}
	case ours:
		p = Piece{At: delta}
		switch {
		case string(rest) == "output_text.delta", string(rest) == "refusal.delta":
			p.Kind = PieceText
		case bytes.HasPrefix(rest, []byte("reasoning")) && bytes.HasSuffix(rest, []byte(".delta")):
			p.Kind = PieceReasoning
		case string(rest) == "function_call_arguments.delta":
			p.Kind, p.Index = PieceArguments, item
		}
	case string(kind) == "content_block_delta" && delta.Present():
		p = blockPiece(data, delta)
		if p.Kind == PieceArguments {
			p.Index = block
		}
	}
	if p.Kind == NoPiece || !p.At.Present() || data[p.At.From] != '"' || p.Index < 0 {
		return Piece{}
	}
	return p
}

// span skips a value and returns where it lies.
func (r *reader) span() Span {
	v := r.skip()
	return Span{r.i - len(v), r.i}
}

// only makes p the piece that lies there, or none where there is one already.
func (p *Piece) only(kind PieceKind, at Span) {
	if p.At.Present() {
		kind, at = NoPiece, Span{}
	}
	p.Kind, p.At = kind, at
}

// blockPiece reads the delta of a content block.
func blockPiece(data []byte, at Span) (p Piece) {
	r := reader{b: data[:at.To], i: at.From, lax: true}
	if !r.open('{') {
		return p
	}
	for name, ok := r.member(); ok; name, ok = r.member() {
		switch string(name) {
		case "text":
			p.only(PieceText, r.span())
		case "thinking":
			p.only(PieceReasoning, r.span())
		case "partial_json":
			p.only(PieceArguments, r.span())
		case "type":
			r.skip()
		default:
			if filled(r.skip()) {
				return Piece{}
			}
		}
	}
	return p
}

// choicePiece reads "choices".
func (r *reader) choicePiece() (p Piece) {
	if !r.open('[') {
		return p
	}
	single := true
	for n := 0; r.element(); n++ {
		single = single && n == 0
		if !r.open('{') {
			single = false
			continue
		}
		for name, ok := r.member(); ok; name, ok = r.member() {
			switch string(name) {
			case "index":
				single = r.count() == 0 && single
			case "delta":
				var whole bool
				p, whole = r.deltaPiece()
				single = whole && single
			case "text":
				p.only(PieceText, r.span())
			case "finish_reason", "stop_reason", "message":
				single = !filled(r.skip()) && single
			default: // logprobs, numbers of tokens
				r.skip()
			}
		}
	}
	if !single {
		return Piece{}
	}
	return p
}

// deltaPiece reads the delta of a choice; whole is false where it has more than p.
func (r *reader) deltaPiece() (p Piece, whole bool) {
	if !r.open('{') {
		return p, false
	}
	whole = true
	var content, thought, thoughtToo Span
	for name, ok := r.member(); ok; name, ok = r.member() {
		switch string(name) {
		case "content":
			content = r.span()
		case "reasoning_content":
			thought = r.span()
		case "reasoning":
			thoughtToo = r.span()
		case "role":
			r.skip()
		case "tool_calls":
			var alone bool
			p, alone = r.argumentsPiece()
			whole = alone && whole
		default:
			whole = !filled(r.skip()) && whole
		}
	}
	if r.problem != fine {
		return Piece{}, false
	}
	said := func(at Span) bool { return at.Present() && filled(r.b[at.From:at.To]) }
	if said(content) {
		p.only(PieceText, content)
		whole = p.Kind != NoPiece && whole
	}
	if !said(thought) {
		thought = thoughtToo // its newer name; who sends both says the same twice
	}
	if said(thought) {
		p.only(PieceReasoning, thought)
		whole = p.Kind != NoPiece && whole
	}
	return p, whole
}

// argumentsPiece reads "tool_calls"; alone is false where they have more than arguments of one call.
func (r *reader) argumentsPiece() (p Piece, alone bool) {
	if !r.open('[') {
		return p, true
	}
	alone = true
	for n := 0; r.element(); n++ {
		alone = alone && n == 0
		if !r.open('{') {
			alone = false
			continue
		}
		for name, ok := r.member(); ok; name, ok = r.member() {
			switch string(name) {
			case "index":
				p.Index = int(r.count())
			case "type":
				r.skip()
			case "function":
				if !r.open('{') {
					continue
				}
				for name, ok := r.member(); ok; name, ok = r.member() {
					if v := r.span(); string(name) == "arguments" {
						p.Kind, p.At = PieceArguments, v
					} else if filled(r.b[v.From:v.To]) {
						alone = false
					}
				}
			default:
				alone = !filled(r.skip()) && alone
			}
		}
	}
	return p, alone
}
