package gateway

import (
	"bytes"
	"encoding/json"
	"strings"

	"headrace/gateway/admission/queue"
	"headrace/gateway/openai"
	"headrace/router"
	"headrace/router/affinity"
	"headrace/router/endpoint"
)

// Header fields by which a request says what it wants of the hosts that may get it. Each begins with headerPrefix.
const (
	headerPrefix  = "X-Headrace-"
	wantsSession  = "Session"
	wantsOnLoss   = "On-Preemption"
	wantsPriority = "Priority"
	wantsMaxWait  = "Max-Wait"
	maxSessionLen = 256
)

// wishes are the others, with router.Request.Wish's word for each.
var wishes = [...]struct{ header, word string }{
	{"Trust", "trust"}, {"Region", "region"}, {"Slo-Ttft", "ttft"}, {"Slo-Tps", "tps"}, {"Policy", "policy"},
}

// demands reads what the request asks of every host that may get it.
func (x *exchange) demands() *openai.Error {
	for k, v := range x.ctx.Request.Header.All() {
		if len(k) <= len(headerPrefix) || k[0] != 'X' && k[0] != 'x' || !bytes.EqualFold(k[:len(headerPrefix)], []byte(headerPrefix)) || len(v) == 0 {
			continue
		}
		if e := x.demand(k[len(headerPrefix):], bytes.TrimSpace(v)); e != nil {
			return e
		}
	}
	return nil
}

// demand reads one header field.
func (x *exchange) demand(name, value []byte) *openai.Error {
	is := func(s string) bool { return len(name) == len(s) && strings.EqualFold(string(name), s) }
	if is(wantsSession) {
		if len(value) > maxSessionLen {
			return errDemand("x-headrace-session", "a name of at most 256 bytes")
		}
		x.ask.Affinity.Session = affinity.SessionHash(x.model, value)
		return nil
	}
	if is(wantsPriority) {
		p, ok := queue.ParsePriority(string(value))
		if !ok {
			return errDemand("x-headrace-priority", "interactive or batch")
		}
		x.priority = max(x.priority, p) // never above what the key has
		return nil
	}
	if is(wantsMaxWait) {
		if _, ok := parseWait(value); !ok { // it is read where it matters
			return errDemand("x-headrace-max-wait", "a duration such as 500ms or 30s, or a number of seconds, up to 24 hours; 0 not to wait")
		}
		return nil
	}
	if is(wantsArm) {
		x.rec.Forced = true // see assign
		return nil
	}
	if is(wantsOnLoss) {
		p, ok := ParsePreemption(strings.ToLower(string(value)))
		if !ok {
			return errDemand("x-headrace-on-preemption", "continue, restart or fail")
		}
		x.onLoss = p
		return nil
	}
	for i := range wishes {
		if is(wishes[i].header) {
			if want, _ := x.ask.Wish(wishes[i].word, string(value)); want != "" {
				return errDemand(strings.ToLower(headerPrefix+wishes[i].header), want)
			}
			if p := x.ask.Policy; !x.grant.Policy(p) {
				return x.s.opt.Keys.NotAllowed("x-headrace-policy", "policy_not_allowed", "This API key may not ask for the policy "+p.String()+". Leave the header x-headrace-policy out for the model's own.")
			}
			return nil
		}
	}
	return nil
}

// recognise fills in what hosts may hold of the prompt already. A session's header outdoes what the body says of it.
func (x *exchange) recognise(body []byte) {
	x.scan.Marks(body, &x.ask.Affinity)
	if key := x.scan.CacheKey; len(key) > 0 {
		x.ask.Affinity.Session = affinity.SessionHash(x.model, key)
	}
}

func errDemand(header, want string) *openai.Error {
	return &openai.Error{
		Status: 400, Type: "invalid_request_error", Param: header, Code: "invalid_header",
		Message: "The header " + header + " is not understood. Give " + want + ", or leave it out.",
	}
}

// pin sends the request to the passthrough host, if that is all that the request demands.
func (x *exchange) pin() *openai.Error {
	if !x.grant.Passthrough() {
		return x.s.opt.Keys.NotAllowed("", "passthrough_not_allowed", "This API key may not use paths that the gateway does not know. It needs the right \"passthrough\".")
	}
	if e := x.demands(); e != nil {
		return e
	}
	id, also := x.set.Passthrough, x.grant.Demand()
	if x.ask.Demand.Demanding() || also != nil {
		if ep := x.s.router.Snapshot().Endpoint(id); ep == nil || !x.ask.Demand.Meets(ep) || also != nil && !also.Meets(ep) {
			return errUnavailable(&router.UnavailableError{Cause: router.Unqualified, Model: "passthrough", Reason: "the passthrough host does not meet the demanded trust and region"})
		}
	}
	x.pinned = id
	return x.spend()
}

// mediaMarks are what prompts with more than text hold in OpenAI's, Anthropic's and the Responses shapes.
var mediaMarks = [...][]byte{
	[]byte(`"image_url"`), []byte(`"input_image"`), []byte(`"input_audio"`), []byte(`"video_url"`), []byte(`"audio_url"`), []byte(`"input_file"`),
	[]byte(`"type":"image"`), []byte(`"type": "image"`), []byte(`"type":"file"`), []byte(`"type": "file"`),
}

// holdsMedia tells whether a prompt seems to hold images, audio or files.
func holdsMedia(body []byte) bool {
	for _, m := range mediaMarks {
		if bytes.Contains(body, m) {
			return true
		}
	}
	return false
}

// beyondPlain names the first member of a request that is more than a prompt and sampling parameters, "" when none is.
func beyondPlain(body []byte) string {
	for ms := openai.ReadMembers(body); ; {
		name, at, ok := ms.Next()
		if !ok {
			return ""
		}
		if name == nil { // escaped, and longer than all that are known
			name = unquoted(body[ms.NameAt().From:ms.NameAt().To])
		}
		if param := endpoint.BeyondPlain(name, body[at.From:at.To]); param != "" {
			return param
		}
	}
}

// unquoted is the text of a JSON string.
func unquoted(v []byte) []byte {
	var s string
	_ = json.Unmarshal(v, &s) // it was scanned
	return []byte(s)
}
