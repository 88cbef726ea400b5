package gateway

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// teacher is a host that tells the numbers of its tokens and goes on behind them, as vLLM does: token i of every answer is number
// teacherFirst+i and reads "t<i> ", but that every fifth is only the front half of a character, which comes with the next one. Its template
// drops white space at the end of an unfinished message, so that only numbers tell where an answer that ends so really ends.
type teacher struct {
	tokens int // of a whole answer
	at     int // events with tokens after which it is lost, 0 for never
	times  int
	mute   bool          // tells no numbers
	deaf   bool          // refuses them
	until  chan struct{} // it is not lost before; nil for at once
	dying  string        // what becomes of the event with which it is lost: "" for none, or one of the next

	mu    sync.Mutex // guards all below
	asked []teacherAsk
}

// Events with which a teacher is lost.
const (
	aborted = "aborted" // with the next token
	torn    = "torn"    // behind it
)

type teacherAsk struct {
	path    string
	body    string
	Numbers bool `json:"return_token_ids"`
	Prompt  json.RawMessage
	Max     *int `json:"max_tokens"`
	Final   bool `json:"continue_final_message"`
	Options *struct {
		Usage bool `json:"include_usage"`
	} `json:"stream_options"`
	Messages    []struct{ Role, Content string }
	Temperature *float64
}

const teacherFirst = 1000

// teacherPrompt are the numbers of every prompt.
var teacherPrompt = []int{7, 77, 777} //nolint:gochecknoglobals // a table

func teacherToken(i int) string {
	if i%5 == 4 {
		return ""
	}
	if i%5 == 0 && i > 0 {
		return fmt.Sprintf("🦊t%d ", i)
	}
	return fmt.Sprintf("t%d ", i)
}

func teacherText(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(teacherToken(i))
	}
	return b.String()
}

func (h *teacher) serve(c *upConn, r *upRequest) bool {
	q := teacherAsk{path: r.URL.Path, body: string(r.body)}
	if err := json.Unmarshal(r.body, &q); err != nil {
		c.send(jsonAnswer(400, `{"error":{"message":"no JSON"}}`))
		return true
	}
	h.mu.Lock()
	h.asked = append(h.asked, q)
	nth := len(h.asked)
	h.times--
	strikes := h.times >= 0
	h.mu.Unlock()
	refuse := func(why string) bool {
		c.send(jsonAnswer(400, fmt.Sprintf(`{"object":"error","message":%q,"type":"BadRequestError","param":null,"code":400}`, why)))
		return true
	}
	chat := strings.HasSuffix(q.path, "/chat/completions")
	from := 0
	prompt := teacherPrompt
	var text string
	switch {
	case chat && q.Final:
		said := strings.TrimRight(q.Messages[len(q.Messages)-1].Content, " ")
		for said != "" {
			one := teacherToken(from)
			if !strings.HasPrefix(said, strings.TrimRight(one, " ")) {
				return refuse("that is not how my answer begins")
			}
			said = strings.TrimPrefix(strings.TrimPrefix(said, strings.TrimRight(one, " ")), " ")
			from++
		}
		for teacherToken(from) == "" {
			from++
		}
		text = " " // which the template has dropped
	case !chat && len(q.Prompt) > 0 && q.Prompt[0] == '[':
		var ids []int
		if h.deaf || json.Unmarshal(q.Prompt, &ids) != nil {
			return refuse("prompt: a text is wanted")
		}
		if len(ids) < len(prompt) || !slices.Equal(ids[:len(prompt)], prompt) {
			return refuse("not the prompt")
		}
		for i, id := range ids[len(prompt):] {
			if id != teacherFirst+i {
				return refuse("not my tokens")
			}
			from++
		}
	}
	n, finish := h.tokens-from, "stop"
	if q.Max == nil && !chat {
		q.Max = new(16)
	}
	if q.Max != nil && *q.Max < n {
		n, finish = *q.Max, "length"
	}
	numbers := q.Numbers && !h.mute
	list := func(ids []int) string {
		if !numbers || ids == nil {
			return "null"
		}
		b, _ := json.Marshal(ids)
		return string(b)
	}
	id := fmt.Sprintf("id-%p-%d", h, nth)
	event := func(text, finish string, ids []int) string {
		b, _ := json.Marshal(text)
		if chat {
			return fmt.Sprintf("data: {\"id\":%q,\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":%s},\"logprobs\":null,\"finish_reason\":%s,\"token_ids\":%s}]}\n\n", id, b, finish, list(ids))
		}
		first := "null"
		if len(ids) > 0 && ids[0] == teacherFirst+from {
			first = list(prompt)
		}
		return fmt.Sprintf("data: {\"id\":%q,\"object\":\"text_completion\",\"created\":1,\"model\":\"m1\",\"choices\":[{\"index\":0,\"text\":%s,\"logprobs\":null,\"finish_reason\":%s,\"stop_reason\":null,\"prompt_token_ids\":%s,\"token_ids\":%s}]}\n\n", id, b, finish, first, list(ids))
	}
	c.send(sseHead)
	if chat {
		all := slices.Clone(prompt)
		for i := range from {
			all = append(all, teacherFirst+i)
		}
		c.sendChunk(fmt.Sprintf("data: {\"id\":%q,\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m1\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}],\"prompt_token_ids\":%s}\n\n", id, list(all)))
	}
	for i := from; i < from+n; i++ {
		if strikes && i == h.at && h.until != nil {
			<-h.until
		}
		if strikes && i == h.at { // by FIN: a reset would take some of what was sent with it
			switch ids := []int{teacherFirst + i}; h.dying {
			case aborted:
				c.sendChunk(event(teacherToken(i), `"abort"`, ids))
			case torn:
				c.sendChunk(strings.TrimSuffix(event(teacherToken(i), "null", ids), "}\n\n") + "\n\n")
			}
			return false
		}
		c.sendChunk(event(text+teacherToken(i), "null", []int{teacherFirst + i}))
		text = ""
	}
	c.sendChunk(event("", `"`+finish+`"`, []int{}))
	if q.Options != nil && q.Options.Usage {
		c.sendChunk(fmt.Sprintf("data: {\"id\":%q,\"object\":\"x\",\"created\":1,\"model\":\"m1\",\"choices\":[],\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d,\"completion_tokens\":%d}}\n\n", id, len(prompt)+from, len(prompt)+from+n, n))
	}
	c.sendChunk(doneEvent)
	c.send(lastChunk)
	return true
}

func (h *teacher) requests() []teacherAsk {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.asked)
}

var numbersToo = router.Prefill{Known: true, OK: true, Trims: true, Tokens: true}

// newTeachers starts a gateway with token numbers wanted.
func newTeachers(t *testing.T, p router.Prefill, hosts ...*teacher) *rig {
	t.Helper()
	var serve []func(*upConn, *upRequest) bool
	for _, h := range hosts {
		serve = append(serve, h.serve)
	}
	g := newOdd(t, p, serve...)
	set := *g.srv.set.Load()
	set.TokenIDs = true
	g.srv.Configure(set)
	for i := range hosts { // the first one is asked first
		g.router.Drain(endpoint.ID(fmt.Sprintf("static:h%d", i)), i > 0)
	}
	return g
}

// first asks the first host, which is lost only when the others are let in.
func (g *rig) first(h *teacher, req string) (body string, err error) {
	g.t.Helper()
	type answer struct {
		body string
		err  error
	}
	got := make(chan answer, 1)
	set := *g.srv.set.Load()
	set.Resume = patience
	g.srv.Configure(set)
	h.until = make(chan struct{})
	go func() {
		_, body, err := g.do(req)
		got <- answer{body, err}
	}()
	eventually(g.t, "the first host is asked", func() bool { return len(h.requests()) > 0 })
	for i := range g.router.Hosts() {
		g.router.Drain(endpoint.ID(fmt.Sprintf("static:h%d", i)), false)
	}
	close(h.until)
	a := wait(g.t, got, "the answer")
	return a.body, a.err
}

// TestContinuesExactly goes on with answers by the numbers of their tokens, wherever they break off.
func TestContinuesExactly(t *testing.T) {
	const n = 41 // the last token has text
	for _, path := range []string{chatPath, "/v1/completions"} {
		for _, stream := range []bool{true, false} {
			for _, at := range []int{1, 4, 5, 17, n - 1} {
				t.Run(fmt.Sprintf("%s, stream %t, after %d", path[4:], stream, at), func(t *testing.T) {
					t.Parallel()
					a, b := &teacher{tokens: n, at: at, times: 1}, &teacher{tokens: n}
					g := newTeachers(t, numbersToo, a, b)
					members := `,"temperature":0.5,"max_tokens":100`
					if stream {
						members += streamed
					}
					body, err := g.first(a, ask(path, members))
					if err != nil || strings.Contains(body, `"token_ids":[`) || strings.Contains(body, `prompt_token_ids":[`) {
						t.Fatalf("%v: %s", err, body)
					}
					if stream {
						s := readTold(t, body)
						if s.text != teacherText(n) || len(s.ids) != 1 || s.finish != "stop" || !s.done || path == chatPath && s.roles["assistant"] != 1 {
							t.Errorf("ids %v, roles %v, finish %q, done %t, text %q", s.ids, s.roles, s.finish, s.done, s.text)
						}
						if want := fmt.Sprintf(`{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d`, len(teacherPrompt), len(teacherPrompt)+n, n); !strings.HasPrefix(s.usage, want) {
							t.Errorf("usage %s, want %s", s.usage, want)
						}
						if object := map[bool]string{true: "chat.completion.chunk", false: "text_completion"}[path == chatPath]; strings.Count(body, `"object":"`+object+`"`) < n*4/5 {
							t.Errorf("not all events are of %s: %s", object, body)
						}
					} else if text := plainText(t, body); text != teacherText(n) {
						t.Errorf("text %q", text)
					}
					asked := b.requests()
					if len(asked) != 1 || asked[0].path != "/v1/completions" || asked[0].Final || !asked[0].Numbers || asked[0].Temperature == nil || *asked[0].Temperature != 0.5 {
						t.Fatalf("asked %+v", asked)
					}
					told := at // tokens; the front of a character comes once more
					if told%5 == 0 {
						told--
					}
					if *asked[0].Max != 100-told {
						t.Errorf("asked for %d tokens, want %d", *asked[0].Max, 100-told)
					}
					r := g.recordN(0)
					if r.Class != outcome.Success || r.Resumes != 1 || r.Output != n || r.Attempts[0].Exact || !r.Attempts[1].Exact || r.Attempts[1].Offset != int64(told) {
						t.Errorf("record %+v", r)
					}
				})
			}
		}
	}
}

// TestExactAgain goes on with what was gone on with, and with what was gone on with by its text.
func TestExactAgain(t *testing.T) {
	const n = 40
	hosts := []*teacher{{tokens: n, at: 6, times: 1}, {tokens: n, at: 13, times: 1}, {tokens: n, at: 22, times: 1}, {tokens: n}}
	g := newTeachers(t, numbersToo, hosts...)
	g.router.SetPrefill("static:h2", model, router.Prefill{Known: true, OK: true, Trims: true}) // which goes on by text only
	for i := range 4 {
		g.router.Drain(endpoint.ID(fmt.Sprintf("static:h%d", i)), i > 0)
	}
	set := *g.srv.set.Load()
	set.Resume = patience
	g.srv.Configure(set)
	got := make(chan string, 1)
	go func() {
		_, body, _ := g.do(ask(chatPath, streamed+`,"max_tokens":90`))
		got <- body
	}()
	for i := range 3 { // one after the other
		eventually(t, "a host is asked", func() bool { return len(hosts[i].requests()) > 0 })
		g.router.Drain(endpoint.ID(fmt.Sprintf("static:h%d", i+1)), false)
	}
	s := readTold(t, wait(t, got, "the answer"))
	if s.text != teacherText(n) || !s.done || s.finish != "stop" || len(s.ids) != 1 {
		t.Errorf("%+v", s)
	}
	r := g.recordN(0)
	var exact []bool
	for _, a := range r.Attempts {
		exact = append(exact, a.Exact)
	}
	if !slices.Equal(exact, []bool{false, true, false, false}) || r.Resumes != 3 {
		t.Errorf("%d resumes, exact %v", r.Resumes, exact)
	}
}

// TestExactFallsBack to text, where numbers are missing or of no use, or refused.
func TestExactFallsBack(t *testing.T) {
	const n = 40
	for name, tc := range map[string]struct {
		mute, deaf bool // the first host tells none, the others take none
		members    string
		numbers    bool // the first host is asked for them
	}{
		"a host that tells none":      {mute: true, members: `,"max_tokens":90`, numbers: true},
		"hosts that take none":        {deaf: true, members: `,"max_tokens":90`, numbers: true},
		"a member nobody knows":       {members: `,"sampler_7":true,"max_tokens":90`, numbers: true},
		"a stop string":               {members: `,"stop":"zzz","max_tokens":90`},
		"no limit, nor a context":     {numbers: true},
		"the caller will not have it": {members: `,"return_token_ids":false,"max_tokens":90`},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, c := &teacher{tokens: n, at: 17, times: 1, mute: tc.mute}, &teacher{tokens: n, deaf: tc.deaf}, &teacher{tokens: n, deaf: tc.deaf}
			g := newTeachers(t, numbersToo, a, b, c)
			body, err := g.first(a, ask(chatPath, streamed+tc.members))
			if s := readTold(t, body); err != nil || s.text != teacherText(n) || !s.done || len(s.ids) != 1 {
				t.Errorf("%v: %+v", err, s)
			}
			if a.requests()[0].Numbers != tc.numbers || strings.Contains(body, "token_ids\":[") {
				t.Errorf("asked %s, told %s", a.requests()[0].body, body)
			}
			asked := append(b.requests(), c.requests()...)
			if last := asked[len(asked)-1]; !slices.ContainsFunc(asked, func(q teacherAsk) bool { return q.Final && q.path == chatPath }) || len(asked) > 2 {
				t.Errorf("asked %s %s", last.path, last.body)
			}
			if r := g.recordN(0); r.Class != outcome.Success || r.Resumes != 1 {
				t.Errorf("record %+v", r)
			}
		})
	}
}

// TestExactWithoutWhatIsNotPassedOn: tokens of an event that the caller does not get are none that the next host is to go on behind.
func TestExactWithoutWhatIsNotPassedOn(t *testing.T) {
	const n, at = 41, 17
	for _, dying := range []string{aborted, torn} {
		for _, path := range []string{chatPath, "/v1/completions"} {
			for name, members := range map[string]string{"stream": streamed, "plain": ""} {
				t.Run(dying+path+" "+name, func(t *testing.T) {
					t.Parallel()
					a, b := &teacher{tokens: n, at: at, times: 1, dying: dying}, &teacher{tokens: n}
					g := newTeachers(t, numbersToo, a, b)
					body, err := g.first(a, ask(path, members+`,"max_tokens":100`))
					var text string
					if members == "" {
						text = plainText(t, body)
					} else {
						text = readTold(t, body).text
					}
					if err != nil || text != teacherText(n) {
						t.Errorf("%v: %q", err, text)
					}
					if r := g.recordN(0); r.Class != outcome.Success || r.Resumes != 1 || r.Output != n || !r.Attempts[1].Exact || r.Attempts[1].Offset != at {
						t.Errorf("%s, %d resumes, %d tokens, attempts %+v", r.Class, r.Resumes, r.Output, r.Attempts)
					}
				})
			}
		}
	}
}

// TestExactOnly goes on with what text alone would not do for: a host whose template takes no unfinished message.
func TestExactOnly(t *testing.T) {
	a, b := &teacher{tokens: 40, at: 17, times: 1}, &teacher{tokens: 40}
	g := newTeachers(t, router.Prefill{Known: true, Tokens: true}, a, b)
	body, err := g.first(a, ask(chatPath, streamed+`,"max_tokens":90`))
	if s := readTold(t, body); err != nil || s.text != teacherText(40) || !s.done {
		t.Errorf("%v: %+v", err, s)
	}
	if asked := b.requests(); len(asked) != 1 || asked[0].path != "/v1/completions" {
		t.Errorf("asked %+v", asked)
	}
}

// TestNumbersStayInside: the caller sees what it would have seen without them, byte for byte but for who answers.
func TestNumbersStayInside(t *testing.T) {
	strip := func(body string) string {
		return strings.ReplaceAll(strings.ReplaceAll(body, `,"token_ids":null`, ""), `,"prompt_token_ids":null`, "")
	}
	var bodies []string
	for _, mute := range []bool{false, true} {
		h := &teacher{tokens: 40, mute: mute}
		g := newTeachers(t, numbersToo, h, &teacher{tokens: 40})
		body, err := g.first(h, ask(chatPath, streamed))
		if err != nil || !h.requests()[0].Numbers {
			t.Fatalf("%v: %s", err, body)
		}
		id := fmt.Sprintf("id-%p-1", h)
		bodies = append(bodies, strings.ReplaceAll(strip(body), id, "id"))
	}
	if bodies[0] != bodies[1] {
		t.Errorf("with numbers taken out:\n%s\nwithout any:\n%s", bodies[0], bodies[1])
	}
}

// TestHedgedNumbers: a hedge that wins was asked for numbers as well; they stay inside, and when it is lost another host goes on by them.
func TestHedgedNumbers(t *testing.T) {
	t.Parallel()
	const n = 41
	for _, stream := range []bool{true, false} {
		t.Run(fmt.Sprintf("stream %t", stream), hedging(func(t *try) {
			a, b, c := newSleeper(beginning), &teacher{tokens: n, at: 17, times: 1, until: make(chan struct{})}, &teacher{tokens: n}
			g := newHedger(t, []serving{a.serve, b.serve, c.serve}, func(o *rigOptions) { o.set.TokenIDs, o.set.Resume = true, patience })
			for i := range 3 {
				id := endpoint.ID(fmt.Sprintf("static:h%d", i))
				g.router.SetPrefill(id, model, numbersToo)
				g.router.Drain(id, i > 0) // the late one is asked first
			}
			members := `,"max_tokens":100`
			if stream {
				members += streamed
			}
			got := make(chan string, 1)
			go func() {
				_, body, _ := g.do(ask(chatPath, members))
				got <- body
			}()
			wait(t, a.asked, "the first host to be asked")
			g.router.Drain("static:h1", false)
			eventually(t, "the second host is asked", func() bool { return len(b.requests()) == 1 })
			g.router.Drain("static:h2", false)
			close(b.until)
			body := wait(t, got, "the answer")
			text := plainText
			if stream {
				text = func(t testing.TB, body string) string { t.Helper(); return readTold(t, body).text }
			}
			if text(t, body) != teacherText(n) || strings.Contains(body, `_ids":[`) {
				t.Errorf("%s", body)
			}
			if !b.requests()[0].Numbers || len(c.requests()) != 1 || c.requests()[0].path != "/v1/completions" {
				t.Errorf("the hedge was asked %s, the next one %+v", b.requests()[0].body, c.requests())
			}
			r := g.hedged(0, wordWon, outcome.Outrun, outcome.Truncated, outcome.Success)
			if !r.Attempts[2].Exact || r.Attempts[2].Offset != 17 || r.Resumes != 1 {
				t.Errorf("%d resumes, attempts %+v", r.Resumes, r.Attempts)
			}
		}))
	}
}
