package resume_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"headrace/gateway/openai"
	"headrace/gateway/resume"
	"headrace/gateway/sse"
)

// events splits a stream.
func events(t testing.TB, stream string) (all []sse.Event) {
	t.Helper()
	var s sse.Scanner
	for rest := []byte(stream); ; {
		ev, ok := s.Next(rest)
		if !ok {
			if ev, ok = s.Last(rest); !ok {
				return all
			}
		}
		rest = rest[ev.Size:]
		ev.Data = bytes.Clone(ev.Data)
		all = append(all, ev)
	}
}

// see shows s the events of a first attempt.
func see(t testing.TB, s *resume.Story, stream string) {
	t.Helper()
	for _, ev := range events(t, stream) {
		var c openai.Chunk
		c.Parse(ev.Name, ev.Data)
		s.See(&c, &ev)
	}
}

// goOn passes the events of a later attempt through s.
func goOn(t testing.TB, s *resume.Story, stream string, wantUsage bool) (string, resume.Reason) {
	t.Helper()
	var dst []byte
	for _, ev := range events(t, stream) {
		var c openai.Chunk
		c.Parse(ev.Name, ev.Data)
		var r resume.Reason
		if dst, r = s.Continue(dst, &c, &ev, wantUsage); r != resume.None {
			return string(dst), r
		}
	}
	return string(dst), resume.None
}

// spoken is what a caller makes of a stream: texts joined, by encoding/json after the raw strings are put together, so that a
// surrogate pair in two pieces is whole again.
type spoken struct {
	raw         string
	ids, models map[string]bool
	roles       int
	finish      string
	usage       map[string]any
	done        int
}

func (s *spoken) text(t testing.TB) string {
	t.Helper()
	var text string
	if err := json.Unmarshal([]byte(`"`+s.raw+`"`), &text); err != nil {
		t.Fatalf("%q: %v", s.raw, err)
	}
	return text
}

func listen(t testing.TB, stream string) *spoken {
	t.Helper()
	sp := &spoken{ids: map[string]bool{}, models: map[string]bool{}}
	for _, ev := range events(t, stream) {
		if string(ev.Data) == "[DONE]" {
			sp.done++
			continue
		}
		if ev.Data == nil {
			continue
		}
		var e struct {
			ID, Model string
			Choices   []struct {
				Delta struct {
					Role    string
					Content json.RawMessage
				}
				Text   json.RawMessage
				Finish string `json:"finish_reason"`
			}
			Usage map[string]any
		}
		if err := json.Unmarshal(ev.Data, &e); err != nil {
			t.Fatalf("%q: %v", ev.Data, err)
		}
		sp.ids[e.ID], sp.models[e.Model] = true, true
		for _, c := range e.Choices {
			if c.Delta.Role != "" {
				sp.roles++
			}
			sp.raw += inside(c.Delta.Content) + inside(c.Text)
			if c.Finish != "" {
				sp.finish += c.Finish
			}
		}
		if e.Usage != nil {
			sp.usage = e.Usage
		}
	}
	return sp
}

func inside(v json.RawMessage) string {
	if len(v) < 2 || v[0] != '"' {
		return ""
	}
	return string(v[1 : len(v)-1])
}

// host writes a stream as an engine does.
type host struct {
	id     string
	chat   bool
	odd    *rand.Rand // nil for vLLM's own form
	prompt int
	fp     string
}

func (h host) event(choice string) string {
	object := "text_completion"
	if h.chat {
		object = "chat.completion.chunk"
	}
	data := fmt.Sprintf(`{"id":%q,"object":%q,"created":%d,"model":"served-by-%s","choices":[%s]`, h.id, object, len(h.id), h.id, choice)
	if h.fp != "" {
		data += `,"system_fingerprint":"` + h.fp + `"`
	}
	return h.frame(data + "}")
}

func (h host) frame(data string) string {
	if h.odd == nil {
		return "data: " + data + "\n\n"
	}
	end := []string{"\n", "\r\n", "\r"}[h.odd.IntN(3)]
	s := ""
	if h.odd.IntN(5) == 0 {
		s += ": ping" + end
	}
	if h.odd.IntN(4) == 0 { // white space between values may be line ends
		data = strings.ReplaceAll(data, `,"choices":[`, ","+end+"data:"+`"choices":[`+end+"data: ")
	}
	if h.odd.IntN(2) == 0 {
		s += "data:" + data + end
	} else {
		s += "data: " + data + end
	}
	return s + end + map[bool]string{true: ": idle" + end + end}[h.odd.IntN(6) == 0]
}

// stream says the raw pieces; finish "" breaks off behind them.
func (h host) stream(pieces []string, finish string) string {
	s := ""
	if h.chat {
		s = h.event(`{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}`)
	}
	for i, p := range pieces {
		f := "null"
		if finish != "" && i == len(pieces)-1 {
			f = strconv.Quote(finish)
		}
		if h.chat {
			s += h.event(`{"index":0,"delta":{"content":"` + p + `"},"logprobs":null,"finish_reason":` + f + `,"stop_reason":null}`)
		} else {
			s += h.event(`{"index":0,"text":"` + p + `","logprobs":null,"finish_reason":` + f + `,"stop_reason":null}`)
		}
	}
	if finish != "" {
		u := h.event(``)
		u = strings.Replace(u, `"choices":[`, `"usage":{"prompt_tokens":`+strconv.Itoa(h.prompt)+`,"total_tokens":`+strconv.Itoa(h.prompt+len(pieces))+
			`,"completion_tokens":`+strconv.Itoa(len(pieces))+`},"choices":[`, 1)
		s += u + h.frame("[DONE]")
	}
	return s
}

// tokens are what is cut at: as raw JSON, with the escapes that engines write.
var tokens = []string{
	" water", " the", " stone", "ing", "'s", " größer", " 水車", " 🦊", `\n`, `\n\n`, `\"`, ` \"`, `\\`, `\\n`, `\t`, `\r\n`, `\u2028`, ` \u00e9`,
	`\ud83e\udd8a`, ` \ud83c\uddeb`, `\ud83c\uddee`, " 👩‍🚀", ` e\u0301`, " data:", " [DONE]", ` {\"a\":1}`, " ", "  ", `\u00a0`, `\/`, "<b>", `\u0000`, `\u001f`,
	"\ufffd ", `\f`, "\u3000",
}

func TestStoryOverAnyCut(t *testing.T) {
	const seed = 11
	rng := rand.New(rand.NewPCG(seed, seed))
	continued, restarted, rounds := 0, 0, 4000
	if underRace {
		rounds = 400
	}
	for round := range rounds {
		var pieces []string
		for range 1 + rng.IntN(12) {
			pieces = append(pieces, tokens[rng.IntN(len(tokens))])
		}
		if c := checkCut(t, pieces, rng.IntN(len(pieces)+1), rng.IntN(2) == 0, rng.IntN(2) == 0, rng); c {
			continued++
		} else {
			restarted++
		}
		if t.Failed() {
			t.Fatalf("seed %d, round %d", seed, round)
		}
	}
	if continued < rounds/2 || restarted < rounds/40 {
		t.Errorf("%d continued, %d not: the test tests little", continued, restarted)
	}
}

// checkCut breaks an answer behind cut pieces and continues it from another host, that goes on exactly behind what it was sent.
func checkCut(t *testing.T, pieces []string, cut int, chat, trims bool, rng *rand.Rand) (continued bool) {
	t.Helper()
	first := host{id: "first", chat: chat, prompt: 7}
	second := host{id: "other-1", chat: chat, odd: rng, fp: "fp"}
	whole := decoded(t, strings.Join(pieces, ""))
	var s resume.Story
	s.Begin(chat, false, 1<<20)
	defer s.Release()
	stream := first.stream(pieces[:cut], "")
	see(t, &s, stream)

	body := `{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":100000}`
	if !chat {
		body = `{"model":"m","prompt":"say \"hi\"\n","max_tokens":100000}`
	}
	ask, r := s.Ask(nil, []byte(body), nil, int64(cut), trims)
	if r != resume.None {
		if r != resume.Unreadable || !strings.HasSuffix(decoded(t, strings.Join(pieces[:cut], "")), "\ufffd") {
			t.Errorf("%q cut at %d: %v", pieces, cut, r)
		}
		return false
	}
	had := sent(t, ask, chat)
	if !strings.HasPrefix(whole, had) {
		t.Errorf("%q cut at %d: asked to go on behind %q", pieces, cut, had)
		return false
	}
	rest := split(whole[len(had):], rng)
	if len(rest) == 0 {
		rest = []string{""}
	}
	limit, _ := strconv.Atoi(string(members(t, ask)["max_tokens"]))
	given := 100_000 - limit // tokens behind which it goes on; white space that it writes again is none of them
	second.prompt = 7 + given
	if continued = had != ""; given > cut || given < 0 || !continued && given > 0 {
		t.Errorf("%q cut at %d: %d tokens given", pieces, cut, given)
	}
	s.Seam()
	more, r := goOn(t, &s, second.stream(rest, "stop"), true)
	if r != resume.None {
		t.Errorf("%q cut at %d: continuing: %v", pieces, cut, r)
		return false
	}
	got := listen(t, stream+more)
	wantRoles := 0
	if chat {
		wantRoles = 1
	}
	if text := got.text(t); text != whole || got.roles != wantRoles || len(got.ids) != 1 || len(got.models) != 1 || got.finish != "stop" || got.done != 1 {
		t.Errorf("%q cut at %d, chat %v, trims %v, went on behind %q:\n got %q\nwant %q\n%+v\n%s", pieces, cut, chat, trims, had, text, whole, got, stream+more)
	}
	completion := given + len(rest)
	if got.usage["prompt_tokens"] != 7. || got.usage["completion_tokens"] != float64(completion) || got.usage["total_tokens"] != float64(7+completion) {
		t.Errorf("usage %v, want 7 and %d", got.usage, completion)
	}
	return continued
}

func decoded(t testing.TB, raw string) (s string) {
	t.Helper()
	if err := json.Unmarshal([]byte(`"`+raw+`"`), &s); err != nil {
		t.Fatalf("%q: %v", raw, err)
	}
	return s
}

// sent is the text that a body asks to continue.
func sent(t testing.TB, body []byte, chat bool) string {
	t.Helper()
	var q struct {
		Messages []struct{ Role, Content string }
		Prompt   string
		Continue bool  `json:"continue_final_message"`
		Add      *bool `json:"add_generation_prompt"`
		Stream   bool
	}
	if err := json.Unmarshal(body, &q); err != nil || !q.Stream {
		t.Fatalf("%s: %v", body, err)
	}
	if !chat {
		return strings.TrimPrefix(q.Prompt, "say \"hi\"\n")
	}
	if q.Continue != (len(q.Messages) == 2) || q.Continue != (q.Add != nil && !*q.Add) {
		t.Fatalf("%s", body)
	}
	if !q.Continue {
		return ""
	}
	return q.Messages[1].Content
}

// split cuts text into raw pieces at random, each written with more or fewer escapes, surrogate pairs now and then in two.
func split(text string, rng *rand.Rand) (pieces []string) {
	cur := ""
	put := func(raw string) {
		if cur += raw; rng.IntN(2) == 0 {
			pieces, cur = append(pieces, cur), ""
		}
	}
	for _, c := range text {
		switch {
		case c > 0xffff && rng.IntN(2) == 0:
			c -= 0x10000
			put(fmt.Sprintf(`\u%04x`, 0xd800+c>>10))
			put(fmt.Sprintf(`\u%04X`, 0xdc00+c&0x3ff))
		case rng.IntN(4) == 0 && c <= 0xffff:
			put(fmt.Sprintf(`\u%04x`, c))
		default:
			b, _ := json.Marshal(string(c))
			put(string(b[1 : len(b)-1]))
		}
	}
	if cur != "" {
		pieces = append(pieces, cur)
	}
	return pieces
}

// TestSeenWithoutAnEnd: what the caller got and cannot read, whatever words are found in it, cannot be gone on with.
func TestSeenWithoutAnEnd(t *testing.T) {
	for _, gather := range []bool{false, true} {
		var s resume.Story
		s.Begin(true, gather, 1<<10)
		defer s.Release()
		see(t, &s, host{id: "a", chat: true}.stream([]string{"a"}, "")+`data: {"id":"a","choices":[{"index":0,"delta":{"content":"b"}}`+"\n\n")
		if why := s.Reason(); why != resume.Unreadable {
			t.Errorf("gather %t: reason %q", gather, why)
		}
	}
}
