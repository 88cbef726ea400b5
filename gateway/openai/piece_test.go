package openai_test

import (
	"testing"

	"headrace/gateway/openai"
)

// TestPieceOf finds the piece in the events of every API, and none where something else would be missed.
func TestPieceOf(t *testing.T) {
	const none = openai.NoPiece
	for data, want := range map[string]struct {
		kind  openai.PieceKind
		text  string
		index int
	}{
		`{"id":"a","choices":[{"index":0,"delta":{"content":"x"},"logprobs":{"content":[{"token":"x"}]},"finish_reason":null}]}`:                 {openai.PieceText, `"x"`, 0},
		`{"choices":[{"delta":{"role":"assistant","content":"","reasoning_content":"hm"}}]}`:                                                     {openai.PieceReasoning, `"hm"`, 0},
		`{"choices":[{"index":0,"delta":{"content":null,"reasoning_content":"hm","reasoning":"hm"}}]}`:                                           {openai.PieceReasoning, `"hm"`, 0},
		`{"choices":[{"index":0,"delta":{"reasoning":"hm"}}],"usage":null}`:                                                                      {openai.PieceReasoning, `"hm"`, 0},
		`{"choices":[{"index":0,"text":"x","finish_reason":""}]}`:                                                                                {openai.PieceText, `"x"`, 0},
		`{"choices":[{"index":0,"delta":{"tool_calls":[{"index":2,"id":null,"type":"function","function":{"name":null,"arguments":"{\"a"}}]}}]}`: {openai.PieceArguments, `"{\"a"`, 2},
		`{"choices":[{"index":0,"delta":{"content":"","tool_calls":[{"index":1,"function":{"arguments":"x"}}]}}]}`:                               {openai.PieceArguments, `"x"`, 1},
		`{"choices":[{"index":0,"delta":{"content":"x","tool_calls":[]}}]}`:                                                                      {openai.PieceText, `"x"`, 0},
		`{"type":"response.output_text.delta","item_id":"i","output_index":1,"content_index":0,"delta":"x","logprobs":[]}`:                       {openai.PieceText, `"x"`, 0},
		`{"type":"response.refusal.delta","delta":"x"}`:                                                                                          {openai.PieceText, `"x"`, 0},
		`{"type":"response.reasoning_summary_text.delta","delta":"hm"}`:                                                                          {openai.PieceReasoning, `"hm"`, 0},
		`{"delta":"{\"a","output_index":3,"type":"response.function_call_arguments.delta"}`:                                                      {openai.PieceArguments, `"{\"a"`, 3},
		`{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"x"}}`:                                                      {openai.PieceText, `"x"`, 0},
		`{"type":"content_block_delta","index":1,"delta":{"type":"thinking_delta","thinking":"hm"}}`:                                             {openai.PieceReasoning, `"hm"`, 0},
		`{"type":"content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{\"a"}, "index": 4}`:                              {openai.PieceArguments, `"{\"a"`, 4},
		`{"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}`:                                                               {none, "", 0},
		`{"choices":[{"index":1,"delta":{"content":"x"}}]}`:                                                                                      {none, "", 0},
		`{"choices":[{"index":0,"delta":{"content":"x"}},{"index":1,"delta":{"content":"y"}}]}`:                                                  {none, "", 0},
		`{"choices":[{"index":0,"delta":{"content":"x","reasoning_content":"hm"}}]}`:                                                             {none, "", 0},
		`{"choices":[{"index":0,"delta":{"content":"x","refusal":"no"}}]}`:                                                                       {none, "", 0},
		`{"choices":[{"index":0,"delta":{"content":[{"type":"text","text":"x"}]}}]}`:                                                             {none, "", 0},
		`{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"x"}}]}}]}`:                        {none, "", 0},
		`{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"x"}},{"index":1,"function":{"arguments":"y"}}]}}]}`:   {none, "", 0},
		`{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":{"a":1}}}]}}]}`:                                        {none, "", 0},
		`{"choices":[{"index":0,"delta":{"tool_calls":[{"index":-1,"function":{"arguments":"x"}}]}}]}`:                                           {none, "", 0},
		`{"choices":[{"index":0,"delta":{"tool_calls":[7]}}]}`:                                                                                   {none, "", 0},
		`{"choices":[{"index":0,"delta":{"content":"x","tool_calls":[{"index":0,"function":{"arguments":"y"}}]}}]}`:                              {none, "", 0},
		`{"choices":[{"index":0,"message":{"content":"x"}}]}`:                                                                                    {none, "", 0},
		`{"choices":[{"index":0,"delta":{"function_call":{"arguments":"x"}}}]}`:                                                                  {none, "", 0},
		`{"choices":[7]}`: {none, "", 0},
		`{"choices":[]}`:  {none, "", 0},
		`{"type":"response.output_item.added","item":{"type":"function_call","name":"f"}}`:           {none, "", 0},
		`{"type":"response.output_text.delta","delta":{"a":1}}`:                                      {none, "", 0},
		`{"type":"response.output_text.delta"}`:                                                      {none, "", 0},
		`{"type":"response.code_interpreter_call_code.delta","delta":"x"}`:                           {none, "", 0},
		`{"type":"content_block_delta","delta":{"type":"signature_delta","signature":"x"}}`:          {none, "", 0},
		`{"type":"content_block_delta","delta":{"type":"text_delta","text":"x","citation":{"a":1}}}`: {none, "", 0},
		`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"x"}}`:        {none, "", 0},
		`{"type":"content_block_delta","delta":"x"}`:                                                 {none, "", 0},
		`{"choices":[{"index":0,"delta":{"content":"x"`:                                              {none, "", 0},
		`[DONE]`: {none, "", 0},
		`"x"`:    {none, "", 0},
		``:       {none, "", 0},
	} {
		raw := []byte(data)
		p := openai.PieceOf(raw)
		if got := data[p.At.From:p.At.To]; p.Kind != want.kind || got != want.text || p.Index != want.index {
			t.Errorf("%s: kind %d, %s of %d, want kind %d, %s of %d", data, p.Kind, got, p.Index, want.kind, want.text, want.index)
		}
		if n := testing.AllocsPerRun(10, func() { p = openai.PieceOf(raw) }); n > 0 {
			t.Errorf("%s: %v allocations", data, n)
		}
	}
}
