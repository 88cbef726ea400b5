package gateway

import (
	"bytes"
	"strings"

	"headrace/gateway/openai"
	"headrace/router"
	"headrace/router/endpoint"
)

// Header fields by which a request demands something of the hosts that may see it.
const (
	headerTrust  = "X-Headrace-Trust"
	headerRegion = "X-Headrace-Region"
)

// demands reads what the request asks of every host that may get it.
func (x *exchange) demands() *openai.Error {
	h := &x.ctx.Request.Header
	if v := h.Peek(headerTrust); len(v) > 0 {
		t, ok := endpoint.ParseTrust(strings.ToLower(strings.TrimSpace(string(v))))
		if !ok {
			return errDemand("x-headrace-trust", "one of community, verified, datacenter or secure")
		}
		x.demand.Trust = t
	}
	if v := h.Peek(headerRegion); len(v) > 0 {
		for r := range strings.SplitSeq(string(v), ",") {
			if r = strings.TrimSpace(r); r != "" {
				x.demand.Regions = append(x.demand.Regions, r)
			}
		}
		if len(x.demand.Regions) == 0 {
			return errDemand("x-headrace-region", "regions parted by commas, such as EU or US-KS-2,CA")
		}
	}
	return nil
}

func errDemand(header, want string) *openai.Error {
	return &openai.Error{
		Status: 400, Type: "invalid_request_error", Param: header, Code: "invalid_header",
		Message: "The header " + header + " is not understood. Give " + want + ", or leave it out.",
	}
}

// pin sends the request to the passthrough host, if that is all that the request demands.
func (x *exchange) pin() *openai.Error {
	if e := x.demands(); e != nil {
		return e
	}
	id := x.set.Passthrough
	if x.demand.Demanding() {
		if ep := x.s.router.Snapshot().Endpoint(id); ep == nil || !x.demand.Meets(ep) {
			return errUnavailable(&router.UnavailableError{Cause: router.Unqualified, Model: "passthrough", Reason: "the passthrough host does not meet the demanded trust and region"})
		}
	}
	x.pinned = id
	return nil
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
