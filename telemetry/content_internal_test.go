package telemetry

import (
	"strings"
	"testing"

	"headrace/gateway/ledger"
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
					`{"role":"assistant","parts":[{"type":"tool_call","id":"c1","name":"look","arguments":"{\"q\":1}"}]},{"role":"tool","parts":[{"type":"tool_call_response","id":"c1","response":"found"}]}]`,
				keyOutput: `[{"role":"assistant","parts":[{"type":"reasoning","content":"hm"},{"type":"text","content":"Hello"}],"finish_reason":"stop"},{"role":"assistant","parts":[{"type":"text","content":"Other"}]}]`,
			},
		},
		"chat in one piece": {
			`{"messages":[{"role":"user","content":"x"}]}`, `{"choices":[{"index":0,"message":{"role":"assistant","content":"y"},"finish_reason":"length"}]}`,
			map[string]string{keyInput: `[{"role":"user","parts":[{"type":"text","content":"x"}]}]`, keyOutput: `[{"role":"assistant","parts":[{"type":"text","content":"y"}],"finish_reason":"length"}]`},
		},
		"tool calls in pieces": {
			`{}`, `{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\""}}]}}]}` + "\n" +
				`{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]},"finish_reason":"tool_calls"}]}`,
			map[string]string{keyOutput: `[{"role":"assistant","parts":[{"type":"tool_call","id":"a","name":"f","arguments":"{\"x\":1}"}],"finish_reason":"tool_calls"}]`},
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
				keyOutput: `[{"role":"assistant","parts":[{"type":"text","content":"Hello"}]}]`,
			},
		},
		"responses in one piece": {
			`{"input":[{"role":"user","content":[{"type":"input_text","text":"Hi"}]}]}`,
			`{"object":"response","output":[{"type":"message","role":"assistant","content":[{"type":"output_text","text":"Hello"}]},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"}]}`,
			map[string]string{
				keyInput:  `[{"role":"user","parts":[{"type":"text","content":"Hi"}]}]`,
				keyOutput: `[{"role":"assistant","parts":[{"type":"text","content":"Hello"},{"type":"tool_call","id":"c","name":"f","arguments":"{}"}]}]`,
			},
		},
		"messages": {
			`{"system":[{"type":"text","text":"Be kind."}],"messages":[{"role":"user","content":"Hi"}]}`,
			`{"type":"content_block_delta","delta":{"type":"text_delta","text":"Hel"}}` + "\n" + `{"type":"content_block_delta","delta":{"type":"text_delta","text":"lo"}}`,
			map[string]string{
				keyInput: `[{"role":"user","parts":[{"type":"text","content":"Hi"}]}]`, keyInstructions: `[{"type":"text","content":"Be kind."}]`,
				keyOutput: `[{"role":"assistant","parts":[{"type":"text","content":"Hello"}]}]`,
			},
		},
		"nonsense":     {`{"messages":7,"prompt":{"a":1}}`, `<html>`, map[string]string{}},
		"an odd event": {`{}`, `{"choices":"no"}` + "\n" + `{"choices":[{"index":0,"delta":{"content":"y"}}]}`, map[string]string{keyOutput: `[{"role":"assistant","parts":[{"type":"text","content":"y"}]}]`}},
	} {
		t.Run(name, func(t *testing.T) {
			var a attrs
			a.said(&ledger.Record{Said: &ledger.Said{Asked: []byte(tc.asked), Answered: []byte(tc.answered)}})
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
		a.said(&ledger.Record{Said: &ledger.Said{
			Asked:    []byte(`{"messages":[{"role":"user","content":"` + s + `"}]}`),
			Answered: []byte(`{"choices":[{"index":0,"delta":{"content":"` + s[:half] + `"}}]}` + "\n" + `{"choices":[{"index":0,"delta":{"content":"` + s[half:] + `"}}]}`),
		}})
		for _, kv := range a {
			if v := kv.Value.AsString(); strings.Contains(v, s) || !strings.Contains(v, redacted) {
				t.Errorf("%s has %s", kv.Key, v)
			}
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
