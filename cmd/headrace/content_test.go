package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"headrace/providers/fakecloud"
)

// TestContentOfSpans says words that are found again nowhere but in the spans of sampled requests, and there only while
// telemetry.content wants them.
func TestContentOfSpans(t *testing.T) {
	t.Parallel()
	c := &told{}
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}})
	yaml, otlp := fmt.Sprintf(appYAML, h.URL()+"/v1"), c.listenOTLP(t)
	r := startApp(t, t.TempDir(), yaml+fmt.Sprintf("telemetry: {otlp: %q, otlp_logs: true, sample: 1}\n", otlp), nil)
	send := func(path, body string) (text string) {
		t.Helper()
		res, err := http.Post(r.base+path, "application/json", strings.NewReader(body)) //nolint:noctx // loopback
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		all, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(all)) {
			var e struct {
				Choices []struct {
					Delta struct{ Content string }
				}
				Type  string
				Delta string
			}
			switch data, ok := strings.CutPrefix(line, "data: "); {
			case !ok || json.Unmarshal([]byte(data), &e) != nil:
			case len(e.Choices) > 0:
				text += e.Choices[0].Delta.Content
			case e.Type == "response.output_text.delta":
				text += e.Delta
			}
		}
		return text
	}
	stream := func(prompt string) string {
		t.Helper()
		return send("/v1/chat/completions", fmt.Sprintf(`{"model":"m","stream":true,"max_tokens":40,"messages":[{"role":"user","content":%q}],`+
			`"tools":[{"type":"function","function":{"name":"sew","description":"needle and thread","parameters":{"type":"object"}}}]}`, prompt))
	}
	stream("needle unasked")
	r.write(t, yaml+fmt.Sprintf("telemetry: {otlp: %q, otlp_logs: true, sample: 1, content: messages, content_max: 2KiB}\n", otlp))
	r.log.await(t, "config reloaded", 1)
	r.log.await(t, "prompts and answers are sent with traces", 1)
	answers := map[string]string{ // whose events are several times content_max
		"needle streamed":     stream("needle streamed"),
		"needle of Responses": send("/v1/responses", `{"model":"m","stream":true,"max_output_tokens":40,"input":"needle of Responses"}`),
	}
	_, answers["needle plain"] = ask(t, http.DefaultClient, r.base, "m", "needle plain", 5)
	stream("needle long " + strings.Repeat("hay ", 1000))
	r.write(t, yaml+fmt.Sprintf("telemetry: {otlp: %q, otlp_logs: true, sample: 0, failures: true, content: messages}\n", otlp))
	r.log.await(t, "config reloaded", 2)
	if err := h.SetFaults(fakecloud.Fault{Kind: fakecloud.ErrorEvent}); err != nil {
		t.Fatal(err)
	}
	stream("needle unsampled")
	_, page := get(t, "http://"+r.app.admin.Addr().String()+"/admin/v1/requests")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if out := page + r.log.String(); strings.Contains(out, "needle") {
		t.Errorf("what was said is in the admin API or the log:\n%s", out)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.lines {
		if strings.Contains(l.String(), "needle") {
			t.Errorf("what was said is in a log line: %s", l)
		}
	}
	found, tools, cut, failed := map[string]string{}, 0, 0, false
	for _, s := range c.spans {
		failed = failed || s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR
		said := map[string]string{}
		for _, kv := range s.Attributes {
			if v := kv.Value.GetStringValue(); kv.Key == "gen_ai.input.messages" || kv.Key == "gen_ai.output.messages" {
				said[kv.Key] = v
			} else if kv.Key == "gen_ai.tool.definitions" && v == `[{"type":"function","name":"sew","description":"needle and thread","parameters":{"type":"object"}}]` {
				tools++
			} else if strings.Contains(kv.String(), "needle") {
				t.Errorf("%s has it: %s", kv.Key, v)
			}
		}
		if attrText(s.Attributes, "headrace.content.cut") == "true" {
			cut++
		}
		if len(said) > 0 && s.Kind != tracepb.Span_SPAN_KIND_CLIENT {
			t.Errorf("span %s has what was said: %v", s.Name, said)
		}
		if in := said["gen_ai.input.messages"]; in != "" {
			found[in] = said["gen_ai.output.messages"]
		}
	}
	if len(found) != len(answers) || tools != 1 || cut != 1 || !failed {
		t.Errorf("%d requests' words, want %d; %d have a tool, want the one that is not too long; %d cut, want the long one; a failure is traced: %t\n%v", len(found), len(answers), tools, cut, failed, found)
	}
	for prompt, answer := range answers {
		in := fmt.Sprintf(`[{"role":"user","parts":[{"type":"text","content":%q}]}]`, prompt)
		text, _ := json.Marshal(answer)
		if out := found[in]; answer == "" || !strings.Contains(out, `"role":"assistant","parts":[{"type":"text","content":`+string(text)+`}]`) {
			t.Errorf("%s was answered %q, and the span says %s", prompt, answer, out)
		}
	}
}
