package openai_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/big"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"

	"headrace/gateway/openai"
	"headrace/router/affinity"
)

// members decodes the outermost object with encoding/json; dup says whether a name occurs twice.
func members(body []byte) (m map[string]json.RawMessage, dup, ok bool) {
	if !json.Valid(body) || json.Unmarshal(body, &m) != nil || m == nil {
		return nil, false, false
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	seen := map[any]bool{}
	if _, err := dec.Token(); err != nil {
		return nil, false, false
	}
	for dec.More() {
		name, err := dec.Token()
		var skip json.RawMessage
		if err != nil || dec.Decode(&skip) != nil {
			return nil, false, false
		}
		dup = dup || seen[name]
		seen[name] = true
	}
	return m, dup, true
}

func depthOf(body []byte) (deepest int) {
	depth, inString := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			depth++
			deepest = max(deepest, depth)
		case c == '}' || c == ']':
			depth--
		}
	}
	return deepest
}

func isKind(v json.RawMessage, kinds string) bool {
	return len(v) == 0 || strings.IndexByte(kinds, v[0]) >= 0
}

// wholeNumber is the reference for integers, by exact arithmetic; "" and null are none.
func wholeNumber(v string) (n int64, ok bool) {
	if n, err := strconv.ParseInt(v, 10, 64); err == nil {
		return n, true
	}
	mantissa, exponent, _ := strings.Cut(strings.ToLower(v), "e")
	if e, err := strconv.Atoi(exponent); exponent != "" && (err != nil || e > 1000 || e < -1000) {
		zero := mantissa != "" && strings.Trim(mantissa, "-0.") == ""
		return 0, zero // too large or too small, unless there is nothing to be scaled
	}
	r, ok := new(big.Rat).SetString(v)
	if !ok || !r.IsInt() || !r.Num().IsInt64() {
		return 0, false
	}
	return r.Num().Int64(), true
}

// wrongTypes says whether a member has a type that Scan refuses.
func wrongTypes(m map[string]json.RawMessage) bool {
	if !isKind(m["model"], `"`) || !isKind(m["user"], `"n`) || !isKind(m["stream"], `tfn`) || !isKind(m["stream_options"], `{n`) {
		return true
	}
	for _, name := range []string{"max_tokens", "max_completion_tokens", "max_output_tokens", "n"} {
		if v := m[name]; len(v) > 0 && v[0] != 'n' {
			if _, ok := wholeNumber(string(v)); !ok {
				return true
			}
		}
	}
	return false
}

var scanSeeds = []string{
	`{}`, `[]`, `{"model":"m"}`, `{"model":"m","model":"n"}`, `{"m\u006fdel":"m","model":1}`,
	` { "model" : "m" , "stream" : true , "stream_options" : { "include_usage" : false , "x" : [ ] } } `,
	`{"stream_options":{}}`, `{"stream_options":{ },"model":"a"}`, `{"stream_options":null,"n":3}`,
	`{"stream_options":{"include_usage":true,"include_usage":false}}`, `{"stream_options":{"include\u005fusage":null}}`,
	`{"stream_options":{"include_usage":"yes"}}`, `{"max_tokens":1e2,"n":0.0,"max_completion_tokens":-0}`,
	`{"max_tokens":1e400}`, `{"max_tokens":0e999999999999}`, `{"max_tokens":12.30e+1}`, `{"n":-9223372036854775808}`, `{"n":0.00e-5}`, `{"max_tokens":99999999999999999999}`, `{"user":"\ud800\udc00\ud800"}`,
	"{\"model\":\"\xff\"}", "{\"\xff\":1,\"\xfe\":2}", `{"a":[[[[{"b":{}}]]]],"c":-1.5e-7,"d":"\\\"\/\b\f\n\r\t\u0000"}`,
	`{"a":01}`, `{"a":1,}`, `{"a":"` + "\x1f" + `"}`, `{"a":tru}`, `{"messages":[{"role":"user","content":"hi"}],"prompt":"x","input":null}`,
	`{"messages":[{"role":"system","content":"` + strings.Repeat("be kind. ", 200) + `"},{"role":"user","content":"` + strings.Repeat("why? ", 900) +
		`"}, [1], 2 ,"x"],"tools":[{"type":"function"}],"instructions":"say it","cache_salt":"abc","prompt_cache_key":"k"}`,
	`{"prompt":"` + strings.Repeat(`a \"tale\" `, 300) + `","system":[]}`, `{"input":[` + strings.Repeat(`{"role":"user","content":"go on"},`, 40) + `null],"prompt":null}`,
	`{"response_format":{"type":"json_object"},"tools":[1],"tool_choice":"none","logprobs":true,"seed":1,"stop":"a"}`,
	`{"a":` + strings.Repeat("[", 511) + strings.Repeat("]", 511) + `}`, `{"a":` + strings.Repeat("[", 512) + strings.Repeat("]", 512) + `}`,
}

func FuzzScan(f *testing.F) {
	for _, seed := range scanSeeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(checkScan)
}

// checkScan compares Scan with encoding/json.
func checkScan(t *testing.T, body []byte) {
	t.Helper()
	before := bytes.Clone(body)
	var r openai.Request
	err := r.Scan(body)
	if !bytes.Equal(body, before) {
		t.Fatal("Scan has changed the body")
	}
	if err != nil {
		e, ok := errors.AsType[*openai.ScanError](err)
		if !ok || e.Message == "" || e.Code == "" || e.Offset < 0 || e.Offset > len(body) {
			t.Fatalf("odd error %#v", err)
		}
	}
	m, dup, object := members(body)
	badUsage := false
	if object && isKind(m["stream_options"], "{") && m["stream_options"] != nil {
		badUsage = anyBadUsage(t, m["stream_options"])
	}
	want := object && !dup && depthOf(body) <= 512 && !wrongTypes(m) && !badUsage
	if (err == nil) != want {
		t.Fatalf("%q: error %v; object %v, duplicate %v, depth %d, wrong types %v, usage %v",
			body, err, object, dup, depthOf(body), wrongTypes(m), badUsage)
	}
	if err != nil {
		return
	}
	for name, got := range map[string][]byte{"model": r.Model, "user": r.User} {
		var s *string
		if v, ok := m[name]; ok {
			if e := json.Unmarshal(v, &s); e != nil {
				t.Fatal(e)
			}
		}
		if (got == nil) != (s == nil) || s != nil && utf8.Valid(body) && string(got) != *s {
			t.Fatalf("%q: %s is %q", body, name, got)
		}
	}
	if at := r.ModelAt; at.Present() && !bytes.Equal(body[at.From:at.To], m["model"]) {
		t.Fatalf("%q: ModelAt has %q", body, body[at.From:at.To])
	}
	if at := r.StreamOptionsAt; at.Present() != (m["stream_options"] != nil) || !bytes.Equal(body[at.From:at.To], m["stream_options"]) {
		t.Fatalf("%q: StreamOptionsAt has %q", body, body[at.From:at.To])
	}
	var options struct {
		Usage *bool `json:"include_usage"`
	}
	if v := m["stream_options"]; v != nil {
		var exact map[string]json.RawMessage
		if json.Unmarshal(v, &exact) == nil && exact["include_usage"] != nil {
			_ = json.Unmarshal(exact["include_usage"], &options.Usage)
		}
	}
	if want := options.Usage != nil && *options.Usage; r.IncludeUsage != want {
		t.Fatalf("%q: IncludeUsage is %v", body, r.IncludeUsage)
	}
	if r.Stream != (string(m["stream"]) == "true") || r.Empty != (len(m) == 0) {
		t.Fatalf("%q: Stream %v, Empty %v", body, r.Stream, r.Empty)
	}
	limit := int64(-1)
	for _, name := range []string{"max_output_tokens", "max_tokens", "max_completion_tokens"} {
		if n, ok := wholeNumber(string(m[name])); ok && n >= 0 {
			limit = n
		}
	}
	if r.MaxTokens != limit {
		t.Fatalf("%q: MaxTokens %d, want %d", body, r.MaxTokens, limit)
	}
	size := 0
	for _, name := range []string{"messages", "prompt", "input", "query", "documents", "system", "instructions", "tools", "functions"} {
		size += len(m[name])
	}
	if r.PromptBytes != size {
		t.Fatalf("%q: PromptBytes %d, want %d", body, r.PromptBytes, size)
	}
	checkMarks(t, body, &r, m)
}

// checkMarks makes sure that each mark is of a prefix of the prompt, one longer than the other.
func checkMarks(t *testing.T, body []byte, r *request, m map[string]json.RawMessage) {
	t.Helper()
	var k affinity.Key
	r.Marks(body, &k)
	var prompt []byte
	for _, name := range []string{"cache_salt", "tools", "functions", "system", "instructions"} {
		var empty bytes.Buffer // what the value is without white space
		_ = json.Compact(&empty, m[name])
		switch empty.String() {
		case "", "null", "false", `""`, "[]", "{}":
		default:
			prompt = append(prompt, m[name]...)
		}
	}
	prompt = append(prompt, body[r.PromptAt.From:r.PromptAt.To]...)
	n := 0
	for _, mark := range k.Marks[:k.N] {
		n++
		for n <= len(prompt) && xxhash.Sum64(prompt[:n]) != mark.Hash {
			n++
		}
		if n > len(prompt) || int(mark.Tokens) != n/4 || n < 64 {
			t.Fatalf("%q: marks %+v: one is of no longer prefix of %q", body, k.Marks[:k.N], prompt)
		}
	}
}

// anyBadUsage says whether an "include_usage" in the object v, be it a repeated one, is no bool or null.
func anyBadUsage(t *testing.T, v json.RawMessage) (bad bool) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(v))
	if _, err := dec.Token(); err != nil {
		t.Fatal(err)
	}
	for dec.More() {
		name, err := dec.Token()
		var value json.RawMessage
		if err != nil || dec.Decode(&value) != nil {
			t.Fatal(err)
		}
		bad = bad || name == "include_usage" && !isKind(value, "tfn")
	}
	return bad
}

func FuzzParts(f *testing.F) {
	for i, seed := range scanSeeds {
		f.Add([]byte(seed), `meta-llama/"70B"`, i%3 != 0, i%2 == 0, i%5 < 2)
	}
	f.Fuzz(checkParts)
}

// checkParts compares what Parts makes of body with the same change made by encoding/json.
func checkParts(t *testing.T, body []byte, model string, replace, inject, stream bool) {
	t.Helper()
	var r openai.Request
	if r.Scan(body) != nil {
		return
	}
	before := bytes.Clone(body)
	var modelJSON []byte
	if replace {
		modelJSON = openai.AppendString(nil, model)
	}
	parts, n := r.Parts(nil, body, modelJSON, inject, stream)
	joined := bytes.Join(parts, nil)
	if n != len(joined) || !bytes.Equal(body, before) {
		t.Fatalf("%q: length %d said, %d written", body, n, len(joined))
	}
	got, dup, ok := members(joined)
	if !ok || dup {
		t.Fatalf("%q became %q", body, joined)
	}
	want, _, _ := members(body)
	if replace {
		want["model"] = modelJSON
	}
	if stream {
		want["stream"] = json.RawMessage("true")
		inject = true
	}
	if inject {
		gotOptions, wantOptions := map[string]json.RawMessage{}, map[string]json.RawMessage{}
		if err := json.Unmarshal(got["stream_options"], &gotOptions); err != nil {
			t.Fatalf("%q became %q: %v", body, joined, err)
		}
		if v := want["stream_options"]; v != nil {
			_ = json.Unmarshal(v, &wantOptions)
		}
		if wantOptions == nil {
			wantOptions = map[string]json.RawMessage{}
		}
		wantOptions["include_usage"] = json.RawMessage("true")
		if !reflect.DeepEqual(gotOptions, wantOptions) {
			t.Fatalf("%q: stream_options became %q", body, got["stream_options"])
		}
		delete(got, "stream_options")
		delete(want, "stream_options")
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%q became %q", body, joined)
	}
	var again openai.Request
	if err := again.Scan(joined); err != nil || inject && !again.IncludeUsage || stream && !again.Stream {
		t.Fatalf("%q became %q: %v", body, joined, err)
	}
}
