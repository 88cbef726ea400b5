package gateway

import (
	"testing"

	"headrace/router/endpoint"
)

// TestDisbelief has hosts report what cannot be: that is estimated, counted and charged to nobody. What can be stays as it was said.
func TestDisbelief(t *testing.T) {
	for name, tc := range map[string]struct {
		usage                     string
		stream                    bool
		prompt, cached, output    int64 // in the record, -1 for unknown
		reasoning                 int64
		counted, estimated, doubt bool
	}{
		"as it should be":           {`{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}`, true, 9, -1, 4, -1, true, false, false},
		"10^15 of both":             {`{"prompt_tokens":1000000000000000,"completion_tokens":1000000000000000}`, true, -1, -1, 3, -1, false, true, true},
		"10^15 of both, at once":    {`{"prompt_tokens":1000000000000000,"completion_tokens":1000000000000000}`, false, -1, -1, -1, -1, false, false, true},
		"all int64 of output":       {`{"prompt_tokens":9,"completion_tokens":9223372036854775807}`, true, 9, -1, 3, -1, true, true, true},
		"more cached than there is": {`{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":9000}}`, true, 9, -1, 4, -1, true, false, true},
		"more thought than said":    {`{"prompt_tokens":9,"completion_tokens":4,"completion_tokens_details":{"reasoning_tokens":5000}}`, true, 9, -1, 4, -1, true, false, true},
		"beyond the limit":          {`{"prompt_tokens":9,"completion_tokens":1000000}`, true, 9, -1, 3, -1, true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t, func(c *upConn, _ *upRequest) bool {
				if !tc.stream {
					c.send(jsonAnswer(200, `{"model":"m1","choices":[{"index":0,"message":{"content":"a b c"},"finish_reason":"stop"}],"usage":`+tc.usage+`}`))
					return true
				}
				c.sendStream(tokenEvent("a "), tokenEvent("b "), tokenEvent("c"), `data: {"choices":[],"usage":`+tc.usage+"}\n\n", "data: [DONE]\n\n")
				return true
			})
			g := newRig(t, []string{u.url()}, func(o *rigOptions) {
				o.edit = func(eps []endpoint.Endpoint) {
					eps[0].Price = endpoint.Price{Basis: endpoint.PerToken, USDPerMTokIn: 1, USDPerMTokOut: 1}
				}
			})
			stream := "false"
			if tc.stream {
				stream = "true"
			}
			if res, body, err := g.do(post("/v1/chat/completions", `{"model":"m1","max_tokens":50,"stream":`+stream+`,"messages":[{"role":"user","content":"hi"}]}`)); err != nil || res.StatusCode != 200 {
				t.Fatalf("%v: %s", err, body)
			}
			r := g.recordN(0)
			a := &r.Attempts[0]
			if r.Prompt != tc.prompt || r.Cached != tc.cached || r.Output != tc.output || r.Reasoning != tc.reasoning || r.Estimated != tc.estimated {
				t.Errorf("%d prompt tokens, %d cached, %d output, %d of reasoning, estimated %t", r.Prompt, r.Cached, r.Output, r.Reasoning, r.Estimated)
			}
			if a.Counted != tc.counted || a.Prompt > 1000 || a.Output > 1000 || a.Cached > a.Prompt || a.Reasoning > a.Output || !r.USDKnown || r.USD > 0.001 {
				t.Errorf("%+v, $%v", a, r.USD)
			}
			if n := g.srv.Disbelieved(); (n == 1) != tc.doubt {
				t.Errorf("%d were not believed", n)
			}
		})
	}
}
