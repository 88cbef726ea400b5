package resume_test

import (
	"testing"

	"headrace/gateway/openai"
	"headrace/gateway/resume"
)

func TestAllowed(t *testing.T) {
	const (
		chat     = `"messages":[{"role":"user","content":"hi"}]`
		complete = `"prompt":"once"`
	)
	for _, tc := range []struct {
		path, body string
		want       resume.Reason
	}{
		{"/chat/completions", chat, resume.None},
		{"/chat/completions", chat + `,"model":"m","stream":true,"max_tokens":9,"temperature":0.7,"top_p":1,"stop":["x"],"logit_bias":{"1":1},"user":"u"`, resume.None},
		{"/completions", complete, resume.None},
		{"/completions", complete + `,"echo":false,"suffix":null,"best_of":1,"logprobs":null,"seed":null,"n":1,"use_beam_search":false`, resume.None},
		{"/responses", `"input":"hi"`, resume.Route},
		{"/messages", chat, resume.Route},
		{"/embeddings", `"input":"hi"`, resume.Route},
		{"", chat, resume.Route},
		{"/chat/completions", chat + `,"tools":[{"type":"function"}]`, resume.Tools},
		{"/chat/completions", chat + `,"tools":[{"type":"function"}],"tool_choice":"auto"`, resume.Tools},
		{"/chat/completions", chat + `,"tools":[{"type":"function"}],"tool_choice":"none"`, resume.None},
		{"/chat/completions", chat + `,"tools":[],"functions":[{"name":"f"}]`, resume.Tools},
		{"/chat/completions", chat + `,"response_format":{"type":"json_object"}`, resume.StructuredOutput},
		{"/chat/completions", chat + `,"response_format":{"type":"text"}`, resume.None},
		{"/chat/completions", chat + `,"guided_json":{"a":1}`, resume.StructuredOutput},
		{"/chat/completions", chat + `,"structured_outputs":{"regex":"a"}`, resume.StructuredOutput},
		{"/completions", complete + `,"regex":"a"`, resume.StructuredOutput},
		{"/chat/completions", chat + `,"n":2`, resume.Choices},
		{"/completions", complete + `,"best_of":2`, resume.Choices},
		{"/completions", complete + `,"use_beam_search":true`, resume.Choices},
		{"/chat/completions", chat + `,"logprobs":true`, resume.Logprobs},
		{"/completions", complete + `,"logprobs":0`, resume.Logprobs},
		{"/completions", complete + `,"prompt_logprobs":0`, resume.Logprobs},
		{"/chat/completions", chat + `,"seed":0`, resume.Seed},
		{"/chat/completions", chat + `,"modalities":["text","audio"]`, resume.Audio},
		{"/chat/completions", chat + `,"modalities":["text"]`, resume.None},
		{"/chat/completions", chat + `,"modalities":null`, resume.None},
		{"/chat/completions", chat + `,"return_token_ids":true`, resume.TokenIDs},
		{"/chat/completions", `"messages":[]`, resume.PromptForm},
		{"/chat/completions", `"messages":"hi"`, resume.PromptForm},
		{"/chat/completions", complete, resume.PromptForm},
		{"/chat/completions", chat + `,"echo":true`, resume.PromptForm},
		{"/chat/completions", chat + `,"truncate_prompt_tokens":10`, resume.PromptForm},
		{"/chat/completions", chat + `,"kv_transfer_params":{"a":1}`, resume.PromptForm},
		{"/completions", chat, resume.PromptForm},
		{"/completions", `"prompt":["a"]`, resume.PromptForm},
		{"/completions", `"prompt":[1,2]`, resume.PromptForm},
		{"/completions", `"prompt":[[1,2]]`, resume.PromptForm},
		{"/completions", `"prompt":null`, resume.PromptForm},
		{"/completions", `"model":"m"`, resume.PromptForm},
		{"/completions", complete + `,"suffix":"end"`, resume.PromptForm},
		{"/completions", complete + `,"echo":true`, resume.PromptForm},
		{"/completions", complete + `,"prompt_embeds":"AA=="`, resume.PromptForm},
		{"/chat/completions", chat + `,"stop":"x","include_stop_str_in_output":true`, resume.Stop},
		{"/chat/completions", chat + `,"stop":[],"include_stop_str_in_output":true`, resume.None},
		{"/chat/completions", chat + `,"stop":"x","no_stop_trim":true`, resume.Stop},
		{"/chat/completions", `"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]`, resume.OwnPrefill},
		{"/chat/completions", `"messages":[{"role":"user","content":"hi"},{"content":"ho","r\u006fle":"assist\u0061nt"}]`, resume.OwnPrefill},
		{"/chat/completions", `"messages":[{"role":"assistant","content":"ho"},{"role":"user","content":"hi"}]`, resume.None},
		{"/chat/completions", chat + `,"continue_final_message":true`, resume.OwnPrefill},
		{"/chat/completions", chat + `,"add_generation_prompt":false`, resume.OwnPrefill},
		{"/chat/completions", chat + `,"continue_final_message":false,"add_generation_prompt":true`, resume.None},
		{"/chat/completions", chat + `,"continue_final_message":null,"add_generation_prompt":null`, resume.None},
	} {
		var q openai.Request
		if err := q.Scan([]byte("{" + tc.body + "}")); err != nil {
			t.Fatalf("%s: %v", tc.body, err)
		}
		if got := resume.Allowed(tc.path, &q); got != tc.want {
			t.Errorf("%s %s: %q, want %q", tc.path, tc.body, got, tc.want)
		}
	}
}

func TestReasonNames(t *testing.T) {
	seen := map[string]bool{}
	for r := resume.None; r <= resume.Finished; r++ {
		if name := r.String(); seen[name] || name == "unknown" || (name == "") != (r == resume.None) {
			t.Errorf("reason %d is called %q", r, name)
		}
		seen[r.String()] = true
	}
	if got := (resume.Finished + 1).String(); got != "unknown" {
		t.Errorf("no reason is called %q", got)
	}
}
