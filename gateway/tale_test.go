package gateway

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/health"
	"headrace/router/outcome"
)

// teller is a host whose answer is known: word after word, one event each. It goes on with an unfinished answer, as vLLM does.
type teller struct {
	words int // of a whole answer
	at    int // words of an answer after which lose strikes, 0 for never
	lose  func(c *upConn)
	times int // answers that it strikes at most
	delay func(i int)
	mute  bool                                  // no [DONE]
	pad   int                                   // bytes of white space in each event
	fate  func() (at int, lose func(c *upConn)) // in place of at, lose and times; nil lose is none

	mu    sync.Mutex // guards all below
	asked []tellerAsk
}

type tellerAsk struct {
	Messages []struct{ Role, Content string }
	Prompt   string
	Stream   bool
	Options  *struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	MaxTokens     int   `json:"max_tokens"`
	ContinueFinal bool  `json:"continue_final_message"`
	AddPrompt     *bool `json:"add_generation_prompt"`
	Temperature   float64
}

// word is word i of every answer: all of it has to be escaped, or joined, with care.
func word(i int) string { return fmt.Sprintf("w%d\"\n\\é🦊 ", i) }

func words(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(word(i))
	}
	return b.String()
}

const tellerPrompt = 11 // tokens of the prompt

func (h *teller) serve(c *upConn, r *upRequest) bool {
	var q tellerAsk
	if err := json.Unmarshal(r.body, &q); err != nil {
		c.send(jsonAnswer(400, `{"error":{"message":"no JSON"}}`))
		return true
	}
	h.mu.Lock()
	h.asked = append(h.asked, q)
	nth := len(h.asked)
	at, lose := h.at, h.lose
	if h.fate != nil {
		at, lose = h.fate()
	} else if h.times--; h.times < 0 {
		lose = nil
	}
	strikes := lose != nil
	h.mu.Unlock()
	from, text := 0, strings.HasSuffix(r.URL.Path, "/chat/completions")
	said := q.Prompt
	if text {
		if last := q.Messages[len(q.Messages)-1]; last.Role == "assistant" && q.ContinueFinal && q.AddPrompt != nil && !*q.AddPrompt {
			said = last.Content
		} else {
			said = ""
		}
	} else {
		said = strings.TrimPrefix(said, "hi")
	}
	for said != "" && strings.HasPrefix(said, word(from)) {
		said = said[len(word(from)):]
		from++
	}
	if said != "" {
		c.send(jsonAnswer(400, `{"error":{"message":"that is not how my answer begins"}}`))
		return true
	}
	n, finish := h.words-from, "stop"
	if q.MaxTokens > 0 && q.MaxTokens < n {
		n, finish = q.MaxTokens, "length"
	}
	usage := fmt.Sprintf(`{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}`, tellerPrompt+from, n, tellerPrompt+from+n)
	id := fmt.Sprintf("id-%p-%d", h, nth)
	if !q.Stream { // in one piece
		if strikes {
			c.reset()
			return false
		}
		b, _ := json.Marshal(words(n))
		c.send(jsonAnswer(200, fmt.Sprintf(`{"id":%q,"object":"chat.completion","created":1,"model":"m1","choices":[{"index":0,"message":{"role":"assistant","content":%s},"finish_reason":%q}],"usage":%s}`, id, b, finish, usage)))
		return true
	}
	event := func(delta, finish string) string {
		if text {
			return fmt.Sprintf("data: {\"id\":%q,\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m1\",\"choices\":[{\"index\":0,\"delta\":%s,\"logprobs\":null,\"finish_reason\":%s}]}\n\n", id, delta, finish)
		}
		delta = strings.TrimSuffix(strings.TrimPrefix(delta, `{"content":`), "}")
		return fmt.Sprintf("data: {\"id\":%q,\"object\":\"text_completion\",\"created\":1,\"model\":\"m1\",\"choices\":[{\"index\":0,\"text\":%s,\"logprobs\":null,\"finish_reason\":%s}]}\n\n", id, delta, finish)
	}
	c.send(sseHead)
	if text {
		c.sendChunk(event(`{"role":"assistant","content":""}`, "null"))
	}
	for i := from; i < from+n; i++ {
		if strikes && i == at {
			lose(c)
			return false
		}
		if h.delay != nil {
			h.delay(i)
		}
		b, _ := json.Marshal(word(i))
		c.sendChunk(event(`{"content":`+strings.Repeat(" ", h.pad)+string(b)+"}", "null"))
	}
	if strikes && at == from+n {
		lose(c)
		return false
	}
	c.sendChunk(event(`{"content":""}`, `"`+finish+`"`))
	if q.Options != nil && q.Options.IncludeUsage {
		c.sendChunk(fmt.Sprintf("data: {\"id\":%q,\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m1\",\"choices\":[],\"usage\":%s}\n\n", id, usage))
	}
	if !h.mute {
		c.sendChunk(doneEvent)
	}
	c.send(lastChunk)
	return true
}

// requests returns what the host was asked.
func (h *teller) requests() []tellerAsk {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.asked)
}

// told is a stream as a caller reads it.
type told struct {
	text, finish string
	ids, roles   map[string]int
	usage        string
	comments     []string
	done         bool
	code         string
	partial      bool
}

func readTold(t testing.TB, body string) told {
	t.Helper()
	s := told{ids: map[string]int{}, roles: map[string]int{}}
	for ev := range strings.SplitSeq(body, "\n\n") {
		data, isData := strings.CutPrefix(ev, "data: ")
		switch {
		case ev == "":
		case !isData:
			s.comments = append(s.comments, ev)
		case s.done:
			t.Errorf("behind the end: %s", ev)
		case data == "[DONE]":
			s.done = true
		default:
			var c struct {
				ID      string
				Choices []struct {
					Delta  struct{ Role, Content string }
					Text   string
					Finish string `json:"finish_reason"`
				}
				Usage json.RawMessage
				Error *struct {
					Code    any
					Partial bool
				}
			}
			if err := json.Unmarshal([]byte(data), &c); err != nil {
				t.Fatalf("event %q: %v", data, err)
			}
			if c.Error != nil {
				s.code, s.partial = fmt.Sprint(c.Error.Code), c.Error.Partial
				continue
			}
			s.ids[c.ID]++
			for _, o := range c.Choices {
				s.text += o.Delta.Content + o.Text
				if o.Delta.Role != "" {
					s.roles[o.Delta.Role]++
				}
				if o.Finish != "" {
					s.finish += o.Finish
				}
			}
			if len(c.Usage) > 0 && string(c.Usage) != "null" {
				s.usage = string(c.Usage)
			}
		}
	}
	return s
}

// newTellers starts a gateway in front of hosts that may be taken away, all known to go on with an unfinished answer.
func newTellers(t *testing.T, hosts []*teller, change ...func(*rigOptions)) *rig {
	t.Helper()
	urls := make([]string, 0, len(hosts))
	for _, h := range hosts {
		urls = append(urls, newUpstream(t, h.serve).url())
	}
	g := newRig(t, urls, append([]func(*rigOptions){func(o *rigOptions) {
		o.set.MaxResumes, o.set.MaxContinuation, o.set.Stall, o.set.Stuck = 4, 1<<20, 300*time.Millisecond, 5*time.Second
		o.edit = func(eps []endpoint.Endpoint) {
			for i := range eps {
				eps[i].Tenure = endpoint.Interruptible
			}
		}
	}}, change...)...)
	for i := range hosts {
		g.router.SetPrefill(endpoint.ID(fmt.Sprintf("static:h%d", i)), model, router.Prefill{Known: true, OK: true, Told: true})
	}
	return g
}

func ask(path string, members string, headers ...string) string {
	prompt := `"messages":[{"role":"user","content":"hi"}]`
	if path == "/v1/completions" {
		prompt = `"prompt":"hi"`
	}
	return post(path, fmt.Sprintf(`{"model":%q,%s%s}`, model, prompt, members), headers...)
}

const streamed = `,"stream":true,"stream_options":{"include_usage":true}`

// losses are the ways in which a host is lost in the middle of its answer.
func losses() map[string]func(c *upConn) {
	return map[string]func(c *upConn){
		"reset":           (*upConn).reset,
		"closed":          func(*upConn) {},
		"a clean end":     func(c *upConn) { c.send(lastChunk) },
		"inside an event": func(c *upConn) { c.sendChunk("data: {\"id\":\"x\",\"choi") },
		"inside a chunk":  func(c *upConn) { c.send("40\r\ndata: {\"id\"") },
		"silence":         func(c *upConn) { c.gone() },
		"comments only": func(c *upConn) {
			gone := make(chan struct{})
			go func() { defer close(gone); c.gone() }()
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-gone:
					return
				case <-tick.C:
					c.sendChunk(": ping\n\n")
				}
			}
		},
		"an answer from its beginning": func(c *upConn) {
			for i := range 3 {
				role := `"role":"assistant",`
				if i > 0 {
					role = ""
				}
				b, _ := json.Marshal(word(i))
				c.sendChunk(fmt.Sprintf("data: {\"id\":\"other\",\"choices\":[{\"index\":0,\"delta\":{%s\"content\":%s},\"text\":%[2]s,\"finish_reason\":null}]}\n\n", role, b))
			}
			c.gone()
		},
		"an error event without its blank line": func(c *upConn) {
			c.sendChunk("data: {\"error\":{\"message\":\"x SECRET-UPSTREAM-TEXT\",\"code\":500}}\n")
			c.send(lastChunk)
		},
		"an event that is no JSON": func(c *upConn) { c.sendChunk("data: {\xff\xfe not json\n\n") },
		"an abort": func(c *upConn) {
			c.sendChunk("data: {\"id\":\"x\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},\"text\":\"\",\"finish_reason\":\"abort\"}]}\n\n")
			c.sendChunk(doneEvent)
			c.send(lastChunk)
		},
		"an abort with words in it": func(c *upConn) {
			c.sendChunk("data: {\"id\":\"x\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"words of no answer\"},\"text\":\"words of no answer\",\"finish_reason\":\"abort\"}]}\n\n")
			c.sendChunk(doneEvent)
			c.send(lastChunk)
		},
		"an event cut off behind its words": func(c *upConn) {
			c.sendChunk("data: {\"id\":\"x\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"words of no answer\"},\"text\":\"words of no answer\"\n\n")
			c.gone()
		},
		"an error event": func(c *upConn) {
			c.sendChunk("data: {\"error\":{\"message\":\"EngineDeadError SECRET-UPSTREAM-TEXT\",\"type\":\"x\",\"code\":500}}\n\n")
			c.sendChunk(doneEvent)
			c.send(lastChunk)
		},
	}
}

// TestContinues loses hosts in the middle of answers: the caller gets each word once, in one stream with one id.
func TestContinues(t *testing.T) {
	const n = 40
	for _, path := range []string{chatPath, "/v1/completions"} {
		for name, lose := range losses() {
			for _, at := range []int{1, 17, n - 1} {
				if at == 1 && path != chatPath && name == "an answer from its beginning" {
					continue // a single chunk without a role, and nobody can tell
				}
				t.Run(fmt.Sprintf("%s/%s after %d", path[4:], name, at), func(t *testing.T) {
					t.Parallel()
					a, b := &teller{words: n, at: at, lose: lose, times: 1}, &teller{words: n}
					g := newTellers(t, []*teller{a, b})
					res, body, err := g.do(ask(path, streamed+`,"temperature":0.5,"max_tokens":100`))
					if err != nil || res.StatusCode != 200 {
						t.Fatalf("status %d, %v: %s", res.StatusCode, err, body)
					}
					s := readTold(t, body)
					if s.text != words(n) {
						t.Errorf("text %q", s.text)
					}
					if len(s.ids) != 1 || s.finish != "stop" || !s.done || s.code != "" || path == chatPath && s.roles["assistant"] != 1 {
						t.Errorf("ids %v, roles %v, finish %q, done %t, error %q", s.ids, s.roles, s.finish, s.done, s.code)
					}
					if want := fmt.Sprintf(`{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d`, tellerPrompt, n, tellerPrompt+n); !strings.HasPrefix(s.usage, want) {
						t.Errorf("usage %s, want %s", s.usage, want)
					}
					s.comments = slices.DeleteFunc(s.comments, func(c string) bool { return c == ": ping" }) // the host's
					if len(s.comments) != 1 || s.comments[0] != ": resumed" || strings.Contains(body, "SECRET") {
						t.Errorf("comments %q", s.comments)
					}
					asked := b.requests()
					if len(a.requests()) != 1 || len(asked) != 1 || asked[0].Temperature != 0.5 {
						t.Errorf("asked %+v, then %+v", a.requests(), asked)
					}
					r := g.recordN(0)
					if r.Class != outcome.Success || r.Resumes != 1 || r.Tries != 2 || r.Prompt != tellerPrompt || r.Output != n || r.SeamGap <= 0 || r.Attempts[0].Class == outcome.Success || r.Attempts[0].Output < 1 || r.Attempts[0].Output+r.Attempts[1].Output != n {
						t.Errorf("record %+v", r)
					}
				})
			}
		}
	}
}

// TestContinuesPlain does the same for callers who want the answer in one piece.
func TestContinuesPlain(t *testing.T) {
	const n = 40
	for name, lose := range losses() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := &teller{words: n, at: 17, lose: lose, times: 1}, &teller{words: n}
			g := newTellers(t, []*teller{a, b})
			res, body, err := g.do(ask(chatPath, ""))
			if err != nil || res.StatusCode != 200 || res.Header.Get("Content-Type") != "application/json" {
				t.Fatalf("status %d, %v, %v: %s", res.StatusCode, err, res.Header, body)
			}
			var got struct {
				Object  string
				Choices []struct {
					Message struct{ Role, Content string }
					Finish  string `json:"finish_reason"`
				}
				Usage struct {
					Prompt     int `json:"prompt_tokens"`
					Completion int `json:"completion_tokens"`
					Total      int `json:"total_tokens"`
				}
			}
			if err := json.Unmarshal([]byte(body), &got); err != nil {
				t.Fatalf("%v: %s", err, body)
			}
			if got.Object != "chat.completion" || len(got.Choices) != 1 || got.Choices[0].Message.Content != words(n) || got.Choices[0].Finish != "stop" ||
				got.Choices[0].Message.Role != "assistant" || got.Usage.Prompt != tellerPrompt || got.Usage.Completion != n || got.Usage.Total != tellerPrompt+n {
				t.Errorf("answer %+v", got)
			}
			if asked := b.requests(); len(asked) != 1 || !asked[0].ContinueFinal {
				t.Errorf("asked %+v", asked)
			}
			if r := g.recordN(0); r.Class != outcome.Success || r.Resumes != 1 || r.Stream || r.Output != n {
				t.Errorf("record %+v", r)
			}
		})
	}
}

// TestNotContinued ends what must not be gone on with by a clear error, and never in good order.
func TestNotContinued(t *testing.T) {
	for name, tc := range map[string]struct {
		members string
		headers []string
		change  func(*rigOptions)
		before  func(*rig)
		why     string
	}{
		"tools":             {why: "tools", members: `,"tools":[{"type":"function","function":{"name":"f"}}]`},
		"structured output": {why: "structured_output", members: `,"response_format":{"type":"json_object"}`},
		"several choices":   {why: "choices", members: `,"n":2`},
		"logprobs":          {why: "logprobs", members: `,"logprobs":true`},
		"seed":              {why: "seed", members: `,"seed":1`},
		"guided decoding":   {why: "structured_output", members: `,"guided_regex":"a+"`},
		"opted out":         {why: "policy", headers: []string{"x-headrace-on-preemption: fail"}},
		"the model's policy": {why: "policy", change: func(o *rigOptions) {
			o.set.OnPreemption = map[string]Preemption{model: Restart}
		}},
		"too long a text": {why: "too_long", change: func(o *rigOptions) { o.set.MaxContinuation = 64 }},
		"no host that can": {why: "no_host", before: func(g *rig) {
			g.router.SetPrefill("static:h1", model, router.Prefill{Known: true})
		}},
		"no host for the only time": {why: "no_host", change: func(o *rigOptions) { o.set.MaxResumes = 1 }, before: func(g *rig) {
			g.router.SetPrefill("static:h1", model, router.Prefill{Known: true})
		}},
		"not once": {why: "max_resumes", change: func(o *rigOptions) { o.set.MaxResumes = 0 }},
		"another model": {why: "no_host", change: func(o *rigOptions) {
			edit := o.edit
			o.edit = func(eps []endpoint.Endpoint) {
				edit(eps)
				eps[0].Served[0].Card = json.RawMessage(`{"id":"m1","root":"meta/llama"}`)
				eps[1].Served[0].Card = json.RawMessage(`{"id":"m1","root":"meta/llama-awq"}`)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := &teller{words: 40, at: 17, lose: (*upConn).reset, times: 1}, &teller{words: 40}
			var changes []func(*rigOptions)
			if tc.change != nil {
				changes = append(changes, tc.change)
			}
			g := newTellers(t, []*teller{a, b}, changes...)
			if tc.before != nil {
				tc.before(g)
			}
			_, body, err := g.do(ask(chatPath, `,"stream":true`+tc.members, tc.headers...))
			s := readTold(t, body)
			if err == nil || s.done || s.finish != "" {
				t.Errorf("ended in good order: %v, done %t, finish %q", err, s.done, s.finish)
			}
			if s.code != "upstream_lost" || !s.partial || s.text != words(17) {
				t.Errorf("error %q, partial %t, text %q", s.code, s.partial, s.text)
			}
			if len(b.requests()) != 0 {
				t.Errorf("the other host was asked %+v", b.requests())
			}
			if r := g.recordN(0); r.Class != outcome.Truncated || r.Resumes != 0 || r.Lost != tc.why {
				t.Errorf("class %s, %d resumes, not gone on with for %q", r.Class, r.Resumes, r.Lost)
			}
		})
	}
}

// TestErrorBehindATornEvent: a host that is lost inside an event so long that its beginning was passed on leaves half of it. The error
// is an event of its own all the same.
func TestErrorBehindATornEvent(t *testing.T) {
	a, b := &teller{words: 40, at: 17, times: 1}, &teller{words: 40}
	a.lose = func(c *upConn) { c.send("20000\r\ndata: {\"id\":\"" + strings.Repeat("x", 64<<10)); c.reset() }
	g := newTellers(t, []*teller{a, b}, func(o *rigOptions) { o.forward.MaxEvent = 32 << 10 })
	_, body, err := g.do(ask(chatPath, `,"stream":true`))
	at := strings.LastIndex(body, "\n\n"+`data: {"error"`)
	if err == nil || at < 0 || !strings.Contains(body[at:], `"upstream_lost"`) || !strings.HasSuffix(body, "\n\n") {
		t.Errorf("%v: …%q", err, body[max(0, len(body)-300):])
	}
	if r := g.recordN(0); r.Class != outcome.Severed && r.Class != outcome.Truncated || r.Lost != "unreadable" || len(b.requests()) != 0 {
		t.Errorf("class %s, not gone on with for %q", r.Class, r.Lost)
	}
}

// TestWaitsForAHost pauses a stream that nobody can go on with now, until somebody can.
func TestWaitsForAHost(t *testing.T) {
	const n = 40
	t.Run("and goes on", func(t *testing.T) {
		lost := make(chan struct{})
		a, b := &teller{words: n, at: 17, lose: func(c *upConn) { c.reset(); close(lost) }, times: 1}, &teller{words: n}
		g := newTellers(t, []*teller{a, b}, func(o *rigOptions) { o.set.Resume, o.set.Heartbeat = patience, 20*time.Millisecond })
		g.router.SetPrefill("static:h1", model, router.Prefill{Known: true})
		go func() {
			<-lost
			eventually(t, "the caller is held", func() bool { return g.srv.held.n.Load() == 1 })
			pause := time.NewTimer(150 * time.Millisecond) // of several comments
			<-pause.C
			g.router.SetPrefill("static:h1", model, router.Prefill{Known: true, OK: true})
		}()
		_, body, err := g.do(ask(chatPath, streamed))
		if s := readTold(t, body); err != nil || s.text != words(n) || !s.done || !slices.Contains(s.comments, ": ping") || !slices.Contains(s.comments, ": resumed") {
			t.Errorf("%v, done %t, comments %q, text %q", err, s.done, s.comments, s.text)
		}
		if r := g.recordN(0); r.Resumes != 1 || r.SeamGap < 150*time.Millisecond {
			t.Errorf("%d resumes, a pause of %v", r.Resumes, r.SeamGap)
		}
	})
	t.Run("the caller leaves meanwhile", func(t *testing.T) {
		lost := make(chan struct{})
		a, b := &teller{words: n, at: 17, lose: func(c *upConn) { c.reset(); close(lost) }, times: 1}, &teller{words: n}
		g := newTellers(t, []*teller{a, b}, func(o *rigOptions) { o.set.Resume = time.Minute })
		g.router.SetPrefill("static:h1", model, router.Prefill{Known: true})
		c := g.dial().send(ask(chatPath, streamed))
		<-lost
		eventually(t, "the caller is held", func() bool { return g.srv.held.n.Load() == 1 })
		c.reset()
		if r := g.recordN(0); r.Class != outcome.ClientGone || r.Duration > 10*time.Second {
			t.Errorf("%s after %v", r.Class, r.Duration)
		}
	})
}

// TestContinuesAgain goes on as often as it may, and no further.
func TestContinuesAgain(t *testing.T) {
	const n = 60
	for name, tc := range map[string]struct {
		most int
		ok   bool
	}{"often enough": {4, true}, "once too often": {3, false}} {
		t.Run(name, func(t *testing.T) {
			hosts := []*teller{}
			for i := range 4 {
				hosts = append(hosts, &teller{words: n, at: 10 * (i + 1), lose: (*upConn).reset, times: 1})
			}
			g := newTellers(t, append(hosts, &teller{words: n}), func(o *rigOptions) { o.set.MaxResumes = tc.most })
			_, body, err := g.do(ask(chatPath, streamed))
			s := readTold(t, body)
			if r := g.recordN(0); r.Resumes != min(4, tc.most) || (err == nil) != tc.ok || (s.text == words(n)) != tc.ok || s.done != tc.ok {
				t.Errorf("%v, %d resumes, done %t, text %q", err, r.Resumes, s.done, s.text)
			}
			if !tc.ok && (s.code != "upstream_lost" || s.text != words(40)) {
				t.Errorf("error %q after %q", s.code, s.text)
			}
			if r := g.recordN(0); !tc.ok && r.Lost != "max_resumes" {
				t.Errorf("not gone on with for %q", r.Lost)
			}
		})
	}
	t.Run("while retries are left", func(t *testing.T) {
		hosts := []*teller{}
		for i := range 3 {
			hosts = append(hosts, &teller{words: n, at: 10 * (i + 1), lose: (*upConn).reset, times: 1})
		}
		g := newTellers(t, append(hosts, &teller{words: n}), func(o *rigOptions) { o.retry = router.BudgetOptions{PerRequest: 0.001, Cap: 1} })
		_, body, err := g.do(ask(chatPath, streamed))
		s := readTold(t, body)
		if r := g.recordN(0); err == nil || s.text != words(30) || s.code != "upstream_lost" || r.Resumes != 2 || r.Lost != "no_retry" {
			t.Errorf("%v, %d resumes, error %q, not gone on with for %q, text %q", err, r.Resumes, s.code, r.Lost, s.text)
		}
	})
}

// TestTokenBudget counts what was delivered against what the caller asked for.
func TestTokenBudget(t *testing.T) {
	for name, tc := range map[string]struct {
		at, asks, left int
		lose           func(*upConn)
	}{
		"some left":                            {at: 12, asks: 1, left: 18},
		"none left, but the end":               {at: 30},
		"one left, and aborted with it":        {at: 29, asks: 1, left: 1, lose: losses()["an abort with words in it"]},
		"one left, and cut off with it":        {at: 29, asks: 1, left: 1, lose: losses()["an event cut off behind its words"]},
		"one left, and something else with it": {at: 29, asks: 1, left: 1, lose: losses()["an answer from its beginning"]},
	} {
		for _, members := range []string{streamed, ""} {
			t.Run(name+members, func(t *testing.T) {
				lose := tc.lose
				if lose == nil {
					lose = (*upConn).reset
				}
				a, b := &teller{words: 40, at: tc.at, lose: lose, times: 1}, &teller{words: 40}
				g := newTellers(t, []*teller{a, b})
				res, body, err := g.do(ask(chatPath, members+`,"max_tokens":30`))
				if err != nil || res.StatusCode != 200 {
					t.Fatalf("%v: %s", err, body)
				}
				var text, finish string
				if members != "" {
					s := readTold(t, body)
					if text, finish = s.text, s.finish; !s.done {
						t.Error("no [DONE]")
					}
				} else {
					text, finish = readWhole(t, body)
				}
				if text != words(30) || finish != "length" {
					t.Errorf("finish %q, text %q", finish, text)
				}
				asks, left := tc.asks, tc.left
				if asks == 0 && members == "" {
					asks, left = 1, 30 // begun anew: nobody knows its usage
				}
				if asked := b.requests(); len(asked) != asks || asks > 0 && asked[0].MaxTokens != left {
					t.Errorf("asked %+v", asked)
				}
				if r := g.recordN(0); r.Class != outcome.Success || (r.Attempts[0].Class != outcome.Truncated) != (tc.lose != nil) {
					t.Errorf("record %+v", r)
				}
			})
		}
	}
}

// readWhole reads an answer in one piece.
func readWhole(t testing.TB, body string) (text, finish string) {
	t.Helper()
	var whole struct {
		Choices []struct {
			Message struct{ Content string }
			Finish  string `json:"finish_reason"`
		}
	}
	if err := json.Unmarshal([]byte(body), &whole); err != nil || len(whole.Choices) != 1 {
		t.Fatalf("%v: %s", err, body)
	}
	return whole.Choices[0].Message.Content, whole.Choices[0].Finish
}

// TestMoves takes running answers away from a host that leaves, while it still answers.
func TestMoves(t *testing.T) {
	const n = 40
	for name, stream := range map[string]bool{"stream": true, "plain": false} {
		t.Run(name, func(t *testing.T) {
			reached, goOn := make(chan struct{}), make(chan struct{})
			defer close(goOn)
			a, b := &teller{words: n, delay: func(i int) {
				if i == 20 {
					close(reached)
					<-goOn
				}
			}}, &teller{words: n}
			g := newTellers(t, []*teller{a, b}, func(o *rigOptions) { o.set.Stall = time.Minute })
			members := ""
			if stream {
				members = streamed
			}
			type answer struct {
				body string
				err  error
			}
			got := make(chan answer, 1)
			go func() {
				_, body, err := g.do(ask(chatPath, members))
				got <- answer{body, err}
			}()
			wait(t, reached, "the host to have told half")
			eventually(t, "a token has come", func() bool { return g.host(0).TTFTMillis != nil })
			if k := g.fwd.Interrupt("static:h0"); k != 1 {
				t.Errorf("%d were called away", k)
			}
			r := wait(t, got, "the answer")
			var text string
			if stream {
				text = readTold(t, r.body).text
			} else {
				text, _ = readWhole(t, r.body)
			}
			if r.err != nil || text != words(n) {
				t.Errorf("%v: %q", r.err, text)
			}
			if rec := g.recordN(0); rec.Attempts[0].Class != outcome.Moved || rec.Class != outcome.Success || rec.Resumes != 1 {
				t.Errorf("record %+v", rec)
			}
			if h := g.host(0); h.Breaker != "closed" {
				t.Errorf("breaker %s of a host that did nothing wrong", h.Breaker)
			}
		})
	}
}

// TestStaysWhereNobodyElseCan lets a stream that is called away, or that falls silent for a while, go on where it is, if no other
// host can go on with it.
func TestStaysWhereNobodyElseCan(t *testing.T) {
	const n = 40
	reached, goOn := make(chan struct{}), make(chan struct{})
	a := &teller{words: n, delay: func(i int) {
		if i == 20 {
			close(reached)
			<-goOn
		}
	}}
	b := &teller{words: n}
	g := newTellers(t, []*teller{a, b}, func(o *rigOptions) { o.set.Stall = 20 * time.Millisecond })
	got := make(chan string, 1)
	go func() {
		_, body, _ := g.do(ask(chatPath, streamed))
		got <- body
	}()
	g.router.SetPrefill("static:h1", model, router.Prefill{Known: true}) // after it was begun, maybe
	wait(t, reached, "the host to have told half")
	eventually(t, "a token has come", func() bool { return g.host(0).TTFTMillis != nil })
	g.fwd.Interrupt("static:h0")
	quiet := time.NewTimer(200 * time.Millisecond) // ten stalls
	<-quiet.C
	close(goOn)
	if s := readTold(t, wait(t, got, "the answer")); s.text != words(n) || !s.done || len(s.comments) != 0 {
		t.Errorf("done %t, comments %q, text %q", s.done, s.comments, s.text)
	}
	if r := g.recordN(0); r.Tries != 1 || r.Class != outcome.Success {
		t.Errorf("record %+v", r)
	}
}

// TestRandomLosses has hosts lost at random, in every way, under callers of every kind: each gets every word once, or the beginning and
// a clear error; never a good end too early, and nothing is left behind.
func TestRandomLosses(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	requests, callers := 800, 24
	if raceEnabled {
		requests = 200
	}
	const n = 12
	ways := losses()
	delete(ways, "comments only") // keeps a stream alive that nobody else can go on with
	delete(ways, "an error event without its blank line")
	delete(ways, "an event that is no JSON") // the caller gets it as it came, where nobody else can go on
	delete(ways, "an event cut off behind its words")
	delete(ways, "an answer from its beginning") // nobody can tell behind a single chunk without a role
	names := slices.Sorted(maps.Keys(ways))
	var hosts []*teller
	for i := range 5 {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))                               //nolint:gosec // to be repeatable
		hosts = append(hosts, &teller{words: n, fate: func() (int, func(*upConn)) { // called under the host's lock
			if at, way := rng.IntN(n+1), ways[names[rng.IntN(len(names))]]; rng.Float64() < 0.4 {
				return at, way
			}
			return 0, nil
		}})
	}
	g := newTellers(t, hosts, func(o *rigOptions) {
		o.noTLS, o.set.MaxInFlight = true, 1000
		o.set.Stall, o.set.Gap = 50*time.Millisecond, time.Second
		o.retry = router.BudgetOptions{PerRequest: 1, Cap: 100000}
		o.breaker = health.Options{Failures: 1000, OpenFor: time.Millisecond}
	})
	var next, whole, lost, resumed atomic.Int64
	var wg sync.WaitGroup
	for w := range callers {
		rng := rand.New(rand.NewPCG(seed, 1000+uint64(w))) //nolint:gosec // likewise
		wg.Go(func() {
			for next.Add(1) <= int64(requests) {
				path, stream, mayGoOn := chatPath, rng.IntN(3) > 0, rng.IntN(5) > 0
				members, want := "", words(n)
				if rng.IntN(4) == 0 {
					path, members = "/v1/completions", `,"max_tokens":50`
				} else if rng.IntN(3) == 0 {
					members, want = `,"max_tokens":7`, words(7)
				}
				if stream {
					members += streamed
				}
				if !mayGoOn {
					members += `,"seed":1`
				}
				res, body, err := g.do(ask(path, members))
				switch {
				case stream && res.StatusCode == 200:
					s := readTold(t, body)
					if !mayGoOn && s.finish == "abort" { // in the host's own words
						lost.Add(1)
						break
					}
					if len(s.ids) > 1 || s.roles["assistant"] > 1 || !strings.HasPrefix(want, s.text) {
						t.Errorf("ids %v, roles %v, text %q", s.ids, s.roles, s.text)
					}
					switch {
					case err == nil && s.done && s.text == want && s.code == "" && s.finish != "":
						whole.Add(1)
					case err != nil && !s.done && s.code == "upstream_lost" && s.partial, !mayGoOn && s.code == "500": // the host's own
						lost.Add(1)
					default:
						t.Errorf("%v: done %t, error %q, finish %q, text %q of %q", err, s.done, s.code, s.finish, s.text, want)
					}
					if slices.Contains(s.comments, ": resumed") {
						if resumed.Add(1); !mayGoOn {
							t.Error("went on with what it must not")
						}
					}
				case res.StatusCode == 200:
					if err != nil || !strings.Contains(body, `"usage"`) {
						t.Errorf("%v: %s", err, body)
					} else if text := plainText(t, body); text != want {
						t.Errorf("text %q, want %q", text, want)
					}
					whole.Add(1)
				default:
					parseError(t, body)
					lost.Add(1)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d whole, %d of them gone on with in a stream, %d lost", whole.Load(), resumed.Load(), lost.Load())
	if whole.Load()+lost.Load() != int64(requests) || resumed.Load() < int64(requests)/20 || lost.Load() > int64(requests)/4 { // a fifth must not be gone on with, two fifths of those are lost
		t.Error("that is not what was to be expected")
	}
	g.recordN(requests - 1) // each is settled once: see close
}

// plainText is the text of an answer in one piece, of either path.
func plainText(t testing.TB, body string) string {
	t.Helper()
	var a struct {
		Choices []struct {
			Text    string
			Message struct{ Content string }
		}
	}
	if err := json.Unmarshal([]byte(body), &a); err != nil || len(a.Choices) != 1 {
		t.Errorf("%v: %s", err, body)
		return ""
	}
	return a.Choices[0].Text + a.Choices[0].Message.Content
}

// TestEndsWell adds the end mark that a host leaves out which goes on with an answer: the caller has begun to read a stream with one.
func TestEndsWell(t *testing.T) {
	a, b := &teller{words: 40, at: 17, lose: (*upConn).reset, times: 1}, &teller{words: 40, mute: true}
	g := newTellers(t, []*teller{a, b})
	_, body, err := g.do(ask(chatPath, streamed))
	if s := readTold(t, body); err != nil || s.text != words(40) || !s.done || s.finish != "stop" {
		t.Errorf("%v: done %t, finish %q", err, s.done, s.finish)
	}
}

// TestHugeEvents never passes on unread what is to be retold or put together, though an event is too long to be held whole.
func TestHugeEvents(t *testing.T) {
	huge := func(o *rigOptions) { o.forward.MaxEvent = 32 << 10 }
	t.Run("behind a seam", func(t *testing.T) {
		a, b, c := &teller{words: 40, at: 17, lose: (*upConn).reset, times: 1}, &teller{words: 40, pad: 64 << 10}, &teller{words: 40}
		g := newTellers(t, []*teller{a, b, c}, huge)
		_, body, err := g.do(ask(chatPath, streamed))
		if s := readTold(t, body); err != nil || s.text != words(40) || !s.done || len(s.ids) != 1 {
			t.Errorf("%v: %+v", err, s)
		}
	})
	t.Run("of a plain answer", func(t *testing.T) {
		a, b := &teller{words: 40, pad: 64 << 10}, &teller{words: 40}
		g := newTellers(t, []*teller{a, b}, huge)
		_, body, err := g.do(ask(chatPath, ""))
		if text, finish := readWhole(t, body); err != nil || text != words(40) || finish != "stop" {
			t.Errorf("%v: %q", err, body)
		}
	})
}

// TestStuck leaves a host that shows no first token, long before its time is over, if another one can be asked; and does not where the
// budget of retries is spent.
func TestStuck(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		retries int
		moves   bool
	}{"moves": {2, true}, "no retry is left": {0, false}} {
		t.Run(name, func(t *testing.T) {
			goOn := make(chan struct{})
			a, b := &teller{words: 5, delay: func(i int) {
				if i == 0 {
					<-goOn
				}
			}}, &teller{words: 5}
			g := newTellers(t, []*teller{a, b}, func(o *rigOptions) {
				o.set.MaxRetries, o.set.Stuck = tc.retries, 100*time.Millisecond
				edit := o.edit
				o.edit = func(eps []endpoint.Endpoint) {
					edit(eps)
					eps[0].Hardware.GPU = "H100 80GB" // expected within milliseconds
				}
			})
			got := make(chan string, 1)
			go func() {
				_, body, _ := g.do(ask(chatPath, streamed))
				got <- body
			}()
			if tc.moves {
				if s := readTold(t, wait(t, got, "the answer of the other host")); s.text != words(5) || !s.done {
					t.Errorf("%+v", s)
				}
				close(goOn)
				if r := g.recordN(0); r.Attempts[0].Class != outcome.FirstByteTimeout || r.Duration > 9*time.Second {
					t.Errorf("%s after %v", r.Attempts[0].Class, r.Duration)
				}
				return
			}
			eventually(t, "the host is asked", func() bool { return len(a.requests()) == 1 })
			quiet := time.NewTimer(time.Second)
			<-quiet.C
			close(goOn)
			if s := readTold(t, wait(t, got, "the late answer")); s.text != words(5) || !s.done || len(b.requests()) != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestContinuesOverTLS and a slow reader: the seam is invisible there as well.
func TestContinuesOverTLS(t *testing.T) {
	const n = 40
	a, b := &teller{words: n, at: 17, lose: (*upConn).reset, times: 1}, &teller{words: n}
	g := newTellers(t, []*teller{a, b})
	c := g.dialTLS()
	_, body, err := c.send(ask(chatPath, streamed)).whole()
	if s := readTold(t, body); err != nil || s.text != words(n) || len(s.ids) != 1 || !s.done {
		t.Errorf("%v: %+v", err, s)
	}
	_, body, err = c.send(ask(chatPath, streamed)).whole() // the same connection serves on
	if s := readTold(t, body); err != nil || s.text != words(n) || !s.done {
		t.Errorf("the next answer: %v: %+v", err, s)
	}
}
