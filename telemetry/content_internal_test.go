package telemetry

import (
	"strings"
	"testing"

	"headrace/gateway/ledger"
	"headrace/router/outcome"
)

// TestSaid reads what was asked and answered, in the words of every API there is.
func TestSaid(t *testing.T) {
	for name, tc := range map[string]struct {
		asked, answered string
		want            map[string]string
	}{
		"chat, streamed": {
			`{"model":"m","messages":[{"role":"system","content":"Be short."},{"role":"user","content":[{"type":"text","text":"Hi <you>"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]},
				{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"look","arguments":"{\"q\":1}"}}]},{"role":"tool","tool_call_id":"c1","content":"found"}]}`,
			`{"choices":[{"index":0,"delta":{"role":"assistant","reasoning_content":"hm"}}]}` + "\n" + `{"choices":[{"index":0,"delta":{"content":"Hel"}}]}` + "\n" +
				`{"choices":[{"index":1,"delta":{"content":"Other"}},{"index":0,"delta":{"content":"lo"}}]}` + "\n" + `{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n[DONE]\n",
			map[string]string{
				keyInput: `[{"role":"system","parts":[{"type":"text","content":"Be short."}]},{"role":"user","parts":[{"type":"text","content":"Hi <you>"},{"type":"image_url"}]},` +
					`{"role":"assistant","parts":[{"type":"tool_call","id":"c1","name":"look","arguments":{"q":1}}]},{"role":"tool","parts":[{"type":"tool_call_response","id":"c1","response":"found"}]}]`,
				keyOutput: `[{"role":"assistant","parts":[{"type":"reasoning","content":"hm"},{"type":"text","content":"Hello"}],"finish_reason":"stop"},{"role":"assistant","parts":[{"type":"text","content":"Other"}],"finish_reason":"stop"}]`,
			},
		},
		"chat in one piece": {
			`{"messages":[{"role":"user","content":"x"}]}`, `{"choices":[{"index":0,"message":{"role":"assistant","content":"y"},"finish_reason":"length"}]}`,
			map[string]string{keyInput: `[{"role":"user","parts":[{"type":"text","content":"x"}]}]`, keyOutput: `[{"role":"assistant","parts":[{"type":"text","content":"y"}],"finish_reason":"length"}]`},
		},
		"tool calls in pieces": {
			`{}`, `{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\""}}]}}]}` + "\n" +
				`{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]},"finish_reason":"tool_calls"}]}`,
			map[string]string{keyOutput: `[{"role":"assistant","parts":[{"type":"tool_call","id":"a","name":"f","arguments":{"x":1}}],"finish_reason":"tool_call"}]`},
		},
		"completions": {
			`{"prompt":["one","two"]}`, `{"choices":[{"index":0,"text":"th"}]}` + "\n" + `{"choices":[{"index":0,"text":"ree","finish_reason":"stop"}]}`,
			map[string]string{
				keyInput:  `[{"role":"user","parts":[{"type":"text","content":"one"},{"type":"text","content":"two"}]}]`,
				keyOutput: `[{"role":"assistant","parts":[{"type":"text","content":"three"}],"finish_reason":"stop"}]`,
			},
		},
		"responses": {
			`{"instructions":"Be kind.","input":"Hi"}`, `{"type":"response.output_text.delta","delta":"Hel"}` + "\n" + `{"type":"response.output_text.delta","delta":"lo"}`,
			map[string]string{
				keyInput: `[{"role":"user","parts":[{"type":"text","content":"Hi"}]}]`, keyInstructions: `[{"type":"text","content":"Be kind."}]`,
				keyOutput: `[{"role":"assistant","parts":[{"type":"text","content":"Hello"}],"finish_reason":"stop"}]`,
			},
		},
		"responses in one piece": {
			`{"input":[{"role":"user","content":[{"type":"input_text","text":"Hi"}]}]}`,
			`{"object":"response","output":[{"type":"message","role":"assistant","content":[{"type":"output_text","text":"Hello"}]},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"}]}`,
			map[string]string{
				keyInput:  `[{"role":"user","parts":[{"type":"text","content":"Hi"}]}]`,
				keyOutput: `[{"role":"assistant","parts":[{"type":"text","content":"Hello"},{"type":"tool_call","id":"c","name":"f","arguments":{}}],"finish_reason":"stop"}]`,
			},
		},
		"messages": {
			`{"system":[{"type":"text","text":"Be kind."}],"messages":[{"role":"user","content":"Hi"}]}`,
			`{"type":"content_block_delta","delta":{"type":"text_delta","text":"Hel"}}` + "\n" + `{"type":"content_block_delta","delta":{"type":"text_delta","text":"lo"}}`,
			map[string]string{
				keyInput: `[{"role":"user","parts":[{"type":"text","content":"Hi"}]}]`, keyInstructions: `[{"type":"text","content":"Be kind."}]`,
				keyOutput: `[{"role":"assistant","parts":[{"type":"text","content":"Hello"}],"finish_reason":"stop"}]`,
			},
		},
		"texts beside events": {
			`{}`, `"Hel"` + "\n" + `"lo"` + "\n" + `{"choices":[{"index":0,"delta":{"reasoning":"hm"},"finish_reason":"length"}]}`,
			map[string]string{keyOutput: `[{"role":"assistant","parts":[{"type":"reasoning","content":"hm"},{"type":"text","content":"Hello"}],"finish_reason":"length"}]`},
		},
		"pieces": {
			`{}`, `["reasoning","h\"m"]` + "\n" + `"Hello"` + "\n" + `{"choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"c","function":{"name":"f","arguments":""}}]}}]}` + "\n" +
				`["arguments",1,"{\"x\":"]` + "\n" + `"!"` + "\n" + `["arguments",1,"2}"]` + "\n" + `["arguments",1]` + "\n" + `["unheard-of","x"]` + "\n" + `[]` + "\n" + `[7,"x"]` + "\n",
			map[string]string{keyOutput: `[{"role":"assistant","parts":[{"type":"reasoning","content":"h\"m"},{"type":"text","content":"Hello!"},{"type":"tool_call","id":"c","name":"f","arguments":{"x":2}}],"finish_reason":"stop"}]`},
		},
		"tools of messages": {
			`{"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"f","input":{"x":1}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":[{"type":"text","text":"found"},{"type":"image","source":{"type":"base64","data":"AAAA"}}]}]}]}`,
			`{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"u","name":"g","input":{}}}` + "\n" + `{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\"y\""}}` + "\n" +
				`{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":":2}"}}` + "\n" + `{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":3}}`,
			map[string]string{
				keyInput:  `[{"role":"assistant","parts":[{"type":"tool_call","id":"t","name":"f","arguments":{"x":1}}]},{"role":"user","parts":[{"type":"tool_call_response","id":"t","response":"found\n"}]}]`,
				keyOutput: `[{"role":"assistant","parts":[{"type":"tool_call","id":"u","name":"g","arguments":{"y":2}}],"finish_reason":"tool_call"}]`,
			},
		},
		"messages in one piece": {
			`{}`, `{"type":"message","role":"assistant","content":[{"type":"text","text":"I look."},{"type":"tool_use","id":"u","name":"g","input":{"y":2}}],"stop_reason":"max_tokens"}`,
			map[string]string{keyOutput: `[{"role":"assistant","parts":[{"type":"text","content":"I look."},{"type":"tool_call","id":"u","name":"g","arguments":{"y":2}}],"finish_reason":"length"}]`},
		},
		"tools of responses": {
			`{"input":[{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":""}]}`,
			`{"type":"response.output_item.added","output_index":0,"item":{"type":"function_call","call_id":"d","name":"g","arguments":""}}` + "\n" + `{"type":"response.function_call_arguments.delta","output_index":0,"delta":"{\"y\":"}`,
			map[string]string{
				keyInput:  `[{"role":"assistant","parts":[{"type":"tool_call","id":"c","name":"f","arguments":{}}]},{"role":"tool","parts":[{"type":"tool_call_response","id":"c","response":""}]}]`,
				keyOutput: `[{"role":"assistant","parts":[{"type":"tool_call","id":"d","name":"g","arguments":"{\"y\":"}],"finish_reason":"stop"}]`,
			},
		},
		"tools of chat, defined": {
			`{"tools":[{"type":"function","function":{"name":"look","description":"Looks.","strict":true,"parameters":{"type":"object", "properties":{"q":{"type":"string"}}}}},
				{"type":"custom","custom":{"name":"write","description":"Writes.","format":{"type":"text"}}},{"type":"function","function":{"name":"bare"}},7]}`, ``,
			map[string]string{keyTools: `[{"type":"function","name":"look","description":"Looks.","parameters":{"type":"object","properties":{"q":{"type":"string"}}}},` +
				`{"type":"custom","name":"write","description":"Writes."},{"type":"function","name":"bare"}]`},
		},
		"functions, their older name": {
			`{"functions":[{"name":"look","parameters":{}}]}`, ``, map[string]string{keyTools: `[{"type":"function","name":"look","parameters":{}}]`},
		},
		"tools of responses, defined": {
			`{"tools":[{"type":"function","name":"look","description":null,"parameters":{"type":"object"},"strict":true},{"type":"function","name":"bare","parameters":null},{"type":"web_search"}]}`, ``,
			map[string]string{keyTools: `[{"type":"function","name":"look","parameters":{"type":"object"}},{"type":"function","name":"bare"},{"type":"web_search"}]`},
		},
		"tools of messages, defined": {
			`{"tools":[{"name":"look","description":"Looks.","input_schema":{"type":"object"}},{"type":"custom","name":"see","input_schema":{}},{"type":"bash_20250124","name":"bash"}]}`, ``,
			map[string]string{keyTools: `[{"type":"function","name":"look","description":"Looks.","parameters":{"type":"object"}},{"type":"function","name":"see","parameters":{}},{"type":"bash_20250124","name":"bash"}]`},
		},
		"odd tools": {
			`{"tools":[{"type":"function","function":{"name":7,"description":["a"],"parameters":"none"}},{"type":"function","function":"look"},{"type":["x"]}],"functions":{"a":1}}`, ``,
			map[string]string{keyTools: `[{"type":"function","name":"7","description":"[\"a\"]","parameters":"none"},{"type":"function"},{"type":"function"}]`},
		},
		"an odd message among others": {
			`{"messages":[{"role":"user","content":"one"},7,{"role":["user"]},{"role":"user","name":{"a":1},"content":[{"type":"text","text":{"value":"x"}},"two",3]}]}`, ``,
			map[string]string{keyInput: `[{"role":"user","parts":[{"type":"text","content":"one"}]},{"role":"user","parts":[{"type":"text","content":"{\"value\":\"x\"}"},{"type":"text","content":"two"}]}]`},
		},
		"nonsense":     {`{"messages":7,"prompt":{"a":1}}`, `<html>`, map[string]string{}},
		"an odd event": {`{}`, `{"choices":"no"}` + "\n" + `{"choices":[{"index":0,"delta":{"content":"y"}}]}`, map[string]string{keyOutput: `[{"role":"assistant","parts":[{"type":"text","content":"y"}],"finish_reason":"stop"}]`}},
	} {
		t.Run(name, func(t *testing.T) {
			var a attrs
			(&spanner{left: saidMost}).said(&a, &ledger.Record{Said: &ledger.Said{Asked: []byte(tc.asked), Answered: []byte(tc.answered)}})
			got := map[string]string{}
			for _, kv := range a {
				got[string(kv.Key)] = kv.Value.AsString()
			}
			for k, want := range tc.want {
				if got[k] != want {
					t.Errorf("%s is\n%s, want\n%s", k, got[k], want)
				}
			}
			if len(got) != len(tc.want) {
				t.Errorf("%d attributes, want %d: %v", len(got), len(tc.want), got)
			}
		})
	}
}

// TestRedact takes out what looks like a key, wherever it stands, also where a stream had cut it in two, and nothing else.
func TestRedact(t *testing.T) {
	secrets := []string{
		"sk-proj-abcdefghijklmnop1234", "hr_0123456789abcdefghijkl", "rpa_ABCDEFGHIJKLMNOPQRSTUVWX", "ghp_abcdefghijklmnopqrstuvwxyz0123456789", "AKIAIOSFODNN7EXAMPLE",
		"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcDEF123", "Bearer abcdef0123456789",
	}
	for _, s := range secrets {
		if got := redact("use " + s + ", please"); got != "use "+redacted+", please" {
			t.Errorf("%q became %q", s, got)
		}
		half := len(s) / 2
		var a attrs
		(&spanner{left: saidMost}).said(&a, &ledger.Record{Said: &ledger.Said{
			Asked:    []byte(`{"messages":[{"role":"user","content":"` + s + `"}],"tools":[{"type":"function","function":{"name":"` + s + `","description":"with ` + s + `","parameters":{"default":"` + s + `"}}}]}`),
			Answered: []byte(`{"choices":[{"index":0,"delta":{"content":"` + s[:half] + `"}}]}` + "\n" + `{"choices":[{"index":0,"delta":{"content":"` + s[half:] + `"}}]}`),
		}})
		for _, kv := range a {
			if v := kv.Value.AsString(); strings.Contains(v, s) || !strings.Contains(v, redacted) {
				t.Errorf("%s has %s", kv.Key, v)
			}
		}
	}
	for in, want := range map[string]string{ // a JSON text in a text
		`{"a":"x\nsk-proj-abcdefghijklmnop1234"}`: `{"a":"x\n[redacted]"}`, `{"a":"\u000abearer abcdef0123456789"}`: `{"a":"\u000a[redacted]"}`,
	} {
		if got := redact(in); got != want {
			t.Errorf("%s became %s", in, got)
		}
	}
	for _, s := range []string{"task-oriented", "the bearer of news", "a risk-free asking", "hr_department", "-----BEGIN CERTIFICATE-----"} {
		if got := redact(s); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
}

// TestSaidThatWaitsIsBounded lets no more wait than a batch may have, and takes more again when it is gone.
func TestSaidThatWaitsIsBounded(t *testing.T) {
	e := &Export{}
	half := func() *ledger.Said { return &ledger.Said{Asked: make([]byte, saidMost/2)} }
	a, b := e.hold(half()), e.hold(half())
	if a.Cut || b.Cut {
		t.Error("there was room")
	}
	if c := e.hold(&ledger.Said{Answered: []byte("x")}); !c.Cut || c.Answered != nil {
		t.Errorf("there was none, and %q waits", c.Answered)
	}
	e.letGo(a)
	if c := e.hold(half()); c.Cut {
		t.Error("there is room again")
	}
	if e.hold(nil) != nil {
		t.Error("nothing became something")
	}
}

// TestSaidOfABatchIsBounded has requests whose words take more room in the conventions' shape than in their bodies: a batch of them has no
// more than a collector takes, and spans say what is missing.
func TestSaidOfABatchIsBounded(t *testing.T) {
	const most = 40_000
	s, sum, cut := &spanner{left: most}, 0, 0
	asked := []byte(`{"prompt":[` + strings.Repeat(`"a",`, most/60) + `"a"]}`)
	for range 4 {
		var a attrs
		s.said(&a, &ledger.Record{Said: &ledger.Said{Asked: asked}})
		for _, kv := range a {
			if kv.Key == keyContentCut {
				cut++
			}
			sum += len(kv.Value.AsString())
		}
	}
	if sum > most || sum <= len(asked) || cut == 0 || cut == 4 {
		t.Errorf("%d bytes of four bodies of %d, %d cut", sum, len(asked), cut)
	}
}

// TestAnswersEnd names a reason for which each ended: the conventions want one.
func TestAnswersEnd(t *testing.T) {
	for _, tc := range []struct {
		reason, noted string
		class         outcome.Class
		want          string
	}{
		{"", "", outcome.Truncated, "error"},
		{"", "length", outcome.Success, "length"},
		{"", "incomplete", outcome.Success, "length"},
		{"end_turn", "", outcome.Success, "stop"},
		{"refusal", "", outcome.Success, "content_filter"},
		{"a word of its own", "stop", outcome.Success, "a word of its own"},
	} {
		if got := finishOf(tc.reason, &ledger.Record{Finish: tc.noted, Class: tc.class}); got != tc.want {
			t.Errorf("%q, %q, %s: %q, want %q", tc.reason, tc.noted, tc.class, got, tc.want)
		}
	}
}
