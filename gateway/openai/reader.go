package openai

// maxDepth is how many objects and arrays may lie in one another. It bounds what a hostile body
// costs parsers behind us that recurse; no real request comes near it.
const maxDepth = 512

// reader walks over one JSON text (RFC 8259) from front to end. Its methods return zero values once
// something is wrong; problem then says what, and i where. Values are never decoded, only delimited.
//
// Each reading method wants i at the first byte of a value and leaves it right behind the value.
type reader struct {
	b       []byte
	i       int
	problem problem
	// lax lets pass what engines are known to send though JSON forbids it: NaN and infinities
	// (Python's json module writes them) and bare control characters in strings.
	lax bool

	first bool     // an object or array was just opened
	esc   bool     // the string read last has escapes
	buf   [32]byte // a name with escapes, unescaped

	depth   int
	objects [maxDepth / 64]uint64 // bit d is set when the container at depth d is an object
}

// problem is what stopped a reader.
type problem uint8

const (
	fine problem = iota
	endsEarly
	endsInString
	wantValue
	wantKey
	wantColon
	wantCommaOrBrace
	wantCommaOrBracket
	badNumber
	badEscape
	badControl
	tooDeep
)

func (r *reader) fail(p problem) {
	if r.problem == fine {
		r.problem = p
	}
}

// peek skips white space and returns the byte behind it, 0 at the end of the text.
func (r *reader) peek() byte {
	if r.i < len(r.b) {
		if c := r.b[r.i]; c > ' ' {
			return c
		}
	}
	return r.space()
}

func (r *reader) space() byte {
	for ; r.i < len(r.b); r.i++ {
		if c := r.b[r.i]; c != ' ' && c != '\n' && c != '\r' && c != '\t' {
			return c
		}
	}
	return 0
}

// want fails with p, or with endsEarly when the text is used up.
func (r *reader) want(p problem) {
	if r.i >= len(r.b) {
		p = endsEarly
	}
	r.fail(p)
}

// enter steps into an object ('{') or array ('['), which the caller has seen at i. It must be
// followed by calls of member or element until they return false.
func (r *reader) enter(open byte) {
	if r.depth == maxDepth {
		r.fail(tooDeep)
		return
	}
	word, bit := &r.objects[r.depth/64], uint64(1)<<(r.depth%64)
	if open == '{' {
		*word |= bit
	} else {
		*word &^= bit
	}
	r.depth++
	r.i++
	r.first = true
}

// inObject says whether the innermost open container is an object.
func (r *reader) inObject() bool {
	d := r.depth - 1
	return r.objects[d/64]&(1<<(d%64)) != 0
}

// more steps to the next entry of the innermost container, or out of it when there is none.
func (r *reader) more(closing byte, p problem) bool {
	if r.problem != fine {
		return false
	}
	c := r.peek()
	switch {
	case c == closing:
		r.i++
		r.depth--
		r.first = false
		return false
	case r.first:
		r.first = false
	case c == ',':
		r.i++
		r.peek()
	default:
		r.want(p)
		return false
	}
	return true
}

// element stops at the next value of the array; false means that the array is closed.
func (r *reader) element() bool { return r.more(']', wantCommaOrBracket) }

// member stops at the next value of the object and returns its name; false means that the object is
// closed. A name with escapes is unescaped into r and valid until the next call, or nil when it is
// longer than any that is looked for or not ASCII.
func (r *reader) member() (name []byte, ok bool) {
	name, ok = r.memberRaw()
	if r.esc && ok {
		return r.shortName(name), true
	}
	return name, ok
}

// shortName unescapes an ASCII name of at most len(r.buf) bytes.
func (r *reader) shortName(raw []byte) []byte {
	n := 0
	for i := 0; i < len(raw); n++ {
		size := 1
		if raw[i] == '\\' {
			size = escapeLen(raw[i:])
		}
		c := rune(raw[i])
		switch size {
		case 2:
			c = simpleEscape(raw[i+1])
		case 6:
			c = hex4(raw[i+2:])
		}
		if n == len(r.buf) || c >= 0x80 {
			return nil
		}
		r.buf[n] = byte(c)
		i += size
	}
	return r.buf[:n]
}

// memberRaw is member without unescaping the name; esc says whether it has escapes.
func (r *reader) memberRaw() (raw []byte, ok bool) {
	if raw, ok = r.compactMember(); ok {
		return raw, true
	}
	if !r.more('}', wantCommaOrBrace) {
		return nil, false
	}
	return r.key()
}

// key reads a member's name and colon.
func (r *reader) key() (raw []byte, ok bool) {
	if r.i >= len(r.b) || r.b[r.i] != '"' {
		r.want(wantKey)
		return nil, false
	}
	raw = r.str()
	esc := r.esc
	if r.problem != fine {
		return nil, false
	}
	if r.peek() != ':' {
		r.want(wantColon)
		return nil, false
	}
	r.i++
	r.peek()
	r.esc = esc
	return raw, true
}

// compactMember is memberRaw for the form that engines write, without white space or escapes. It
// changes nothing when it meets another.
func (r *reader) compactMember() (raw []byte, ok bool) {
	b, i := r.b, r.i
	if !r.first {
		if i >= len(b) || b[i] != ',' {
			return nil, false
		}
		i++
	}
	if i >= len(b) || b[i] != '"' || r.problem != fine {
		return nil, false
	}
	i++
	end := plainEnd(b, i)
	if end+2 >= len(b) || b[end] != '"' || b[end+1] != ':' || b[end+2] <= ' ' {
		return nil, false
	}
	r.i, r.first, r.esc = end+2, false, false
	return b[i:end], true
}

// skip reads one value of any kind and returns its bytes.
func (r *reader) skip() []byte {
	if r.problem != fine {
		return nil
	}
	c := r.peek()
	from := r.i
	if c == '{' || c == '[' {
		r.nest(c)
	} else {
		r.scalar(c)
	}
	if r.problem != fine {
		return nil
	}
	return r.b[from:r.i]
}

// nest reads the object or array that starts with open. It does not recurse.
func (r *reader) nest(open byte) {
	base := r.depth
	r.enter(open)
	for r.problem == fine && r.depth > base {
		var ok bool
		if r.inObject() {
			_, ok = r.memberRaw()
		} else {
			ok = r.element()
		}
		if !ok {
			continue // closed, or at fault
		}
		if c := r.peek(); c == '{' || c == '[' {
			r.enter(c)
		} else {
			r.scalar(c)
		}
	}
}

// scalar reads the value that starts with c and is neither object nor array.
func (r *reader) scalar(c byte) {
	switch {
	case c == '"':
		r.str()
	case c-'0' <= 9 || c == '-':
		r.number()
	default:
		r.literal(c)
	}
}

// text reads a value; when it is a string ok is true and raw is what is between the quotes.
func (r *reader) text() (raw []byte, ok bool) {
	if r.peek() == '"' && r.problem == fine {
		raw = r.str()
		return raw, r.problem == fine
	}
	r.skip()
	return nil, false
}

// words reads a value and says whether it is a string with something in it.
func (r *reader) words() bool {
	raw, ok := r.text()
	return ok && len(raw) > 0
}

// open enters the value at i when it starts with c, '{' or '[', and skips it otherwise.
func (r *reader) open(c byte) bool {
	if r.problem == fine && r.peek() == c {
		r.enter(c)
		return true
	}
	r.skip()
	return false
}

// count reads a value and returns it when it is a whole number that is not negative, else -1.
func (r *reader) count() int64 {
	v := r.skip()
	if len(v) == 0 || v[0]-'0' > 9 {
		return -1
	}
	n, ok := integer(v)
	if !ok {
		return -1
	}
	return n
}

// filled says whether the JSON value v holds something: it is not null, false, "", [] or {}.
func filled(v []byte) bool {
	if len(v) == 0 {
		return false
	}
	switch v[0] {
	case 'n', 'f':
		return false
	case '"':
		return len(v) > 2
	case '[', '{':
		for _, c := range v[1 : len(v)-1] {
			if c != ' ' && c != '\n' && c != '\r' && c != '\t' {
				return true
			}
		}
		return false
	}
	return true
}
