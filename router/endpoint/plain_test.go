package endpoint

import (
	"strings"
	"testing"
)

func TestBeyondPlain(t *testing.T) {
	const parts = `[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]`
	for _, tc := range []struct{ name, value, want string }{
		{"temperature", `0.5`, ""},
		{"n", `3`, ""},
		{"stop", `["a"]`, ""},
		{"max_completion_tokens", `5`, ""},
		{"user", `"u"`, ""},
		{"store", `true`, ""},
		{"stream", `true`, ""},

		{"tools", `[{"type":"function"}]`, "tools"},
		{"tools", `[]`, ""},
		{"tools", `null`, ""},
		{"functions", `[{"name":"f"}]`, "functions"},
		{"tool_choice", `"auto"`, ""},
		{"tool_choice", `"none"`, ""},
		{"tool_choice", `"required"`, "tool_choice"},
		{"response_format", `{"type":"json_object"}`, "response_format"},
		{"response_format", `{"type":"text"}`, ""},
		{"response_format", ` {"type":"json_schema","json_schema":{}} `, "response_format"},
		{"response_format", `"json"`, "response_format"},
		{"guided_json", `{"a":1}`, "guided_json"},
		{"structured_outputs", `{"regex":"a"}`, "structured_outputs"},
		{"logprobs", `true`, "logprobs"},
		{"logprobs", `false`, ""},
		{"logprobs", `0`, "logprobs"}, // of the token that was chosen
		{"top_logprobs", `0`, ""},
		{"top_logprobs", `2`, "top_logprobs"},
		{"prompt_logprobs", `0`, "prompt_logprobs"},
		{"logit_bias", `{}`, ""},
		{"logit_bias", `{"7":-100}`, "logit_bias"},
		{"echo", `true`, "echo"},
		{"suffix", `"}"`, "suffix"},
		{"suffix", `""`, ""},
		{"modalities", `["text"]`, ""},
		{"modalities", `["text","audio"]`, "modalities"},
		{"continue_final_message", `true`, "continue_final_message"},
		{"continue_final_message", `false`, ""},
		{"add_generation_prompt", `true`, ""},
		{"add_generation_prompt", `false`, "add_generation_prompt"},
		{"reasoning_effort", `"low"`, "reasoning_effort"},
		{"chat_template_kwargs", `{"enable_thinking":false}`, "chat_template_kwargs"},
		{"enable_thinking", `false`, "enable_thinking"}, // nobody knows what it does where it is known
		{"stream_options", `{"include_usage":true,"include_obfuscation":false}`, ""},
		{"stream_options", `{"include_usage":true,"continuous_usage_stats":true}`, "stream_options.continuous_usage_stats"},
		{"stream_options", `{"z":1,"continuous_usage_stats":false,"b":1}`, "stream_options.b"},
		{"stream_options", `7`, "stream_options"},

		{"prompt", `"p"`, ""},
		{"prompt", `""`, ""},
		{"prompt", `["a","b"]`, "prompt"},
		{"prompt", `[1,2]`, "prompt"},
		{"messages", `[{"role":"user","content":"a"}]`, ""},
		{"messages", parts, ""},
		{"messages", `[{"role":"user","content":"the \"type\" of it, \u00e4"}]`, ""},
		{"messages", strings.Replace(parts, `"type":"text","text":"a"`, `"type":"image_url","image_url":{"url":"x"}`, 1), "messages"},
		{"messages", strings.Replace(parts, `"type":"text","text":"a"`, `"\u0074ype":"image_url"`, 1), "messages"},
		{"messages", `[{"role":"user","content":{"type":"text"}}]`, "messages"},
		{"messages", `[{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]}]`, "messages.tool_calls"},
		{"messages", `[{"role":"assistant","content":"a","tool_calls":[],"function_call":null}]`, ""},
		{"messages", `[{"role":"assistant","function_call":{"name":"f"}}]`, "messages.function_call"},
		{"messages", `[7,"type"]`, "messages"},
	} {
		if got := BeyondPlain([]byte(tc.name), []byte(tc.value)); got != tc.want {
			t.Errorf("%s: %s gives %q, want %q", tc.name, tc.value, got, tc.want)
		}
	}
	for _, name := range SamplingParams() {
		if BeyondPlain([]byte(name), []byte("7")) != "" {
			t.Errorf("%s is taken and is too much", name)
		}
	}
}

func TestTextOf(t *testing.T) {
	for content, want := range map[string]string{
		``: "", `null`: "", `"a\n"`: "a\n", `[]`: "",
		`[{"type":"text","text":"a"},{"type":"text","text":"ä"}]`: "a\nä",
		`[{"type":"text"}]`: "no", `[{"type":"refusal","text":"a"}]`: "no", `["a"]`: "no", `7`: "no",
	} {
		if got, ok := TextOf([]byte(content)); ok == (want == "no") || ok && got != want {
			t.Errorf("%s: %q, %v; want %q", content, got, ok, want)
		}
	}
}
