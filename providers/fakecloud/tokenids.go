package fakecloud

import (
	"encoding/json"
	"slices"
	"strings"
)

// Numbers of tokens, as vLLM gives them that is asked with return_token_ids, and takes them for a prompt of Completions. They are a known
// function of the text, the same on every host: four bytes of a prompt are a token, and so is each word of an answer. They are wider than
// any engine's vocabulary, since prompts may say anything.
//
// A number below wordIDs is a word of an answer; from there on it is a piece of a prompt, then a piece of an answer's word, then of
// something else that is written, which nobody can turn back.
const (
	wordIDs  = 1 << 12
	firstIDs = wordIDs / 2 // of the same words without the space in front, which the first one of an answer lacks
	pieceIDs = 4 << 32     // pieces of each kind: their bytes, and how many these are
)

// wordID is the number of a word of an answer, which may be its first.
func wordID(text string, first bool) (id int, ok bool) {
	base := 0
	if first {
		base = firstIDs
	}
	if i := slices.IndexFunc(words[:], func(w string) bool { return trimFirst(w, first) == text }); i >= 0 {
		return base + i, true
	}
	if i := slices.IndexFunc(rare[:], func(w string) bool { return trimFirst(w, first) == text }); i >= 0 {
		return base + len(words) + i, true
	}
	return 0, false
}

func trimFirst(word string, first bool) string {
	if first {
		return strings.TrimPrefix(word, " ")
	}
	return word
}

// wordOf is the text of such a number.
func wordOf(id int) (text string, ok bool) {
	first := id >= firstIDs
	if first {
		id -= firstIDs
	}
	switch {
	case id < 0:
	case id < len(words):
		return trimFirst(words[id], first), true
	case id < len(words)+len(rare):
		return trimFirst(rare[id-len(words)], first), true
	}
	return "", false
}

// pieceID is the number of up to four bytes.
func pieceID(text string) int {
	v := 0
	for i := range len(text) {
		v = v<<8 | int(text[i])
	}
	return (len(text)-1)<<32 + v
}

func pieceOf(id int) string {
	b := make([]byte, id>>32+1)
	for i := range slices.Backward(b) {
		b[i] = byte(id)
		id >>= 8
	}
	return string(b)
}

// PromptIDs are the numbers of a prompt and of the beginning of model's answer to it, which sent is; see Token for what prompt is.
func PromptIDs(model, prompt, sent string) []int {
	ids := make([]int, 0, len(prompt)/4+1)
	for text := prompt; text != ""; {
		n := min(4, len(text))
		ids = append(ids, wordIDs+pieceID(text[:n]))
		text = text[n:]
	}
	if len(ids) == 0 { // engines have a token for the beginning
		ids = append(ids, wordIDs+pieceID("\x00"))
	}
	o := newOracle(model, prompt)
	for i := 0; sent != ""; i++ {
		t := o.token(i)
		if !strings.HasPrefix(sent, t) { // a part of it, or no answer of this model
			for ; sent != ""; sent = sent[min(4, len(sent)):] {
				ids = append(ids, wordIDs+pieceIDs+pieceID(sent[:min(4, len(sent))]))
			}
			return ids
		}
		id, _ := wordID(t, i == 0)
		ids = append(ids, id)
		sent = sent[len(t):]
	}
	return ids
}

// TokenID is the number of token i, from 0, of the answer that model gives to prompt.
func TokenID(model, prompt string, i int) int {
	id, _ := wordID(Token(model, prompt, i), i == 0)
	return id
}

// spelled turns numbers back into a prompt and the beginning of an answer; ok is false when they are not of the kind.
func spelled(ids []int) (prompt, sent string, ok bool) {
	var p, s strings.Builder
	answers := false
	for _, id := range ids {
		switch {
		case id < 0:
			return "", "", false
		case id < wordIDs:
			text, known := wordOf(id)
			if !known {
				return "", "", false
			}
			s.WriteString(text)
			answers = true
		case id < wordIDs+pieceIDs:
			if answers {
				return "", "", false
			}
			p.WriteString(pieceOf(id - wordIDs))
		case id < wordIDs+2*pieceIDs:
			s.WriteString(pieceOf(id - wordIDs - pieceIDs))
			answers = true
		default:
			return "", "", false
		}
	}
	return strings.TrimSuffix(p.String(), "\x00"), s.String(), true
}

// id is the number of the piece, whose part of the answer begins at from.
func (p *piece) id(first bool) int {
	if p.part == content {
		if id, ok := wordID(p.text, first); ok {
			return id
		}
		if n := len(p.text); n > 0 && n <= 4 {
			return wordIDs + pieceIDs + pieceID(p.text)
		}
	}
	return wordIDs + 2*pieceIDs + int(hash(p.text)>>33) //nolint:gosec // 31 bits
}

// ids are the numbers of piece i, none for the end of the answer.
func (o *output) ids(i int) json.RawMessage {
	if o.pieces[i].part == eos {
		return json.RawMessage("[]")
	}
	return encode([]int{o.pieces[i].id(o.begins && i == 0)})
}

// allIDs are those of all pieces.
func (o *output) allIDs() []int {
	ids := []int{}
	for i := range o.tokens(len(o.pieces)) {
		ids = append(ids, o.pieces[i].id(o.begins && i == 0))
	}
	return ids
}
