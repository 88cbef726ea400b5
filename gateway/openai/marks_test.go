package openai_test

import (
	"fmt"
	"strings"
	"testing"

	"headrace/gateway/openai"
	"headrace/router/affinity"
)

func marks(t testing.TB, body string) (k affinity.Key) {
	t.Helper()
	var r request
	if err := r.Scan([]byte(body)); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	r.Marks([]byte(body), &k)
	return k
}

// shared is how many tokens of the prompt of b are known from the marks of a.
func shared(a, b *affinity.Key) int {
	known := map[uint64]bool{}
	for _, m := range a.Marks[:a.N] {
		known[m.Hash] = true
	}
	for i := b.N - 1; i >= 0; i-- {
		if known[b.Marks[i].Hash] {
			return int(b.Marks[i].Tokens)
		}
	}
	return 0
}

// text is n bytes that differ from those of other seeds from the first byte on.
func text(seed string, n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%s %d and on. ", seed, i)
	}
	return b.String()[:n]
}

func message(role, content string) string {
	return fmt.Sprintf(`{"role":%q,"content":%q}`, role, content)
}

func conversation(turns ...string) string {
	return `{"model":"m","messages":[` + strings.Join(turns, ",") + `]}`
}

// TestMarks tells how much of a prompt is known when another one came before.
func TestMarks(t *testing.T) {
	system := message("system", text("rules", 1000))
	var long []string
	for i := range 101 {
		long = append(long, message([]string{"user", "assistant"}[i%2], text(fmt.Sprint("turn", i), 50+i*7%400)))
	}
	doc := text("document", 50_000)
	ask := func(doc, question string) string {
		return conversation(system, message("user", doc+"\n"+question))
	}
	tools := func(n int) string {
		return `[` + strings.TrimSuffix(strings.Repeat(`{"type":"function","function":{"name":"f","parameters":{}}},`, n), ",") + `]`
	}
	for name, tc := range map[string]struct {
		before, now string
		least, most int // tokens
	}{
		"the same":              {conversation(long...), conversation(long...), len(conversation(long...))/4 - 10, len(conversation(long...)) / 4},
		"the next turn":         {conversation(long[:3]...), conversation(long[:5]...), len(conversation(long[:3]...))/4 - 10, len(conversation(long[:3]...)) / 4},
		"the next of many":      {conversation(long[:99]...), conversation(long...), len(conversation(long[:99]...))/4 - 10, len(conversation(long[:99]...)) / 4},
		"eight calls later":     {conversation(long[:93]...), conversation(long...), len(conversation(long[:93]...))/4 - 10, len(conversation(long[:93]...)) / 4},
		"a turn taken back":     {conversation(long...), conversation(append(long[:99:99], message("user", "else"))...), len(conversation(long[:99]...))/4 - 10, len(conversation(long[:99]...)) / 4},
		"an early turn changed": {conversation(long...), conversation(append(long[:60:60], message("user", "else"))...), len(conversation(long[:60]...)) / 4 / 2, len(conversation(long[:60]...)) / 4},
		"other white space between": {
			conversation(long[:3]...), strings.Replace(conversation(long[:5]...), "},{", "}, {", 1), len(long[0])/4 - 5, len(long[0])/4 + 5,
		},
		"the same system prompt": {conversation(system, message("user", "a")), conversation(system, message("user", "b")), len(system) / 4, len(system)/4 + 1},
		"nothing":                {conversation(message("user", text("a", 9000))), conversation(message("user", text("b", 9000))), 0, 0},
		"what is too short to be kept": {
			conversation(message("user", "hi"), message("assistant", "ho"), message("user", "a")), conversation(message("user", "hi"), message("assistant", "hm")), 0, 0,
		},
		"one document":                   {ask(doc, "Who?"), ask(doc, text("why", 300)), 11_500, 12_800},
		"another document":               {ask(doc, "Who?"), ask(text("else", 50_000), "Who?"), len(system) / 4, len(system)/4 + 1},
		"a document and a long question": {ask(doc, "Who?"), ask(doc, text("why", 70_000)), 10_000, 12_800},
		"the document's first part":      {ask(doc, "Who?"), ask(doc[:9000], "Who?"), 2000, 2510},
		"the same, the other way round":  {ask(doc[:9000], "Who?"), ask(doc, "Who?"), 2000, 2510},
		"a text prompt": {
			`{"prompt":"` + doc + `who?"}`, `{"prompt":"` + doc + `why is it so?","max_tokens":4}`, 11_500, 12_800,
		},
		"token ids": {
			`{"prompt":[` + strings.Repeat("128000,", 5000) + `1]}`, `{"prompt":[` + strings.Repeat("128000,", 5000) + `17,22,24]}`, 8000, 8760,
		},
		"an input text":   {`{"input":"` + doc + `who?"}`, `{"input":"` + doc + `why?"}`, 11_500, 12_800},
		"responses items": {`{"input":[` + strings.Join(long[:7], ",") + `]}`, `{"input":[` + strings.Join(long[:9], ",") + `]}`, len(strings.Join(long[:7], ",")) / 4, len(strings.Join(long[:7], ",")) / 4},
		"tools wherever they stand": {
			`{"tools":` + tools(20) + `,"messages":[` + long[0] + `]}`, `{"messages":[` + long[0] + `],"tools":` + tools(20) + `}`, len(tools(20)+long[0]) / 4, len(tools(20)+long[0])/4 + 1,
		},
		"other tools":     {`{"tools":` + tools(20) + `,"messages":[` + long[0] + `]}`, `{"tools":` + tools(21) + `,"messages":[` + long[0] + `]}`, 0, 0},
		"the same tools":  {`{"tools":` + tools(20) + `,"messages":[` + long[0] + `]}`, `{"tools":` + tools(20) + `,"messages":[` + long[1] + `]}`, len(tools(20)) / 4, len(tools(20)) / 4},
		"a system member": {`{"system":"` + text("s", 999) + `","messages":[` + long[0] + `]}`, `{"system":"` + text("s", 999) + `","messages":[` + long[1] + `]}`, 250, 250},
		"instructions":    {`{"instructions":"` + text("s", 999) + `","input":"a"}`, `{"instructions":"` + text("s", 999) + `","input":"b"}`, 250, 250},
		"another salt":    {`{"cache_salt":"a","messages":[` + system + `]}`, `{"cache_salt":"b","messages":[` + system + `]}`, 0, 0},
		"no salt":         {`{"cache_salt":"a","messages":[` + system + `]}`, `{"messages":[` + system + `]}`, 0, 0},
		"another model":   {`{"model":"a","messages":[` + system + `]}`, `{"model":"b","messages":[` + system + `]}`, len(system) / 4, len(system) / 4},
		"no prompt":       {`{"messages":null}`, `{"messages":null}`, 0, 0},
		"an empty one":    {`{"messages":[]}`, `{"messages":[]}`, 0, 0},
		"messages and input": {
			`{"messages":[` + long[9] + `],"input":["a"]}`, `{"messages":[` + long[9] + `,` + long[1] + `],"input":["b"]}`, len(long[9]) / 4, len(long[9])/4 + 1,
		},
		"input and messages": {
			`{"input":["a"],"messages":[` + long[9] + `]}`, `{"input":["b"],"messages":[` + long[9] + `,` + long[1] + `]}`, len(long[9]) / 4, len(long[9])/4 + 1,
		},
		"input beside a prompt": {`{"input":["a","b"],"prompt":"` + text("p", 400) + `"}`, `{"input":["b"],"prompt":"` + text("p", 400) + `"}`, 100, 101},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := marks(t, tc.before), marks(t, tc.now)
			if n := shared(&a, &b); n < tc.least || n > tc.most {
				t.Errorf("%d tokens are known, want %d to %d", n, tc.least, tc.most)
			}
		})
	}
}

func TestMarksAgain(t *testing.T) {
	k := marks(t, conversation(message("system", text("s", 1<<16)), message("user", text("u", 1<<16))))
	if k.N < 20 {
		t.Errorf("only %d marks of a long prompt", k.N)
	}
	k.Session = 5
	var r request
	body := []byte(`{"prompt":""}`)
	if err := r.Scan(body); err != nil {
		t.Fatal(err)
	}
	if r.Marks(body, &k); k.N != 0 || k.Root != 0 || k.Session != 5 {
		t.Errorf("%d marks, root %d and session %d are left of another request", k.N, k.Root, k.Session)
	}
}

// TestRoot finds conversations again by how they begin.
func TestRoot(t *testing.T) {
	system := message("system", text("rules", 9000))
	developer := `{"content":"` + text("more rules", 300) + `","role":"developer"}`
	hello, answer := message("user", "hello"), message("assistant", "hi")
	doc := text("document", 50_000)
	for name, tc := range map[string]struct {
		a, b string
		same bool
	}{
		"turns of one":          {conversation(system, hello), conversation(system, hello, answer, message("user", "so")), true},
		"many turns of one":     {conversation(system, hello), conversation(append([]string{system, hello}, strings.Split(strings.Repeat(answer+"\n", 30), "\n")[:30]...)...), true},
		"two with one system":   {conversation(system, hello), conversation(system, message("user", "hallo")), false},
		"and a developer":       {conversation(system, developer, hello), conversation(system, developer, message("user", "hallo")), false},
		"a developer's turns":   {conversation(system, developer, hello), conversation(system, developer, hello, answer), true},
		"questions on one text": {conversation(system, message("user", doc+"Who?")), conversation(system, message("user", doc+"Why?")), true},
		"on two":                {conversation(system, message("user", doc+"Who?")), conversation(system, message("user", "The "+doc+"Who?")), false},
		"text prompts":          {`{"prompt":"` + doc + `Who?"}`, `{"prompt":"` + doc + `Why?"}`, true},
		"short text prompts":    {`{"prompt":"Who?"}`, `{"prompt":"Why?"}`, false},
		"other tools":           {`{"tools":[1],"messages":[` + hello + `]}`, `{"tools":[2],"messages":[` + hello + `]}`, false},
		"only rules":            {conversation(system), conversation(system), true},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := marks(t, tc.a), marks(t, tc.b)
			if a.Root == 0 || b.Root == 0 || (a.Root == b.Root) != tc.same {
				t.Errorf("roots %#x and %#x, the same: want %t", a.Root, b.Root, tc.same)
			}
		})
	}
}

// TestMarksAgree holds marks to what other replicas make of the same prompt.
func TestMarksAgree(t *testing.T) {
	k := marks(t, `{"model":"m","messages":[`+message("system", text("rules", 100))+`,`+message("user", "hello")+`]}`)
	want := []affinity.Mark{{Hash: 0x6b7c8a5e3b6476e6, Tokens: 32}, {Hash: 0xfd44b1231ff3361a, Tokens: 41}}
	if k.N != len(want) || k.Marks[0] != want[0] || k.Marks[1] != want[1] || k.Root != want[1].Hash {
		t.Errorf("marks %#v, root %#x; want %#v", k.Marks[:k.N], k.Root, want)
	}
}

func TestMarksAllocateNothing(t *testing.T) {
	body := chatRequest(64 << 10)
	var r request
	var k affinity.Key
	if n := testing.AllocsPerRun(100, func() {
		if err := r.Scan(body); err != nil {
			t.Fatal(err)
		}
		r.Marks(body, &k)
	}); n != 0 || k.N == 0 {
		t.Errorf("%v allocations, %d marks", n, k.N)
	}
}

func BenchmarkMarks(b *testing.B) {
	turns := []string{message("system", text("rules", 400))}
	for i := range 40 {
		turns = append(turns, message("user", text(fmt.Sprint("turn", i), 200)))
	}
	for name, body := range map[string][]byte{
		"2K": chatRequest(2 << 10), "64K": chatRequest(64 << 10), "1M": chatRequest(1 << 20), "41 turns/10K": []byte(conversation(turns...)),
		"2 turns/2K": []byte(conversation(turns[0], message("user", text("q", 1600)))),
	} {
		b.Run(name, func(b *testing.B) {
			var r openai.Request
			var k affinity.Key
			if err := r.Scan(body); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				r.Marks(body, &k)
			}
			b.ReportMetric(float64(k.N), "marks")
		})
	}
}
