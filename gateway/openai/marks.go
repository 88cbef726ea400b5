package openai

import (
	"bytes"
	"math"

	"github.com/cespare/xxhash/v2"

	"headrace/router/affinity"
)

// Marks are made of a request's prompt as engines lay it out: tools, system prompt and instructions, then the turns. What
// is hashed are the bytes of those values as they stand in the body, in that order, so two prompts share a mark where they
// are alike byte for byte up to there. One hash runs over all of it and is read at each mark: where marks are does not
// change what they are.
//
// The hash is XXH64, without a seed, so that replicas agree: it does over 10 GB/s, can be read on the way, and needs no
// secret, since a collision costs a prefill and nothing else.
const (
	bytesPerToken = 4   // about, of JSON
	minPrefix     = 64  // bytes: engines keep whole blocks of 16 tokens
	minStep       = 512 // bytes between two marks inside of a turn

	firstTurns = 2  // turns from the beginning whose ends are marks: what many conversations share
	lastTurns  = 10 // turns up to the end likewise: the next request of the conversation goes on behind one of them
	powers     = 4  // marks below the grid, each at half of the one behind it
	rootBytes  = 4 << 10
)

// Parts of a head, in the order in which they are hashed.
const (
	partSalt = iota // keeps the caches of vLLM's callers apart
	partTools
	partFunctions
	partSystem
	partInstructions
	headParts
)

func headPart(name []byte) int {
	switch string(name) {
	case "cache_salt":
		return partSalt
	case "tools":
		return partTools
	case "functions":
		return partFunctions
	case "system":
		return partSystem
	}
	return partInstructions
}

// Layout is where the parts of a prompt are, for Marks.
type Layout struct {
	head  [headParts]Span
	turns turns
}

// skip reads the value of a part of the head.
func (l *Layout) skip(rd *reader, name []byte) []byte {
	from := rd.i
	v := rd.skip()
	if filled(v) {
		l.head[headPart(name)] = Span{from, rd.i}
	}
	return v
}

// turns are the ends of an array's values, as indices into the body: the first and the last ones.
type turns struct {
	at    int // where the value begins
	n     int
	first [firstTurns]int
	last  [lastTurns]int // the end of turn i at i%lastTurns
	// root is where a conversation has become itself: behind what operators write and rootBytes of the first turn that
	// they do not, or that turn's end. 0 until there is such a turn.
	root int

	assistant bool // the last turn is the assistant's
}

// scan reads a value and keeps where its elements end, if it has any.
func (t *turns) scan(rd *reader) {
	*t = turns{at: rd.i}
	if !rd.open('[') {
		return
	}
	for rd.element() {
		from := rd.i
		t.assistant = rd.byAssistant()
		if t.root == 0 && !byOperator(rd.b[from:rd.i]) {
			t.root = min(rd.i, from+rootBytes)
		}
		if t.n < firstTurns {
			t.first[t.n] = rd.i
		}
		t.last[t.n%lastTurns] = rd.i
		t.n++
	}
}

// byAssistant reads a message and says whether its role, the last one when there are several, is the assistant's.
func (r *reader) byAssistant() (yes bool) {
	if !r.open('{') {
		return false
	}
	for name, ok := r.member(); ok; name, ok = r.member() {
		if string(name) == "role" {
			yes = stringIs(r.skip(), "assistant")
		} else {
			r.skip()
		}
	}
	return yes
}

// byOperator tells whether a message seems to be a system prompt. Its role stands in front of the content or behind it.
func byOperator(message []byte) bool {
	const near = 48
	front, back := message[:min(near, len(message))], message[max(0, len(message)-near):]
	for _, role := range [...][]byte{[]byte(`"system"`), []byte(`"developer"`)} {
		if bytes.Contains(front, role) || bytes.Contains(back, role) {
			return true
		}
	}
	return false
}

// cuts are indices into a body in ascending order.
type cuts struct {
	n  int
	at [affinity.MaxMarks]int
}

// put adds i, which may be there already; what there is no room for is left out.
func (c *cuts) put(i int) {
	j := c.n
	for j > 0 && c.at[j-1] >= i {
		if c.at[j-1] == i {
			return
		}
		j--
	}
	if c.n == len(c.at) {
		return
	}
	copy(c.at[j+1:c.n+1], c.at[j:c.n])
	c.at[j] = i
	c.n++
}

// Marks puts the prefixes of body's prompt into k, and leaves its session alone. body is what r was scanned from. It
// allocates nothing and takes time in proportion to the prompt.
//
// Marks are the end of the head, the ends of the first and last turns, and places inside, for documents that many ask
// about: the multiples of a power of two, the smallest one for which there is room, and a few smaller powers. A longer
// prompt has fewer of the same places, so prompts of different lengths meet.
func (r *Request) Marks(body []byte, k *affinity.Key) {
	k.Root, k.N = 0, 0
	from, to := r.PromptAt.From, r.PromptAt.To
	if to-from <= 2 || body[from] == 'n' { // nothing in it
		from, to = 0, 0
	}
	var d xxhash.Digest
	d.Reset()
	head := 0
	for _, p := range r.Layout.head {
		_, _ = d.Write(body[p.From:p.To])
		head += p.To - p.From
	}
	if head >= minPrefix {
		k.Add(affinity.Mark{Hash: d.Sum64(), Tokens: tokensOf(head)})
	}
	if to == 0 {
		return
	}
	var c cuts
	root, end := r.places(&c, affinity.MaxMarks-k.N, from, to)
	done := from
	for _, at := range c.at[:c.n] {
		_, _ = d.Write(body[done:at])
		done = at
		n := head + at - from
		if n < minPrefix && at != end {
			continue
		}
		h := d.Sum64()
		if at == root {
			k.Root = max(1, h)
		}
		if n >= minPrefix {
			k.Add(affinity.Mark{Hash: h, Tokens: tokensOf(n)})
		}
	}
}

// places puts up to room marks of the prompt at [from,to) into c, and returns the root's place and the last one.
func (r *Request) places(c *cuts, room, from, to int) (root, end int) {
	end = to - 1 // without the closing quote or bracket, behind which nothing goes on
	root = min(end, from+rootBytes)
	if t := &r.Layout.turns; t.at == from && t.n > 0 {
		end = t.last[(t.n-1)%lastTurns]
		if root = t.root; root == 0 {
			root = end
		}
		for _, at := range t.first[:min(t.n, firstTurns)] {
			c.put(at)
		}
		for _, at := range t.last[:min(t.n, lastTurns)] {
			c.put(at)
		}
	}
	c.put(root)
	c.put(end)
	size := end - from
	step := minStep
	for size/step > room-c.n-powers {
		step *= 2
	}
	for at := step; at < size; at += step {
		c.put(from + at)
	}
	for i := 0; i < powers && step > minStep; i++ {
		step /= 2
		c.put(from + step)
	}
	return root, end
}

func tokensOf(n int) int32 { return int32(min(n/bytesPerToken, math.MaxInt32)) } //nolint:gosec // bounded
