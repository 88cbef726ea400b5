package gateway

import (
	"testing"

	"headrace/gateway/ledger"
	"headrace/gateway/openai"
)

// TestSaidIsGivenBack has an exchange that ends give back what it kept, and leaves it with who took its record.
func TestSaidIsGivenBack(t *testing.T) {
	bound := ledger.NewBound(100)
	x := &exchange{}
	x.rec.Said = ledger.NewSaid(50, bound)
	x.rec.Said.Ask([]byte(`{"prompt":"x"}`))
	x.rec.Said.Text([]byte(`"answer"`))
	taken := x.rec.Said
	if bound.Left() >= 100 {
		t.Fatalf("%d bytes are left of 100 while they are kept", bound.Left())
	}
	x.release()
	if bound.Left() != 100 || string(taken.Asked) != `{"prompt":"x"}` {
		t.Errorf("%d bytes are free of 100, and %q is left", bound.Left(), taken.Asked)
	}
}

// TestKeep keeps what events say, and not what only repeats it.
func TestKeep(t *testing.T) {
	s := ledger.NewSaid(2000, ledger.NewBound(2000))
	for _, data := range []string{
		`{"id":"a","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}`,
		`{"id":"a","choices":[{"index":0,"delta":{"content":"Hel"}}]}`,
		`{"id":"a","choices":[{"index":0,"text":"lo"}]}`,
		`{"id":"a","choices":[{"index":1,"delta":{"content":"other"}}]}`,
		`{"id":"a","choices":[{"index":0,"delta":{"content":"!"},"finish_reason":"stop"}]}`,
		`{"id":"a","choices":[],"usage":{"prompt_tokens":1}}`,
		`[DONE]`,
		`{"id":"a","choices":[{"index":0,"delta":{"reasoning_content":"h"}}]}`,
		`{"type":"response.reasoning_text.delta","item_id":"i","output_index":0,"content_index":0,"delta":"m","sequence_number":4}`,
		`{"type":"response.output_text.delta","item_id":"i","output_index":1,"content_index":0,"delta":"H","logprobs":[],"sequence_number":5}`,
		`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"i"}}`,
		`{"id":"a","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":""}}]}}]}`,
		`{"id":"a","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"x"}}]}}]}`,
		`{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"\":1}"}}`,
		`{"type":"response.function_call_arguments.delta","item_id":"i","output_index":1,"delta":"{}"}`,
		`{"type":"response.output_text.done","text":"Hi"}`,
		`{"type":"response.completed","response":{"output":[]}}`,
		`{"type":"message_delta","delta":{"stop_reason":"end_turn"}}`,
		`{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}`,
	} {
		var c openai.Chunk
		c.Parse(nil, []byte(data))
		keep(s, &c, []byte(data))
	}
	want := `"Hello"` + "\n" + `{"choices":[{"index":1,"delta":{"content":"other"}}]}` + "\n" + `{"choices":[{"index":0,"delta":{"content":"!"},"finish_reason":"stop"}]}` + "\n" +
		`["reasoning","hm"]` + "\n" + `"Hi"` + "\n" + `{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":""}}]}}]}` + "\n" +
		`["arguments",0,"{\"x\":1}"]` + "\n" + `["arguments",1,"{}"]` + "\n" +
		`{"type":"message_delta","delta":{"stop_reason":"end_turn"}}` + "\n" + `{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}` + "\n"
	if string(s.Answered) != want {
		t.Errorf("kept\n%s, want\n%s", s.Answered, want)
	}
}
