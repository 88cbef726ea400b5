package sse_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"headrace/gateway/sse"
)

// event is an sse.Event that outlives the buffer.
type event struct {
	Size       int
	Name, Data string
	Named, Has bool
	Last       bool
}

func (e event) String() string {
	return fmt.Sprintf("{%d name=%q(%v) data=%q(%v) last=%v}", e.Size, e.Name, e.Named, e.Data, e.Has, e.Last)
}

func keep(ev sse.Event, last bool) event {
	if ev.HasData != (ev.Data != nil) {
		panic(fmt.Sprintf("HasData is %v with Data %q", ev.HasData, ev.Data))
	}
	return event{ev.Size, string(ev.Name), string(ev.Data), ev.Name != nil, ev.HasData, last}
}

// read feeds stream in the given pieces and moves the buffer between calls, as a relay may.
func read(s *sse.Scanner, pieces [][]byte) (events []event, rest string) {
	var buf []byte
	for _, piece := range pieces {
		buf = append(slices.Clone(buf), piece...)
		for {
			ev, ok := s.Next(buf)
			if !ok {
				break
			}
			events = append(events, keep(ev, false))
			buf = slices.Clone(buf[ev.Size:])
		}
	}
	for {
		ev, ok := s.Last(buf)
		if !ok {
			return events, string(buf)
		}
		events = append(events, keep(ev, true))
		buf = buf[ev.Size:]
	}
}

// reference is the standard's algorithm written down plainly: it splits the whole stream into lines first.
func reference(stream string) (events []event, rest string) {
	type line struct {
		text string
		end  int // offset behind the line end
		open bool
	}
	var lines []line
	at := 0
	if strings.HasPrefix(stream, "\xEF\xBB\xBF") {
		at = 3
	}
	for at < len(stream) {
		i := strings.IndexAny(stream[at:], "\r\n")
		if i < 0 {
			lines = append(lines, line{stream[at:], len(stream), true})
			break
		}
		end := at + i + 1
		if stream[at+i] == '\r' && end < len(stream) && stream[end] == '\n' {
			end++
		}
		lines = append(lines, line{stream[at : at+i], end, false})
		at = end
	}
	start, cur, data := 0, event{}, []string(nil)
	for _, l := range lines {
		if l.text == "" && !l.open {
			cur.Size, cur.Has, cur.Data = l.end-start, data != nil, strings.Join(data, "\n")
			// A stream that ends on CR leaves its last event to Last: an LF could have followed.
			cur.Last = l.end == len(stream) && stream[l.end-1] == '\r'
			if cur.Last && strings.Trim(strings.TrimPrefix(stream[start:], "\xEF\xBB\xBF"), " \t\r\n") == "" {
				return events, stream[start:]
			}
			events = append(events, cur)
			start, cur, data = l.end, event{}, nil
			continue
		}
		name, value, _ := strings.Cut(l.text, ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "data":
			data = append(data, value)
		case "event":
			cur.Name, cur.Named = value, true
		}
	}
	tail := stream[start:]
	if start == 0 {
		tail = strings.TrimPrefix(tail, "\xEF\xBB\xBF")
	}
	if strings.Trim(tail, " \t\r\n") == "" {
		return events, stream[start:]
	}
	cur.Size, cur.Has, cur.Data, cur.Last = len(stream)-start, data != nil, strings.Join(data, "\n"), true
	return append(events, cur), ""
}

func TestEvents(t *testing.T) {
	for name, tc := range map[string]struct {
		stream string
		want   []event
		rest   string
	}{
		"one event":               {"data: a\n\n", []event{{Size: 9, Data: "a", Has: true}}, ""},
		"no space behind colon":   {"data:a\n\n", []event{{Size: 8, Data: "a", Has: true}}, ""},
		"only one space dropped":  {"data:  a\n\n", []event{{Size: 10, Data: " a", Has: true}}, ""},
		"CRLF":                    {"data: a\r\n\r\n", []event{{Size: 11, Data: "a", Has: true}}, ""},
		"CR waits at the end":     {"data: a\r\r", []event{{Size: 9, Data: "a", Has: true, Last: true}}, ""},
		"CR then more":            {"data: a\r\rdata: b\n\n", []event{{Size: 9, Data: "a", Has: true}, {Size: 9, Data: "b", Has: true}}, ""},
		"mixed line ends":         {"data: a\r\ndata: b\rdata: c\n\r\n", []event{{Size: 27, Data: "a\nb\nc", Has: true}}, ""},
		"LF CR is two ends":       {"data: a\n\rdata: b\n\n", []event{{Size: 9, Data: "a", Has: true}, {Size: 9, Data: "b", Has: true}}, ""},
		"multi-line JSON":         {"data: {\ndata:   \"a\": 1\ndata: }\n\n", []event{{Size: 32, Data: "{\n  \"a\": 1\n}", Has: true}}, ""},
		"data without colon":      {"data\n\n", []event{{Size: 6, Has: true}}, ""},
		"two data without colon":  {"data\ndata\n\n", []event{{Size: 11, Data: "\n", Has: true}}, ""},
		"empty data":              {"data:\n\n", []event{{Size: 7, Has: true}}, ""},
		"named":                   {"event: error\ndata: x\n\n", []event{{Size: 22, Name: "error", Named: true, Data: "x", Has: true}}, ""},
		"name behind data":        {"data: x\nevent: late\n\n", []event{{Size: 21, Name: "late", Named: true, Data: "x", Has: true}}, ""},
		"last name counts":        {"event: a\nevent: b\ndata: x\n\n", []event{{Size: 27, Name: "b", Named: true, Data: "x", Has: true}}, ""},
		"event without colon":     {"event\ndata: x\n\n", []event{{Size: 15, Named: true, Data: "x", Has: true}}, ""},
		"name does not stay":      {"event: a\n\ndata: x\n\n", []event{{Size: 10, Name: "a", Named: true}, {Size: 9, Data: "x", Has: true}}, ""},
		"comment block":           {": ping\n\ndata: a\n\n", []event{{Size: 8}, {Size: 9, Data: "a", Has: true}}, ""},
		"comment inside":          {": ping\ndata: a\n\n", []event{{Size: 16, Data: "a", Has: true}}, ""},
		"other fields":            {"id: 7\nretry: 10\ndata: a\n\n", []event{{Size: 25, Data: "a", Has: true}}, ""},
		"look-alike fields":       {"datax: a\ndat: b\neventy: c\nDATA: d\n\n", []event{{Size: 35}}, ""},
		"extra blank lines":       {"\n\ndata: a\n\n\n", []event{{Size: 1}, {Size: 1}, {Size: 9, Data: "a", Has: true}, {Size: 1}}, ""},
		"byte order mark":         {"\xEF\xBB\xBFdata: a\n\n", []event{{Size: 12, Data: "a", Has: true}}, ""},
		"only one mark is eaten":  {"\xEF\xBB\xBF\xEF\xBB\xBFdata: a\n\n", []event{{Size: 15}}, ""},
		"mark later is text":      {"data: a\n\n\xEF\xBB\xBFdata: b\n\n", []event{{Size: 9, Data: "a", Has: true}, {Size: 12}}, ""},
		"mark and blank line":     {"\xEF\xBB\xBF\ndata: a\n\n", []event{{Size: 4}, {Size: 9, Data: "a", Has: true}}, ""},
		"half a mark":             {"\xEF\xBBdata: a\n\n", []event{{Size: 11}}, ""},
		"cut in the line":         {"data: a\n\ndata: b", []event{{Size: 9, Data: "a", Has: true}, {Size: 7, Data: "b", Has: true, Last: true}}, ""},
		"cut before blank line":   {"data: a\n", []event{{Size: 8, Data: "a", Has: true, Last: true}}, ""},
		"white space at the end":  {"data: a\n\n \n\t", []event{{Size: 9, Data: "a", Has: true}}, " \n\t"},
		"only a mark":             {"\xEF\xBB\xBF", nil, "\xEF\xBB\xBF"},
		"mark and a space line":   {"\xEF\xBB\xBF \n", nil, "\xEF\xBB\xBF \n"},
		"nothing":                 {"", nil, ""},
		"carriage returns at end": {"data: a\n\n\r", []event{{Size: 9, Data: "a", Has: true}}, "\r"},
	} {
		t.Run(name, func(t *testing.T) {
			want, wantRest := reference(tc.stream)
			if !slices.Equal(want, tc.want) || wantRest != tc.rest {
				t.Errorf("the reference reads %v rest %q, want %v rest %q", want, wantRest, tc.want, tc.rest)
			}
			for size := 1; size <= len(tc.stream)+1; size++ {
				var s sse.Scanner
				var pieces [][]byte
				for piece := range slices.Chunk([]byte(tc.stream), size) {
					pieces = append(pieces, piece)
				}
				if got, rest := read(&s, pieces); !slices.Equal(got, tc.want) || rest != tc.rest {
					t.Errorf("in pieces of %d: %v rest %q, want %v rest %q", size, got, rest, tc.want, tc.rest)
				}
			}
		})
	}
}

func TestResetForgetsTheStream(t *testing.T) {
	var s sse.Scanner
	if _, ok := s.Next([]byte("event: a\ndata: b\ndata: c\n")); ok {
		t.Fatal("an event came out before its blank line")
	}
	s.Reset()
	got, _ := read(&s, [][]byte{[]byte("\xEF\xBB\xBFdata: d\n\n")})
	if want := []event{{Size: 12, Data: "d", Has: true}}; !slices.Equal(got, want) {
		t.Errorf("after Reset: %v, want %v", got, want)
	}
}

// A caller that shortens the buffer breaks the contract; it gets the events of what it has then, and no panic.
func TestShrunkenBuffer(t *testing.T) {
	for _, stream := range []string{"data: a\ndata: b\r", "event: long\nda", "data: a\r", "data: abcdefghijk"} {
		for n := range len(stream) {
			var s sse.Scanner
			s.Next([]byte(stream))
			s.Next([]byte(stream)[:n])
			s.Last([]byte(stream)[:n])
			s.Next(nil)
			if ev, ok := s.Next([]byte("data: z\n\n")); !ok || keep(ev, false) != (event{Size: 9, Data: "z", Has: true}) {
				t.Errorf("%q cut to %d: %v, %v", stream, n, ok, keep(ev, false))
			}
		}
	}
}

// The time for a huge event is linear only if no byte is searched twice. So every byte is spoiled
// once it has been seen: a scanner that searched it again would find line ends that are none.
func TestNoByteIsSearchedTwice(t *testing.T) {
	for name, tc := range map[string]struct{ line, want string }{
		"one long line":     {"0123456789", "0123456789"},
		"many lines":        {"\ndata: 0123456789", "\n0123456789"},
		"many CR lines":     {"\rdata: 0123456789", "\n0123456789"},
		"many CRLF lines":   {"\r\ndata: 0123456789", "\n0123456789"},
		"lines of all ends": {"\rdata: 0\r\ndata: 1\ndata: 2", "\n0\n1\n2"},
		"comments":          {"\n: 0123456789", ""},
	} {
		t.Run(name, func(t *testing.T) {
			const start, lines = "data: first\ndata: second", 50
			stream := start + strings.Repeat(tc.line, lines)
			want := "first\nsecond" + strings.Repeat(tc.want, lines)
			for _, size := range []int{1, 2, 3, 7, 64} {
				var s sse.Scanner
				var buf []byte
				// A line is read once more when its end is known, which a CR at the end of buf is not yet.
				spoiled := len(start)
				spoil := func() {
					end := bytes.LastIndexAny(buf, "\r\n")
					if end == len(buf)-1 && buf[end] == '\r' {
						return
					}
					for ; spoiled < end; spoiled++ {
						buf[spoiled] = '\n'
					}
				}
				for n := 0; n < len(stream); n += size {
					buf = append(buf, stream[n:min(n+size, len(stream))]...)
					if ev, ok := s.Next(buf); ok {
						t.Fatalf("pieces of %d: an event of %d bytes came out before its blank line", size, ev.Size)
					}
					spoil()
				}
				buf = append(buf, "\n\n"...)
				ev, ok := s.Next(buf)
				if !ok || ev.Size != len(buf) || string(ev.Data) != want {
					t.Errorf("pieces of %d: %v, %d of %d bytes, data %q, want %q", size, ok, ev.Size, len(buf), ev.Data, want)
				}
			}
		})
	}
	t.Run("inside a line", func(t *testing.T) {
		var s sse.Scanner
		buf := []byte("data: ")
		for range 100 {
			buf = append(buf, "0123456789"...)
			if _, ok := s.Next(buf); ok {
				t.Fatal("an event came out before its blank line")
			}
			copy(buf[len(buf)-10:], "\n\r\r\n\n\n\r\n\n\n")
		}
		buf = append(buf, "\n\n"...)
		if ev, ok := s.Next(buf); !ok || ev.Size != len(buf) || len(ev.Data) != 1000 {
			t.Errorf("%v, %d of %d bytes, %d bytes of data", ok, ev.Size, len(buf), len(ev.Data))
		}
	})
}

func TestNextDoesNotAllocate(t *testing.T) {
	burst := []byte(strings.Repeat("event: x\ndata: {\"a\":1}\n\n: ping\r\n\r\ndata: a\ndata: b\n\n", 20))
	var s sse.Scanner
	run := func() {
		s.Reset()
		for b := burst; ; {
			ev, ok := s.Next(b)
			if !ok {
				break
			}
			b = b[ev.Size:]
		}
	}
	run()
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("a burst of 60 events allocates %v times, want 0", n)
	}
}

func FuzzEvents(f *testing.F) {
	for i, seed := range []string{
		"data: {\"choices\":[]}\n\ndata: [DONE]\n\n",
		"\xEF\xBB\xBFevent: error\r\ndata: {\r\ndata: }\r\n\r\n: ping\r\n\r\n",
		"data\rdata:\rdata: \r\r\n\n\r\n\r",
		"id: 1\nevent:x\nevent\n\ndata", ":\n\n:\r\r", "\xEF\xBB", "\n\r\n\r\r\n \t\n", "data: \xff\x00\n\n",
	} {
		f.Add([]byte(seed), uint64(i))
	}
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		want, wantRest := reference(string(stream))
		sum := len(wantRest)
		for _, ev := range want {
			sum += ev.Size
		}
		if sum != len(stream) {
			t.Fatalf("the reference accounts for %d of %d bytes", sum, len(stream))
		}
		var s sse.Scanner
		rng := rand.New(rand.NewPCG(seed, 1))
		for range 4 {
			s.Reset()
			var pieces [][]byte
			for b := stream; len(b) > 0; {
				n := 1 + rng.IntN(min(len(b), 1+rng.IntN(40)))
				pieces = append(pieces, b[:n])
				b = b[n:]
			}
			got, rest := read(&s, pieces)
			if !slices.Equal(got, want) || rest != wantRest {
				t.Fatalf("seed %d, stream %q in pieces %q:\n got %v rest %q\nwant %v rest %q", seed, stream, pieces, got, rest, want, wantRest)
			}
		}
	})
}

func BenchmarkNext(b *testing.B) {
	chunk := `data: {"id":"chatcmpl-0d2f8a6c4b1e4f6d9a7c","object":"chat.completion.chunk","created":1764000000,` +
		`"model":"meta-llama/Llama-3.1-70B-Instruct","choices":[{"index":0,"delta":{"content":" world"},` +
		`"logprobs":null,"finish_reason":null}]}`
	for name, end := range map[string]string{"LF": "\n\n", "CRLF": "\r\n\r\n"} {
		b.Run("burst16K/"+name, func(b *testing.B) {
			one := []byte(chunk + end)
			burst := bytes.Repeat(one, 16<<10/len(one))
			events := len(burst) / len(one)
			var s sse.Scanner
			b.ReportAllocs()
			b.SetBytes(int64(len(burst)))
			for b.Loop() {
				n := 0
				for rest := burst; ; n++ {
					ev, ok := s.Next(rest)
					if !ok {
						break
					}
					rest = rest[ev.Size:]
				}
				if n != events {
					b.Fatalf("%d events, want %d", n, events)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(events), "ns/event")
		})
	}
}
