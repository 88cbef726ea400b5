package jobs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// chunksOf is an event stream as vLLM writes it, in events, of an answer in the given pieces.
func chunksOf(pieces []string, end string) (events []string) {
	event := func(delta any, finish any) {
		c := map[string]any{"index": 0, "delta": delta, "logprobs": nil, "finish_reason": finish}
		events = append(events, "data: "+string(encode(map[string]any{
			"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []any{c},
		}))+end+end)
	}
	event(map[string]string{"role": "assistant", "content": ""}, nil)
	for _, p := range pieces {
		event(map[string]string{"content": p}, nil)
	}
	event(map[string]string{}, "stop")
	return append(events, "data: [DONE]"+end+end)
}

// randomText has characters of all planes, joined emoji, line ends, quotes and text that looks like the protocol.
func randomText(rng *rand.Rand) string {
	odd := []string{"👩‍👩‍👧‍👦", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "\r\n", "\n\n", "\"", "\\", "data: ", "[DONE]", "\u2028", "e\u0301", "\uFEFF", `"finish_reason":"stop"`, "\x00", "\t", "</s>", "न्", "\U0010FFFD"}
	var b strings.Builder
	for range rng.IntN(12) {
		switch rng.IntN(4) {
		case 0:
			b.WriteString(odd[rng.IntN(len(odd))])
		case 1:
			r := rune(rng.IntN(0x110000))
			if r == utf8.RuneError || !utf8.ValidRune(r) {
				r = 'x'
			}
			b.WriteRune(r)
		case 2:
			b.WriteString(strings.Repeat(string(rune('a'+rng.IntN(26))), rng.IntN(40)))
		default:
			b.WriteRune(rune(0x4e00 + rng.IntN(5000)))
		}
	}
	return b.String()
}

func quoted(s string) json.RawMessage { return encode(s) }

// asciiQuoted is s as Python's json.dumps writes it.
func asciiQuoted(s string) json.RawMessage {
	b := []byte{'"'}
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r >= 0x20 && r < 0x7f:
			b = append(b, byte(r))
		case r > 0xffff:
			r -= 0x10000
			b = fmt.Appendf(b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
	}
	return append(b, '"')
}

// replace decodes bytes as Python's errors="replace" does.
func replace(b []byte) string {
	var out strings.Builder
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 {
			for n < len(b) && !utf8.RuneStart(b[n]) && !utf8.FullRune(b[:n]) && n < 4 { // an unfinished character is one replacement
				n++
			}
		}
		out.WriteRune(r)
		b = b[n:]
	}
	return out.String()
}

// generation says how a worker yields a stream.
type generation func(rng *rand.Rand, events []string) []json.RawMessage

var generations = map[string]generation{
	// up to 2.23: whole events, ever more of them
	"batches": func(_ *rand.Rand, events []string) (out []json.RawMessage) {
		for n := 1; len(events) > 0; n = min(n*3, 50) {
			k := min(n, len(events))
			out = append(out, quoted(strings.Join(events[:k], "")))
			events = events[k:]
		}
		return out
	},
	// from 2.24: whatever has come, here without a cut character
	"cuts": func(rng *rand.Rand, events []string) (out []json.RawMessage) {
		for rest := strings.Join(events, ""); rest != ""; {
			n := min(1+rng.IntN(200), len(rest))
			for n < len(rest) && !utf8.RuneStart(rest[n]) {
				n++
			}
			out = append(out, asciiQuoted(rest[:n]))
			rest = rest[n:]
		}
		return out
	},
	"bytes": func(_ *rand.Rand, events []string) (out []json.RawMessage) {
		for _, r := range strings.Join(events, "") {
			out = append(out, asciiQuoted(string(r)))
		}
		return out
	},
	"lists of texts": func(rng *rand.Rand, events []string) (out []json.RawMessage) {
		for part := range slices.Chunk(events, 1+rng.IntN(4)) {
			out = append(out, encode(part))
		}
		return out
	},
}

// differ shows where two texts part.
func differ(got, want string) string {
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	from := max(0, i-40)
	return fmt.Sprintf("%d bytes, want %d, differ at byte %d: got %q, want %q", len(got), len(want), i, got[from:min(len(got), i+60)], want[from:min(len(want), i+60)])
}

// relay runs yields through a stream and returns all that came out.
func relay(t testing.TB, a *asked, yields []json.RawMessage) (out []byte, s *stream) {
	t.Helper()
	s = &stream{a: a}
	take := func() {
		p := s.take()
		if len(p) > 0 && !slices.Contains([]byte("\r\n"), p[len(p)-1]) {
			t.Errorf("%q is no whole event", p)
		}
		out = append(out, p...)
		s.drop()
	}
	for _, y := range yields {
		if f := s.add(y); f != nil {
			t.Fatalf("yield %s: %+v", y, f)
		}
		take()
	}
	f, cut := s.finish()
	if f != nil || cut {
		t.Fatalf("finish: %+v, cut %v", f, cut)
	}
	take()
	return out, s
}

func chat() *asked {
	return &asked{route: "/v1/chat/completions", kind: routeChat, stream: true, model: "m", jobID: "j", created: 7}
}

func randomPieces(rng *rand.Rand) (pieces []string) {
	for range rng.IntN(30) {
		pieces = append(pieces, randomText(rng))
	}
	if rng.IntN(8) == 0 {
		pieces = append(pieces, strings.Repeat("long 🦊 ", 3000))
	}
	return pieces
}

// TestStreamIsByteExact feeds random answers through every way in which workers cut text.
func TestStreamIsByteExact(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 1))
	for round := range 60 {
		end := []string{"\n", "\r\n", "\r"}[rng.IntN(3)]
		events := chunksOf(randomPieces(rng), end)
		if rng.IntN(3) == 0 {
			events = slices.Insert(events, rng.IntN(len(events)), ": keep-alive"+end+end)
		}
		if rng.IntN(3) == 0 {
			events[0] = bom + events[0]
		}
		want := strings.Join(events, "")
		for name, cut := range generations {
			got, s := relay(t, chat(), cut(rng, events))
			if string(got) != want {
				t.Fatalf("seed %d round %d, %s: %s", seed, round, name, differ(string(got), want))
			}
			if !s.done || !s.ended || s.cuts.n != 0 {
				t.Fatalf("seed %d round %d, %s: done %v, ended %v, destroyed %d", seed, round, name, s.done, s.ended, s.cuts.n)
			}
		}
	}
}

// TestDestroyedCharacters cuts streams within characters, as worker-vllm from 2.24 does: what it destroyed is passed on and
// counted, and nothing else changes.
func TestDestroyedCharacters(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 2))
	most := 0
	for round := range 60 {
		stream := strings.Join(chunksOf(randomPieces(rng), "\n"), "")
		var yields []json.RawMessage
		var want strings.Builder
		destroyed := 0
		for from := 0; from < len(stream); {
			to := min(from+8+rng.IntN(120), len(stream)) // no character is cut twice
			if to < len(stream) && !utf8.RuneStart(stream[to]) {
				destroyed++
			}
			text := replace([]byte(stream[from:to]))
			want.WriteString(text)
			yields = append(yields, asciiQuoted(text))
			from = to
		}
		got, s := relay(t, chat(), yields)
		if string(got) != want.String() {
			t.Fatalf("seed %d round %d: %s", seed, round, differ(string(got), want.String()))
		}
		if s.cuts.n != destroyed {
			t.Fatalf("seed %d round %d: %d characters were destroyed, %d counted", seed, round, destroyed, s.cuts.n)
		}
		most = max(most, destroyed)
	}
	if most == 0 {
		t.Fatalf("seed %d: no character was ever cut", seed)
	}
}

func TestCuts(t *testing.T) {
	const x = replacement
	for name, tc := range map[string]struct {
		pieces []string
		want   int
	}{
		"none":                          {[]string{"a", "b"}, 0},
		"the model's own":               {[]string{"a" + x, "b"}, 0},
		"the model's own at the front":  {[]string{"a", x + "b"}, 0},
		"one":                           {[]string{"a" + x, x + x + "b"}, 1},
		"one in three pieces":           {[]string{"a" + x, x, x + "b"}, 1},
		"two":                           {[]string{"a" + x, x + "b" + x, x + x + x + "c"}, 2},
		"an empty piece in between":     {[]string{"a" + x, "", x + "b"}, 1},
		"one after another":             {[]string{"a" + x, x + "b", "c" + x, x}, 2},
		"begins with a lone character":  {[]string{x, "a"}, 0},
		"begins with a lone piece, cut": {[]string{x, x + "a"}, 1},
	} {
		var c cuts
		for _, p := range tc.pieces {
			c.piece([]byte(p))
		}
		if c.n != tc.want {
			t.Errorf("%s: %q: counted %d, want %d", name, tc.pieces, c.n, tc.want)
		}
	}
}

// compact is a stream with the JSON of each event on one line, for streams made of objects.
func compact(t *testing.T, stream string) (out []string) {
	t.Helper()
	for ev := range strings.SplitSeq(strings.TrimSuffix(stream, "\n\n"), "\n\n") {
		d := data([]byte(ev))
		if string(d) == "[DONE]" {
			out = append(out, "[DONE]")
			continue
		}
		var b bytes.Buffer
		if err := json.Compact(&b, d); err != nil {
			t.Fatalf("event %q: %v", ev, err)
		}
		out = append(out, b.String())
	}
	return out
}

// TestObjectsBecomeEvents is about workers that yield objects: each comes out as it went in.
func TestObjectsBecomeEvents(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 3))
	for round := range 40 {
		events := chunksOf(randomPieces(rng), "\n")
		var objects []json.RawMessage
		for _, e := range events[:len(events)-1] {
			objects = append(objects, data([]byte(e)))
		}
		want := strings.Join(events, "")
		var lists []json.RawMessage
		for part := range slices.Chunk(objects, 1+rng.IntN(5)) {
			lists = append(lists, encode(part))
		}
		for name, yields := range map[string][]json.RawMessage{"single": objects, "lists without [DONE]": lists} {
			got, s := relay(t, chat(), yields)
			if string(got) != want {
				t.Fatalf("seed %d round %d, %s: %s", seed, round, name, differ(string(got), want))
			}
			if s.kinds[kindChunk] != int64(len(objects)) {
				t.Fatalf("%s: counted %v", name, s.kinds)
			}
		}
	}
}

// TestSGLangStream is about events whose JSON stands on several data lines: they are valid as they are.
func TestSGLangStream(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 4))
	for round := range 30 {
		events := chunksOf(randomPieces(rng), "\n")
		for i, e := range events[:len(events)-1] {
			var b bytes.Buffer
			if err := json.Indent(&b, data([]byte(e)), "", "  "); err != nil {
				t.Fatal(err)
			}
			events[i] = "data: " + strings.ReplaceAll(b.String(), "\n", "\ndata: ") + "\n\n"
		}
		want := strings.Join(events, "")
		got, s := relay(t, chat(), generations["cuts"](rng, events))
		if string(got) != want || !s.ended || !s.done {
			t.Fatalf("seed %d round %d: ended %v, done %v, %s", seed, round, s.ended, s.done, differ(string(got), want))
		}
	}
}

func TestStreamForms(t *testing.T) {
	raw := func(s ...string) (out []json.RawMessage) {
		for _, one := range s {
			out = append(out, json.RawMessage(one))
		}
		return out
	}
	answer := `{"id":"chatcmpl-9","object":"chat.completion","created":3,"model":"mm","choices":[{"index":0,"message":{"role":"assistant","content":"Hi <b>"},"logprobs":null,"finish_reason":"stop","stop_reason":null}],"usage":{"prompt_tokens":1,"total_tokens":2,"completion_tokens":1}}`
	unrolled := []string{
		`{"id":"chatcmpl-9","object":"chat.completion.chunk","created":3,"model":"mm","choices":[{"index":0,"delta":{"role":"assistant","content":"Hi <b>"},"logprobs":null,"finish_reason":null}]}`,
		`{"id":"chatcmpl-9","object":"chat.completion.chunk","created":3,"model":"mm","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":null}]}`,
		`{"id":"chatcmpl-9","object":"chat.completion.chunk","created":3,"model":"mm","choices":[],"usage":{"prompt_tokens":1,"total_tokens":2,"completion_tokens":1}}`,
		"[DONE]",
	}
	head := `{"id":"chatcmpl-j","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,`
	for name, tc := range map[string]struct {
		route  string
		usage  bool
		limit  int
		yields []json.RawMessage
		want   []string
	}{
		"native tokens": {
			usage:  true,
			yields: raw(`{"choices":[{"tokens":["Hel"]}],"usage":{"input":7,"output":1}}`, `{"choices":[{"tokens":["lo"," you"]}],"usage":{"input":7,"output":3}}`),
			want: []string{
				head + `"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}`,
				head + `"delta":{"content":"Hel"},"logprobs":null,"finish_reason":null}]}`,
				head + `"delta":{"content":"lo you"},"logprobs":null,"finish_reason":null}]}`,
				head + `"delta":{},"logprobs":null,"finish_reason":"stop"}]}`,
				`{"id":"chatcmpl-j","object":"chat.completion.chunk","created":7,"model":"m","choices":[],"usage":{"prompt_tokens":7,"total_tokens":10,"completion_tokens":3}}`,
				"[DONE]",
			},
		},
		"native tokens that nobody has counted": {
			usage:  true,
			yields: raw(`{"choices":[{"tokens":["Hi"]}]}`),
			want: []string{
				head + `"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}`,
				head + `"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}]}`,
				head + `"delta":{},"logprobs":null,"finish_reason":"stop"}]}`,
				"[DONE]",
			},
		},
		"native tokens of a text completion that reached its limit": {
			route: "/v1/completions", limit: 2,
			yields: raw(`{"choices":[{"tokens":["a","b"]}],"usage":{"input":1,"output":2}}`),
			want: []string{
				`{"id":"cmpl-j","object":"text_completion","created":7,"model":"m","choices":[{"index":0,"text":"ab","logprobs":null,"finish_reason":null}]}`,
				`{"id":"cmpl-j","object":"text_completion","created":7,"model":"m","choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]}`,
				"[DONE]",
			},
		},
		"a whole answer":                    {usage: true, yields: raw(answer), want: unrolled},
		"a whole answer, usage not asked":   {yields: raw(answer), want: slices.Concat(unrolled[:2], unrolled[3:])},
		"a whole answer as a JSON string":   {usage: true, yields: raw(string(quoted(answer))), want: unrolled},
		"a whole answer in two texts":       {usage: true, yields: raw(string(quoted(answer[:100])), string(quoted(answer[100:]))), want: unrolled},
		"without the last blank line":       {yields: raw(`"data: {\"a\":1}\n\ndata: [DONE]"`), want: []string{`{"a":1}`, "[DONE]"}},
		"without the last blank line, CRLF": {yields: raw(`"data: {\"a\":1}\n\ndata: [DONE]\r\n"`), want: []string{`{"a":1}`, "[DONE]"}},
		"without [DONE]":                    {yields: raw(`"data: {\"a\":1}\n\n"`), want: []string{`{"a":1}`, "[DONE]"}},
		"nulls and numbers are passed over": {yields: raw("null", "3", `"data: {\"a\":1}\n\n"`, "true"), want: []string{`{"a":1}`, "[DONE]"}},
		"pretty JSON":                       {yields: raw("{\n \"object\": \"chat.completion.chunk\",\r\n \"choices\": []\n}"), want: []string{`{"object":"chat.completion.chunk","choices":[]}`, "[DONE]"}},
		"responses end without [DONE]":      {route: "/v1/responses", yields: raw(`"event: response.completed\ndata: {\"type\":\"response.completed\"}\n\n"`), want: []string{`{"type":"response.completed"}`}},
		"typed objects":                     {route: "/v1/messages", yields: raw(`{"type":"content_block_delta","index":0}`), want: []string{`{"type":"content_block_delta","index":0}`}},
	} {
		t.Run(name, func(t *testing.T) {
			a := chat()
			a.usage, a.limit = tc.usage, tc.limit
			switch tc.route {
			case "/v1/completions":
				a.kind = routeCompletions
			case "":
			default:
				a.kind = routeOther
			}
			got, _ := relay(t, a, tc.yields)
			if c := compact(t, string(got)); !slices.Equal(c, tc.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(c, "\n"), strings.Join(tc.want, "\n"))
			}
		})
	}
}

func TestToolCallsCarryTheirPlacesWhenStreamed(t *testing.T) {
	got, _ := relay(t, chat(), []json.RawMessage{json.RawMessage(`{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":null,"tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"{}"}},{"id":"b","type":"function","function":{"name":"g","arguments":"{}"}}]},"finish_reason":"tool_calls"}]}`)})
	for _, want := range []string{`"id":"a","index":0`, `"id":"b","index":1`} {
		if !strings.Contains(string(got), want) {
			t.Errorf("%s is not in %s", want, got)
		}
	}
}

func TestHalfAnEventAtTheEndIsLeftOut(t *testing.T) {
	s := &stream{a: chat()}
	if f := s.add(quoted("data: {\"a\":1}\n\ndata: {\"b\":")); f != nil {
		t.Fatal(f)
	}
	f, cut := s.finish()
	if f != nil || !cut || string(s.take()) != "data: {\"a\":1}\n\n" {
		t.Errorf("%+v, cut %v, %q", f, cut, s.take())
	}
}

func TestAnErrorInPlaceOfTheFirstEventIsAStatus(t *testing.T) {
	s := &stream{a: chat()}
	f := s.add(quoted(": ping\n\ndata: {\"error\":{\"message\":\"too long\",\"type\":\"BadRequestError\",\"param\":null,\"code\":400}}\n\n"))
	if f == nil || f.status != 400 || f.message != "too long" || s.take() != nil {
		t.Errorf("%+v, %q", f, s.take())
	}
}

// FuzzYields holds that any cut of a text gives the same bytes, and that no yield whatever makes the decoder panic.
func FuzzYields(f *testing.F) {
	f.Add("data: {\"a\":1}\n\ndata: [DONE]\n\n", uint64(1), []byte(`{"choices":[{"tokens":["a"]}]}`))
	f.Add("\xEF\xBB\xBFdata: {}\r\n\r\n: c\r\rdata: x\r\ndata: y\r\n\r\n", uint64(2), []byte(`["data: {}\n\n",{"object":"chat.completion.chunk"}]`))
	f.Add("data: {\"error\":{\"code\":400}}\n\n", uint64(3), []byte(`{"error":"{'a': 1}"}`))
	f.Add("", uint64(4), []byte(`"\ud83d\ude00 \ud83d"`))
	f.Add("{\"choices\":[{\"message\":{}}]}", uint64(5), []byte(`{"choices":[{"message":{"tool_calls":[{}]}}],"usage":{"a":1}}`))
	f.Fuzz(func(t *testing.T, text string, seed uint64, odd []byte) {
		text = strings.ToValidUTF8(text, "?")
		run := func(yields []json.RawMessage) (string, *failure, bool) {
			s := &stream{a: chat()}
			var out []byte
			for _, y := range yields {
				f := s.add(y)
				out = append(out, s.take()...)
				s.drop()
				if f != nil {
					return string(out), f, false
				}
			}
			f, cut := s.finish()
			return string(append(out, s.take()...)), f, cut
		}
		whole, wf, wcut := run([]json.RawMessage{quoted(text)})
		rng := rand.New(rand.NewPCG(seed, 5))
		cut, cf, ccut := run(generations["cuts"](rng, []string{text}))
		switch {
		case (wf == nil) != (cf == nil):
			t.Fatalf("whole: %+v, cut: %+v", wf, cf)
		case whole != cut || wcut != ccut:
			t.Fatalf("whole %q (%v), cut %q (%v)", whole, wcut, cut, ccut)
		}
		if !json.Valid(odd) {
			return
		}
		run([]json.RawMessage{odd, quoted(text), odd})
		for _, kind := range []routeKind{routeOther, routeChat, routeCompletions} {
			p := &plain{a: &asked{kind: kind}}
			if p.add(odd) == nil && p.add(quoted(text)) == nil {
				if body, f := p.answer(); f == nil && !json.Valid(body) {
					t.Fatalf("%q is not JSON", body)
				}
			}
		}
	})
}

func FuzzUnquote(f *testing.F) {
	f.Add(`"a\n\u00e4\ud83d\ude00\ud83d\/\\\""`)
	f.Add(`"\ud83d\u0041"`)
	f.Add("\"\"\r")
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.TrimSpace(s) // as members of JSON come
		if !utf8.ValidString(s) || !json.Valid([]byte(s)) || s[0] != '"' {
			return
		}
		var want string
		if err := json.Unmarshal([]byte(s), &want); err != nil {
			t.Fatal(err)
		}
		if got := unquote(nil, json.RawMessage(s)); string(got) != want {
			t.Errorf("%s: got %q, want %q", s, got, want)
		}
	})
}

// A job that is given to another worker may begin its stream anew, and no poll says so.
func TestBegunAnew(t *testing.T) {
	chunk := func(id, delta string) string {
		return `data: {"id":"` + id + `","object":"chat.completion.chunk","choices":[{"index":0,"delta":{` + delta + `},"finish_reason":null}]}` + "\n\n"
	}
	role, word := `"role":"assistant","content":""`, `"content":"x"`
	for name, tc := range map[string]struct {
		events []string
		anew   bool
	}{
		"begun anew":                {[]string{chunk("a", role), chunk("a", word), chunk("a", word), chunk("b", role), chunk("b", word)}, true},
		"as Python writes it":       {[]string{strings.ReplaceAll(chunk("a", role)+chunk("a", word), `":`, `": `), strings.ReplaceAll(chunk("b", role), `":`, `": `)}, true},
		"one answer":                {[]string{chunk("a", role), chunk("a", word), chunk("a", word)}, false},
		"an id for every event":     {[]string{chunk("a", role), chunk("b", role), chunk("c", role), chunk("d", word)}, false},
		"another id without a role": {[]string{chunk("a", role), chunk("a", word), chunk("b", word), chunk("c", word)}, false},
		"a role in every event":     {[]string{chunk("a", role), chunk("a", role), chunk("a", role)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := &stream{a: chat()}
			var f *failure
			var out []byte
			for _, e := range tc.events {
				if f = s.add(quoted(e)); f != nil {
					break
				}
				out = append(out, s.take()...)
				s.drop()
			}
			if (f != nil) != tc.anew || f != nil && f.code != "worker_lost" {
				t.Errorf("failure %+v", f)
			}
			if bytes.Contains(out, []byte(`"b"`)) && tc.anew {
				t.Errorf("the second answer went out: %s", out)
			}
		})
	}
}
