package openai

import (
	"bytes"
	"math"
	"unicode/utf8"
)

// Span is a half-open byte range of a body. It is zero when what it would delimit is absent; To > From otherwise.
type Span struct{ From, To int }

// Present says whether the span delimits anything.
func (s Span) Present() bool { return s.To > s.From }

// Request is what one pass over a request body finds. Its slices alias the body, but for strings
// written with escapes, which are decoded. Member names are compared as they read after unescaping.
type Request struct {
	Model   []byte // "model", nil when absent
	ModelAt Span   // its value, quotes included

	Stream          bool // "stream" is true
	StreamAt        Span // its value, be it null
	IncludeUsage    bool // "stream_options" has "include_usage" true
	StreamOptionsAt Span // value of "stream_options", be it null
	IncludeUsageAt  Span // value of "include_usage" in it, the last one when there are several

	OpenAt int  // index right behind the opening brace, where a member can be inserted
	Empty  bool // the object has no member

	// MaxTokens is max_completion_tokens, else max_tokens, else max_output_tokens; -1 when none is
	// given or it is negative, which some servers take for "no limit".
	MaxTokens int64
	N         int64 // "n", 1 when absent or less than that

	Tools          bool // "tools" or the older "functions" holds something
	ToolChoiceNone bool // "tool_choice" is "none"
	// ResponseFormat says that the output is bound to a form: "response_format" other than plain
	// text, "text.format" of the Responses API likewise, or one of "guided_*", "structured_outputs",
	// "grammar", "json_schema", "regex" and "ebnf", as vLLM, llama.cpp and SGLang know them.
	ResponseFormat bool
	Logprobs       bool // "logprobs" is there and neither null nor false; 0 counts
	Seed           bool // "seed" is there and not null; 0 counts
	Stop           bool // "stop" or "stop_sequences" holds something

	// What decides whether an answer that broke off can be continued by another host.
	Turns           int   // messages, or items of an input that is a list
	OwnPrefill      bool  // the last of them is the assistant's, or the caller set continue_final_message or unset add_generation_prompt
	PromptIsText    bool  // the value at PromptAt is one string
	Echo            bool  // "echo" is true
	Suffix          bool  // "suffix" holds something
	BestOf          uint8 // of how many answers the best are given: "best_of", 255 for more, and at least 2 for "use_beam_search"; 0 where nothing is said
	PromptLogprobs  bool  // "prompt_logprobs" is there and neither null nor false
	Audio           bool  // "modalities" names more than text
	TokenIDs        bool  // "return_token_ids" (vLLM) or "return_hidden_states" (SGLang) is true
	KeepStop        bool  // "include_stop_str_in_output" (vLLM) or "no_stop_trim" (SGLang) is true
	PromptTruncated bool  // "truncate_prompt_tokens" holds something
	PromptElsewhere bool  // "prompt_embeds", "kv_transfer_params" (vLLM) or "session_params" (SGLang) holds something

	// Stray is the first member by which some server may be told another model than Model: another spelling of it by case, which
	// some decoders fold, or "models", "fallbacks" or "model_group", as servers know them that are gateways themselves. Nil when
	// there is none.
	Stray []byte

	// PromptBytes is the length of the values of messages, prompt, input, query, documents, system,
	// instructions, tools and functions as they stand in the body: a base for estimating tokens.
	PromptBytes int
	PromptAt    Span // value of messages, else prompt, else input

	User     []byte // "user", nil when absent
	CacheKey []byte // "prompt_cache_key", as written between the quotes; nil when absent or no string

	Layout Layout // of the prompt
}

// keySet finds names of one body that occur twice. It costs no memory for the few dozen names of a real request, and little of the
// stack: see "Memory of a silent stream" in ARCHITECTURE.md.
type keySet struct {
	n     int
	seen  uint64 // one bit for each hash of a name in it, to skip most comparisons
	names [40]struct{ at, len uint32 }
	rest  map[string]struct{} // names beyond those, so that a body of a million names stays cheap, and those written with escapes
}

// add puts name in, which is at body[at:], or nowhere in body where at is negative, and returns false when it was there.
func (k *keySet) add(body, name []byte, at int) bool {
	h := uint64(len(name)) * 7
	if len(name) > 0 {
		h += uint64(name[0])*3 + uint64(name[len(name)-1])*11 + uint64(name[len(name)/2])
	}
	bit := uint64(1) << (h % 64)
	if k.seen&bit != 0 {
		for _, s := range k.names[:k.n] {
			if bytes.Equal(body[s.at:][:s.len], name) {
				return false
			}
		}
		if _, dup := k.rest[string(name)]; dup {
			return false
		}
	}
	k.seen |= bit
	if k.n < len(k.names) && at >= 0 && at+len(name) <= math.MaxUint32 {
		k.names[k.n].at, k.names[k.n].len = uint32(at), uint32(len(name)) //nolint:gosec // bounded above
		k.n++
		return true
	}
	if k.rest == nil {
		k.rest = make(map[string]struct{})
	}
	k.rest[string(name)] = struct{}{}
	return true
}

// Scan reads body in one pass and overwrites r. It accepts a JSON object as encoding/json does, to a
// depth of 512, in which no name of the outermost object occurs twice, however it is spelled, and in
// which the members named in Request have the right type where that type is fixed; null stands for
// absent in all of them but "model". Whether a member is missing is for the caller to judge. Every
// error is a *ScanError; r is then of no use.
func (r *Request) Scan(body []byte) error {
	*r = Request{MaxTokens: -1, N: 1}
	rd := reader{b: body}
	if rd.peek() != '{' {
		if rd.skip(); rd.problem == fine {
			rd.peek()
		}
		return notAnObject(body, &rd)
	}
	var (
		keys       keySet
		prompts    [3]Span // messages, prompt, input
		completion int64   = -1
		most       int64   = -1
		output     int64   = -1
	)
	rd.enter('{')
	r.OpenAt = rd.i
	for {
		at := rd.i
		name, ok := rd.memberRaw()
		if !ok {
			break
		}
		nameAt := at + bytes.IndexByte(body[at:], '"') + 1
		if rd.esc || !utf8.Valid(name) {
			name, nameAt = appendUnescaped(nil, name), -1
		}
		if !keys.add(body, name, nameAt) {
			return duplicate(body, at, name)
		}
		from := rd.i
		var wrong *ScanError
		switch string(name) {
		case "model":
			r.Model, wrong = rd.wantString("model", false)
			r.ModelAt = Span{from, rd.i}
		case "user":
			r.User, wrong = rd.wantString("user", true)
		case "stream":
			r.Stream, wrong = rd.wantBool("stream")
			r.StreamAt = Span{from, rd.i}
		case "stream_options":
			wrong = r.scanStreamOptions(&rd)
		case "max_completion_tokens":
			completion, wrong = rd.wantInteger("max_completion_tokens", -1)
		case "max_tokens":
			most, wrong = rd.wantInteger("max_tokens", -1)
		case "max_output_tokens":
			output, wrong = rd.wantInteger("max_output_tokens", -1)
		case "n":
			r.N, wrong = rd.wantInteger("n", 1)
			r.N = max(r.N, 1)
		case "messages":
			r.Layout.turns.scan(&rd)
			prompts[0] = Span{from, rd.i}
		case "prompt":
			rd.skip()
			prompts[1] = Span{from, rd.i}
		case "input":
			if prompts[0].Present() {
				rd.skip()
			} else {
				r.Layout.turns.scan(&rd)
			}
			prompts[2] = Span{from, rd.i}
		case "query", "documents":
			r.PromptBytes += len(rd.skip())
		case "tools", "functions":
			v := r.Layout.skip(&rd, name)
			r.Tools = filled(v) || r.Tools
			r.PromptBytes += len(v)
		case "system", "instructions":
			r.PromptBytes += len(r.Layout.skip(&rd, name))
		case "cache_salt":
			r.Layout.skip(&rd, name)
		case "prompt_cache_key":
			r.CacheKey, _ = rd.text()
		case "tool_choice":
			r.ToolChoiceNone = stringIs(rd.skip(), "none")
		case "response_format":
			r.ResponseFormat = rd.bindsForm() || r.ResponseFormat
		case "text":
			r.ResponseFormat = rd.bindsText() || r.ResponseFormat
		case "structured_outputs", "grammar", "json_schema", "regex", "ebnf":
			r.ResponseFormat = filled(rd.skip()) || r.ResponseFormat
		case "logprobs":
			r.Logprobs = filled(rd.skip())
		case "seed":
			r.Seed = filled(rd.skip())
		case "stop", "stop_sequences":
			r.Stop = filled(rd.skip()) || r.Stop
		case "continue_final_message":
			r.OwnPrefill = filled(rd.skip()) || r.OwnPrefill
		case "add_generation_prompt":
			v := rd.skip()
			r.OwnPrefill = len(v) > 0 && v[0] != 't' && v[0] != 'n' || r.OwnPrefill
		case "echo":
			r.Echo = filled(rd.skip())
		case "suffix":
			r.Suffix = filled(rd.skip())
		case "best_of":
			r.BestOf = max(r.BestOf, howMany(rd.skip()))
		case "use_beam_search":
			if filled(rd.skip()) {
				r.BestOf = max(r.BestOf, 2)
			}
		case "prompt_logprobs":
			r.PromptLogprobs = filled(rd.skip())
		case "modalities":
			r.Audio = rd.wantsMoreThanText()
		case "return_token_ids", "return_hidden_states":
			r.TokenIDs = filled(rd.skip()) || r.TokenIDs
		case "include_stop_str_in_output", "no_stop_trim":
			r.KeepStop = filled(rd.skip()) || r.KeepStop
		case "truncate_prompt_tokens":
			r.PromptTruncated = filled(rd.skip())
		case "prompt_embeds", "kv_transfer_params", "session_params":
			r.PromptElsewhere = filled(rd.skip()) || r.PromptElsewhere
		default:
			v := rd.skip()
			switch {
			case bytes.HasPrefix(name, []byte("guided_")):
				r.ResponseFormat = filled(v) || r.ResponseFormat
			case r.Stray == nil && IsStray(name):
				r.Stray = name
			}
		}
		if wrong != nil && rd.problem == fine {
			return wrong
		}
	}
	if rd.problem != fine {
		return syntaxError(body, &rd)
	}
	if rd.peek(); rd.i < len(body) {
		return trailing(body, rd.i)
	}
	r.Empty = keys.seen == 0
	for _, p := range prompts {
		r.PromptBytes += p.To - p.From
		if !r.PromptAt.Present() {
			r.PromptAt = p
		}
	}
	r.PromptIsText = r.PromptAt.Present() && body[r.PromptAt.From] == '"'
	if t := &r.Layout.turns; t.n > 0 && t.at == r.PromptAt.From {
		r.Turns = t.n
		r.OwnPrefill = t.assistant || r.OwnPrefill
	}
	for _, limit := range [...]int64{output, most, completion} {
		if limit >= 0 {
			r.MaxTokens = limit
		}
	}
	return nil
}

// IsStray tells whether some server may read a model out of a member, or a form's field, of that name.
func IsStray(name []byte) bool {
	switch len(name) {
	case len("model"), len("models"):
		return bytes.EqualFold(name, []byte("model")) || bytes.EqualFold(name, []byte("models"))
	case len("fallbacks"):
		return bytes.EqualFold(name, []byte("fallbacks"))
	case len("model_group"):
		return bytes.EqualFold(name, []byte("model_group"))
	}
	return false
}

// scanStreamOptions reads the value of "stream_options".
func (r *Request) scanStreamOptions(rd *reader) (wrong *ScanError) {
	from := rd.i
	if c := rd.peek(); c != '{' {
		v := rd.skip()
		r.StreamOptionsAt = Span{from, rd.i}
		if c != 'n' {
			return rd.wrongType("stream_options", "an object or null", v)
		}
		return nil
	}
	rd.enter('{')
	for name, ok := rd.member(); ok; name, ok = rd.member() {
		if string(name) != "include_usage" {
			rd.skip()
			continue
		}
		at := rd.i
		on, bad := rd.wantBool("stream_options.include_usage")
		if bad != nil && wrong == nil {
			wrong = bad
		}
		r.IncludeUsage, r.IncludeUsageAt = on, Span{at, rd.i}
	}
	r.StreamOptionsAt = Span{from, rd.i}
	return wrong
}

// wantString reads a string; null stands for absent where orNull allows it.
func (r *reader) wantString(param string, orNull bool) ([]byte, *ScanError) {
	if r.peek() == '"' {
		raw := r.str()
		if r.esc && r.problem == fine {
			raw = appendUnescaped(make([]byte, 0, len(raw)), raw)
		}
		return raw, nil
	}
	v := r.skip()
	switch {
	case len(v) == 0 || orNull && v[0] == 'n':
		return nil, nil
	case orNull:
		return nil, r.wrongType(param, "a string or null", v)
	default:
		return nil, r.wrongType(param, "a string", v)
	}
}

// wantBool reads true or false; null stands for false.
func (r *reader) wantBool(param string) (bool, *ScanError) {
	switch v := r.skip(); {
	case len(v) == 0 || v[0] == 'f' || v[0] == 'n':
		return false, nil
	case v[0] == 't':
		return true, nil
	default:
		return false, r.wrongType(param, "true, false or null", v)
	}
}

// wantInteger reads a whole number; null stands for absent.
func (r *reader) wantInteger(param string, absent int64) (int64, *ScanError) {
	v := r.skip()
	if len(v) == 0 || v[0] == 'n' {
		return absent, nil
	}
	if v[0] == '-' || v[0]-'0' <= 9 {
		if n, ok := integer(v); ok {
			return n, nil
		}
	}
	return absent, r.wrongType(param, "an integer or null", v)
}

// bindsForm reads the value of "response_format" and says whether it asks for more than plain text.
func (r *reader) bindsForm() bool {
	if r.peek() != '{' {
		return filled(r.skip())
	}
	empty, plain := true, false
	r.enter('{')
	for name, ok := r.member(); ok; name, ok = r.member() {
		empty = false
		if string(name) == "type" {
			plain = stringIs(r.skip(), "text")
		} else {
			r.skip()
		}
	}
	return !empty && !plain
}

// bindsText does the same for "text" of the Responses API, where the form is the member "format".
func (r *reader) bindsText() bool {
	if !r.open('{') {
		return false
	}
	binds := false
	for name, ok := r.member(); ok; name, ok = r.member() {
		if string(name) == "format" {
			binds = r.bindsForm()
		} else {
			r.skip()
		}
	}
	return binds
}

// howMany is the JSON value v as a count of up to 255, which stands for any number that is none, too; 0 where v is no number.
func howMany(v []byte) uint8 {
	if len(v) == 0 || v[0]-'0' > 9 {
		return 0
	}
	n, ok := integer(v)
	if !ok {
		return math.MaxUint8
	}
	return uint8(min(max(n, 0), math.MaxUint8)) //nolint:gosec // bounded
}

// wantsMoreThanText reads the value of "modalities".
func (r *reader) wantsMoreThanText() (more bool) {
	if r.problem != fine || r.peek() != '[' {
		return filled(r.skip())
	}
	r.enter('[')
	for r.element() {
		more = !stringIs(r.skip(), "text") || more
	}
	return more
}

// stringIs says whether the JSON value v is the string want.
func stringIs(v []byte, want string) bool {
	if len(v) < 2 || v[0] != '"' {
		return false
	}
	v = v[1 : len(v)-1]
	if string(v) == want {
		return true
	}
	return bytes.IndexByte(v, '\\') >= 0 && len(v) <= 6*len(want) && string(appendUnescaped(nil, v)) == want
}
