package openai

// Members steps through the members of one JSON object, as an engine or a scanned request has it. It
// takes what Chunk.Parse takes, allocates nothing, and names the values by where they lie.
type Members struct {
	r       reader
	started bool
	name    Span
}

// ReadMembers returns the members of the object v, which must stay as it is meanwhile.
func ReadMembers(v []byte) Members { return Members{r: reader{b: v, lax: true}} }

// Next reads one member and returns its name, unescaped, and where its value lies. A name with escapes
// is valid until the next call, and nil when it is longer than 32 bytes or not ASCII. ok is false when
// there is none left or v is no object; Whole tells which.
func (m *Members) Next() (name []byte, value Span, ok bool) {
	r := &m.r
	if !m.started {
		m.started = true
		if r.peek() != '{' {
			r.want(wantValue)
			return nil, Span{}, false
		}
		r.enter('{')
	} else if r.depth == 0 {
		return nil, Span{}, false
	}
	if !r.more('}', wantCommaOrBrace) {
		return nil, Span{}, false
	}
	m.name.From = r.i
	raw, ok := r.key()
	if !ok {
		return nil, Span{}, false
	}
	m.name.To = m.name.From + len(raw) + len(`""`)
	if name = raw; r.esc {
		name = r.shortName(raw)
	}
	from := r.i
	if r.skip(); r.problem != fine {
		return nil, Span{}, false
	}
	return name, Span{from, r.i}, true
}

// NameAt is where the name of the member read last lies, quotes included.
func (m *Members) NameAt() Span { return m.name }

// Whole says, once Next has returned false, that v was one object and nothing else.
func (m *Members) Whole() bool {
	m.r.peek()
	return m.started && m.r.problem == fine && m.r.depth == 0 && m.r.i == len(m.r.b)
}
