package endpoint

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
)

// SamplingParams are the members of an OpenAI request that a Plain endpoint takes as they are, next to "stream" and the
// prompt: those of vLLM's SamplingParams that mean the same there, can be made of JSON, and leave a trace in an answer that
// is text alone. It has max_tokens by that name only.
func SamplingParams() []string { return slices.Clone(samplingParams[:]) }

var samplingParams = [...]string{
	"n", "best_of", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k", "min_p", "seed", "stop",
	"stop_token_ids", "ignore_eos", "max_tokens", "min_tokens", "skip_special_tokens", "spaces_between_special_tokens", "length_penalty",
	"include_stop_str_in_output", "bad_words", "allowed_token_ids",
}

// quiet are the members that change nothing of what an answer says: who asks, what for, how it is billed, queued and kept.
var quiet = [...]string{
	"model", "stream", "max_completion_tokens", "user", "metadata", "store", "service_tier", "priority", "request_id", "safety_identifier",
	"prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls",
}

// BeyondPlain says whether a member of an OpenAI request is more than a Plain endpoint can be asked. It returns "" when the
// endpoint takes it or it changes nothing of the answer, else what stands in the way, such as "response_format" or
// "stream_options.continuous_usage_stats". A name that is not known counts as more: nothing is to be left out of a request in
// silence. value is the member's JSON and must be valid. What is taken allocates nothing, but for a few members with values
// that are lists or objects.
func BeyondPlain(name, value []byte) (param string) {
	value = bytes.TrimSpace(value)
	is := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return w == string(value) })
	}
	in := func(table []string) bool {
		return slices.ContainsFunc(table, func(w string) bool { return w == string(name) })
	}
	takes := false
	switch {
	case is("null"):
		takes = true
	case string(name) == "messages":
		return beyondMessages(value)
	case string(name) == "prompt":
		takes = value[0] == '"' // a list would be read as messages
	case is(`""`, "[]", "{}"): // says nothing
		takes = true
	case in(samplingParams[:]), in(quiet[:]):
		takes = true
	default:
		switch string(name) {
		case "stream_options":
			return beyondStreamOptions(value)
		case "response_format":
			var format struct{ Type string }
			takes = json.Unmarshal(value, &format) == nil && format.Type == "text"
		case "modalities":
			var list []string
			takes = json.Unmarshal(value, &list) == nil && !slices.ContainsFunc(list, func(s string) bool { return s != "text" })
		case "tool_choice", "function_call": // without tools
			takes = is(`"none"`, `"auto"`)
		case "top_logprobs":
			takes = is("0")
		case "add_generation_prompt", "include_reasoning":
			takes = is("true")
		case "continue_final_message", "echo", "logprobs", "prompt_logprobs", "return_hidden_states", "return_token_ids",
			"return_tokens_as_token_ids", "use_beam_search":
			takes = is("false")
		}
	}
	if takes {
		return ""
	}
	return string(name)
}

// beyondStreamOptions lets usage pass, which a Plain endpoint counts.
func beyondStreamOptions(value []byte) string {
	const name = "stream_options"
	var options map[string]json.RawMessage
	if json.Unmarshal(value, &options) != nil {
		return name
	}
	param := "" // the first by name, so that it is always the same one
	for k, v := range options {
		switch {
		case k == "include_usage", k == "include_obfuscation", string(v) == "false", string(v) == "null":
		case param == "" || name+"."+k < param:
			param = name + "." + k
		}
	}
	return param
}

// partMarks stand in messages that hold more than texts as their contents, and may stand in others. Inside of a JSON string
// their quotes would be escaped.
var partMarks = [...][]byte{[]byte(`"type"`), []byte(`"tool_calls"`), []byte(`"function_call"`), []byte(`\u`)}

// beyondMessages lets messages pass whose contents are texts, be it in parts. The handler's template gets them as they are:
// it would print other parts, and the arguments of calls, as Python does.
func beyondMessages(value []byte) string {
	const name = "messages"
	if !slices.ContainsFunc(partMarks[:], func(m []byte) bool { return bytes.Contains(value, m) }) {
		return ""
	}
	var messages []struct {
		Content      json.RawMessage `json:"content"`
		ToolCalls    json.RawMessage `json:"tool_calls"`
		FunctionCall json.RawMessage `json:"function_call"`
	}
	if json.Unmarshal(value, &messages) != nil {
		return name
	}
	for i := range messages {
		m := &messages[i]
		if _, ok := TextOf(m.Content); !ok {
			return name
		}
		for k, v := range map[string]json.RawMessage{"tool_calls": m.ToolCalls, "function_call": m.FunctionCall} {
			if len(v) > 0 && string(v) != "null" && string(v) != "[]" {
				return name + "." + k
			}
		}
	}
	return ""
}

// TextOf returns the text of a message's content: a string, nothing, or a list of parts of which each is a text. Parts are
// joined by line ends, as vLLM does for templates that take strings (vllm/entrypoints/chat_utils.py). ok is false when the
// content holds anything else.
func TextOf(content json.RawMessage) (text string, ok bool) {
	switch {
	case len(content) == 0 || string(content) == "null":
		return "", true
	case content[0] == '"':
		return text, json.Unmarshal(content, &text) == nil
	}
	var parts []struct {
		Type string  `json:"type"`
		Text *string `json:"text"`
	}
	if json.Unmarshal(content, &parts) != nil {
		return "", false
	}
	texts := make([]string, len(parts))
	for i, p := range parts {
		if p.Type != "text" || p.Text == nil {
			return "", false
		}
		texts[i] = *p.Text
	}
	return strings.Join(texts, "\n"), true
}
