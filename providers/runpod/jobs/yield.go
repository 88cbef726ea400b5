package jobs

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
)

// sink takes what yields hold.
type sink interface {
	text(raw json.RawMessage) *failure // a JSON string
	object(o object, k kind) *failure
}

// kinds counts yields.
type kinds [numKinds]int64

const maxDepth = 6 // of lists in lists, and of texts that hold JSON

// walk hands one yield to s: a string, an object, or a list of them. Old workers yield lists of chunks, and an aggregated
// output is the list of all yields.
func walk(v json.RawMessage, depth int, s sink, n *kinds) *failure {
	v = bytes.TrimSpace(v)
	if len(v) == 0 || depth > maxDepth {
		return nil
	}
	switch v[0] {
	case '"':
		n[kindText]++
		return s.text(v)
	case '{':
		o, k := parseObject(v)
		n[k]++
		if k == kindError {
			return ofWorker(string(v))
		}
		return s.object(o, k)
	case '[':
		var list []json.RawMessage
		_ = json.Unmarshal(v, &list) // it is part of an answer that was valid
		for _, one := range list {
			if f := walk(one, depth+1, s, n); f != nil {
				return f
			}
		}
	case 'n': // null
	default:
		n[kindOther]++
	}
	return nil
}

// maxEvent bounds one event that is put together of many yields, in bytes.
const maxEvent = 16 << 20

// stream turns the yields of one job into server-sent events. What is text already is passed on as it came, in whole
// events; objects become events.
type stream struct {
	a     *asked
	kinds kinds
	cuts  cuts

	buf   []byte
	whole int // bytes of buf that are whole events
	line  int // where the line begins that was not seen to its end
	look  int // how far no end of it was found
	datas int // data lines of the event that begins at whole
	from  int // the first of them
	to    int

	shown   bool            // a byte order mark can follow no more
	begun   bool            // an event with data was seen
	ended   bool            // all was said: a finish_reason, or the end of a typed stream
	done    bool            // [DONE] was seen
	answer  json.RawMessage // the answer of a route whose streams cannot be made from it
	roles   int             // choices whose role went out, in worker-vllm's own form
	counted nativeUsage
	native  bool

	id   []byte // of the answer, by its newest event
	same int    // events in a row that had it
}

// add takes one yield.
func (s *stream) add(v json.RawMessage) *failure { return walk(v, 0, s, &s.kinds) }

// take returns the events that are whole since the last call. They are valid until the next call of add. Before the first
// event with data it returns nothing, so that a comment commits nobody to an answer.
func (s *stream) take() []byte {
	if !s.begun || s.whole == 0 {
		return nil
	}
	return s.buf[:s.whole]
}

// drop forgets what take returned.
func (s *stream) drop() {
	if !s.begun {
		return
	}
	n := copy(s.buf, s.buf[s.whole:])
	s.buf = s.buf[:n]
	s.line -= s.whole
	s.look -= s.whole
	s.from -= s.whole
	s.to -= s.whole
	s.whole = 0
}

func (s *stream) text(raw json.RawMessage) *failure {
	from := len(s.buf)
	s.buf = unquote(s.buf, raw)
	s.cuts.piece(s.buf[from:])
	if f := s.scan(false); f != nil {
		return f
	}
	if len(s.buf)-s.whole > maxEvent {
		return &failure{status: http.StatusBadGateway, code: "bad_answer", message: "The worker's answer holds an event that is too large."}
	}
	return nil
}

// scan finds the ends of events in buf. A CR at its end may be half of a CRLF, unless the stream is at its end.
func (s *stream) scan(final bool) *failure {
	for {
		end := lineEnd(s.buf, s.look)
		if end < 0 {
			s.look = len(s.buf)
			return nil
		}
		next := end + 1
		if s.buf[end] == '\r' {
			if next == len(s.buf) && !final {
				s.look = end
				return nil
			}
			if next < len(s.buf) && s.buf[next] == '\n' {
				next++
			}
		}
		from := s.line
		if !s.shown && from == 0 && bytes.HasPrefix(s.buf[:end], []byte(bom)) {
			from = len(bom)
		}
		s.shown = true
		s.line, s.look = next, next
		if from < end {
			if isData(s.buf[from:end]) {
				if s.datas == 0 {
					s.from, s.to = from, end
				}
				s.datas++
			}
			continue
		}
		if f := s.event(next); f != nil {
			return f
		}
		s.whole, s.datas = next, 0
	}
}

const bom = "\xEF\xBB\xBF"

// lineEnd returns where the first LF or CR of b is at or behind from, or -1.
func lineEnd(b []byte, from int) int {
	rest := b[from:]
	n := bytes.IndexByte(rest, '\n')
	if n >= 0 {
		rest = rest[:n]
	}
	if r := bytes.IndexByte(rest, '\r'); r >= 0 {
		return from + r
	}
	if n < 0 {
		return -1
	}
	return from + n
}

func isData(line []byte) bool {
	return bytes.HasPrefix(line, []byte("data")) && (len(line) == 4 || line[4] == ':')
}

// value is what stands behind a data line's colon.
func value(line []byte) []byte {
	v := bytes.TrimPrefix(line[len("data"):], []byte(":"))
	return bytes.TrimPrefix(v, []byte(" "))
}

// data joins the values of an event's data lines by LF.
func data(event []byte) []byte {
	var out []byte
	for n := 0; len(event) > 0; {
		end := lineEnd(event, 0)
		line := event
		if end < 0 {
			event = nil
		} else {
			line, event = event[:end], event[end+1:]
		}
		if line = bytes.TrimPrefix(line, []byte(bom)); isData(line) {
			if n > 0 {
				out = append(out, '\n')
			}
			out = append(out, value(line)...)
			n++
		}
	}
	return out
}

var (
	doneMark = []byte("[DONE]")
	// endMarks stand in the last events of streams. Inside a JSON string their quotes would be escaped.
	endMarks = [][]byte{
		[]byte(`"finish_reason":"`), []byte(`"finish_reason": "`), []byte(`"type":"message_stop"`), []byte(`"type": "message_stop"`),
		[]byte(`"type":"response.completed"`), []byte(`"type":"response.incomplete"`), []byte(`"type":"response.failed"`),
	}
)

// event looks at the one that ends at end.
func (s *stream) event(end int) *failure {
	if s.datas == 0 {
		return nil
	}
	if !s.begun {
		d := bytes.TrimSpace(data(s.buf[s.whole:end]))
		if len(d) > 0 && d[0] == '{' && json.Valid(d) {
			if _, k := parseObject(d); k == kindError { // it can still be a status
				s.kinds[kindError]++
				return ofWorker(string(d))
			}
		}
		s.begun = true
	}
	if s.datas == 1 && bytes.Equal(bytes.TrimSpace(value(s.buf[s.from:s.to])), doneMark) {
		s.done = true
		return nil
	}
	if s.anew() {
		return workerLost()
	}
	if !s.ended {
		for _, m := range endMarks {
			s.ended = s.ended || bytes.Contains(s.buf[s.whole:end], m)
		}
	}
	return nil
}

// Marks of OpenAI's chunks, as vLLM and SGLang write them, and as Python's json does.
var (
	idMark    = []byte(`{"id":`)
	roleMarks = [][]byte{[]byte(`"role":"`), []byte(`"role": "`)}
)

// anew tells whether the event, the newest, begins another answer: one with an id of its own that tells its role, if there are any,
// behind several that shared another. RunPod gives a job to another worker when it takes the first for lost, and nothing in the stream says so.
// Workers that give every event an id of its own are left alone.
func (s *stream) anew() bool {
	d := bytes.TrimSpace(value(s.buf[s.from:s.to]))
	rest, ok := bytes.CutPrefix(d, idMark)
	if rest = bytes.TrimLeft(rest, " "); !ok || len(rest) == 0 || rest[0] != '"' {
		return false
	}
	id, _, ok := bytes.Cut(rest[1:], []byte{'"'})
	if !ok {
		return false
	}
	if bytes.Equal(id, s.id) {
		s.same++
		return false
	}
	was := s.same
	s.id, s.same = append(s.id[:0], id...), 1
	return was > 1 && (s.a.kind == routeCompletions || bytes.Contains(d, roleMarks[0]) || bytes.Contains(d, roleMarks[1]))
}

// emit adds an event of its own.
func (s *stream) emit(name string, d []byte) *failure {
	s.closeLine()
	if name != "" {
		s.buf = append(append(append(s.buf, "event: "...), name...), '\n')
	}
	s.buf = append(append(append(s.buf, "data: "...), d...), "\n\n"...)
	return s.scan(false)
}

// closeLine ends an event that was left without its blank line.
func (s *stream) closeLine() {
	switch rest := s.buf[s.whole:]; {
	case len(rest) == 0:
	case rest[len(rest)-1] == '\n':
		s.buf = append(s.buf, '\n')
	default:
		s.buf = append(s.buf, "\n\n"...)
	}
}

func (s *stream) object(o object, k kind) *failure {
	switch {
	case k == kindTokens:
		return s.tokens(&o)
	case k == kindChunk:
		return s.emit("", oneLine(o.raw))
	case k == kindEvent:
		return s.emit(o.Type, oneLine(o.raw))
	case k == kindAnswer && s.a.kind == routeChat:
		return s.unroll(&o)
	case s.a.kind == routeOther:
		s.answer = o.raw
		return nil
	}
	return noAnswer(o.raw)
}

// noAnswer is an output in which the answer should be and is not. It may hold what the caller has written, so that the log
// gets its size only.
func noAnswer(output []byte) *failure {
	return &failure{
		status: http.StatusBadGateway, code: "bad_answer", message: "The worker's output is not an answer.",
		cause: fmt.Sprintf("%d bytes of output without an answer", len(output)),
	}
}

// tokens makes chunks of worker-vllm's own form.
func (s *stream) tokens(o *object) *failure {
	if len(o.Choices) < s.a.n { // each yield has all of them, by their places
		return tooFew(len(o.Choices), s.a.n)
	}
	s.native = true
	s.counted.take(o.Usage)
	for i := range o.Choices {
		text := joined(o.Choices[i].Tokens)
		if s.a.kind != routeCompletions && i >= s.roles {
			s.roles++
			if f := s.chunk(madeChoice{Index: i, Delta: delta{Role: "assistant", Content: new(string)}}); f != nil {
				return f
			}
		}
		s.roles = max(s.roles, i+1)
		if text == "" {
			continue
		}
		c := madeChoice{Index: i, Delta: delta{Content: &text}}
		if s.a.kind == routeCompletions {
			c.Delta, c.Text = nil, &text
		}
		if f := s.chunk(c); f != nil {
			return f
		}
	}
	return nil
}

func (s *stream) chunk(c madeChoice) *failure {
	m := s.a.new(true)
	m.Choices = append(m.Choices, c)
	return s.emit("", encode(m))
}

// unroll makes a stream of a whole chat answer.
func (s *stream) unroll(o *object) *failure {
	m := s.a.new(true)
	m.ID, m.Created, m.Model = cmp.Or(o.ID, m.ID), cmp.Or(o.Created, m.Created), cmp.Or(o.Model, m.Model)
	for i := range o.Choices {
		c := &o.Choices[i]
		m.Choices = append(m.Choices[:0], madeChoice{Index: c.Index, Delta: streamed(c.Message), Logprobs: c.Logprobs})
		if f := s.emit("", encode(m)); f != nil {
			return f
		}
		m.Choices = append(m.Choices[:0], madeChoice{Index: c.Index, Delta: delta{}, FinishReason: c.FinishReason, StopReason: c.StopReason})
		if f := s.emit("", encode(m)); f != nil {
			return f
		}
	}
	if !s.a.usage || !truthy(o.Usage) {
		return nil
	}
	m.Choices, m.Usage = m.Choices[:0], o.Usage
	return s.emit("", encode(m))
}

// finish ends the stream of a job that completed. cut says that its last event is not whole: that one is left out, and
// nothing says that the stream ended well.
func (s *stream) finish() (f *failure, cut bool) {
	if f := s.scan(true); f != nil { // a CR at the end is a line end
		return f, false
	}
	rest := bytes.TrimSpace(s.buf[s.whole:])
	switch {
	case len(rest) == 0: // blank lines are part of the stream
	case !s.begun && json.Valid(rest): // an answer as a text
		v := bytes.Clone(rest)
		s.buf, s.whole, s.line, s.look, s.datas = s.buf[:0], 0, 0, 0, 0
		if f := walk(v, 1, s, &s.kinds); f != nil {
			return f, false
		}
	default:
		if d := bytes.TrimSpace(data(rest)); !json.Valid(d) && !bytes.Equal(d, doneMark) && len(d) > 0 {
			s.buf = s.buf[:s.whole]
			return nil, !s.done
		}
		s.closeLine()
		if f := s.scan(true); f != nil {
			return f, false
		}
	}
	s.whole, s.line, s.look = len(s.buf), len(s.buf), len(s.buf)
	if s.native && !s.ended {
		if f := s.endTokens(); f != nil {
			return f, false
		}
	}
	if s.begun && !s.done && s.a.kind != routeOther {
		return s.emit("", doneMark), false
	}
	return nil, false
}

// endTokens says what worker-vllm's own form leaves out.
func (s *stream) endTokens() *failure {
	for i := range s.roles {
		c := madeChoice{Index: i, Delta: delta{}, FinishReason: s.a.finishOf(s.counted)}
		if s.a.kind == routeCompletions {
			c.Delta, c.Text = nil, new(string)
		}
		if f := s.chunk(c); f != nil {
			return f
		}
	}
	if !s.a.usage || !s.counted.told {
		return nil
	}
	m := s.a.new(true)
	m.Usage = s.counted.openAI()
	return s.emit("", encode(m))
}

// tooFew is an answer of a handler that passes over "n". It says nothing against the host.
func tooFew(got, n int) *failure {
	return &failure{
		status: http.StatusBadRequest, code: "unsupported_parameter", param: "n",
		message: fmt.Sprintf("This RunPod endpoint's handler gave %d of the %d choices that n asks for. Leave n out, or use another host.", got, n),
	}
}
