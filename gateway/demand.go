package gateway

import (
	"bytes"
	"strconv"
	"strings"
	"time"

	"headrace/gateway/openai"
	"headrace/router"
	"headrace/router/affinity"
	"headrace/router/endpoint"
)

// Header fields by which a request says what it wants of the hosts that may get it. Each begins with headerPrefix.
const (
	headerPrefix  = "X-Headrace-"
	wantsTrust    = "Trust"
	wantsRegion   = "Region"
	wantsTTFT     = "Slo-Ttft"
	wantsTPS      = "Slo-Tps"
	wantsPolicy   = "Policy"
	wantsSession  = "Session"
	maxSessionLen = 256
)

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
	switch {
	case is(wantsTrust):
		t, ok := endpoint.ParseTrust(strings.ToLower(string(value)))
		if !ok {
			return errDemand("x-headrace-trust", "one of community, verified, datacenter or secure")
		}
		x.ask.Demand.Trust = t
	case is(wantsRegion):
		for r := range strings.SplitSeq(string(value), ",") {
			if r = strings.TrimSpace(r); r != "" {
				x.ask.Demand.Regions = append(x.ask.Demand.Regions, r)
			}
		}
		if len(x.ask.Demand.Regions) == 0 {
			return errDemand("x-headrace-region", "regions parted by commas, such as EU or US-KS-2,CA")
		}
	case is(wantsTTFT):
		d, ok := parseWait(string(value))
		if !ok {
			return errDemand("x-headrace-slo-ttft", "the most time to the first token, such as 800ms or 2s")
		}
		x.ask.SLO.TTFT = d
	case is(wantsTPS):
		f, err := strconv.ParseFloat(string(value), 64)
		if err != nil || !(f > 0 && f <= 1e6) { //nolint:staticcheck // NaN is out as well
			return errDemand("x-headrace-slo-tps", "the least tokens per second of the stream, such as 20")
		}
		x.ask.SLO.TPS = f
	case is(wantsPolicy):
		p, ok := router.ParsePolicy(string(value))
		if !ok {
			return errDemand("x-headrace-policy", "one of cost, latency, balanced or weighted")
		}
		x.ask.Policy = p
	case is(wantsSession):
		if len(value) > maxSessionLen {
			return errDemand("x-headrace-session", "a name of at most 256 bytes")
		}
		x.ask.Affinity.Session = affinity.SessionHash(x.model, value)
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

// parseWait reads a time: a Go duration, or a number of seconds.
func parseWait(s string) (time.Duration, bool) {
	d, err := time.ParseDuration(s)
	if f, ferr := strconv.ParseFloat(s, 64); err != nil && ferr == nil && f > 0 && f < 86400 {
		d, err = time.Duration(f*float64(time.Second)), nil
	}
	return d, err == nil && d > 0 && d <= 24*time.Hour
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
	if x.ask.Demand.Demanding() {
		if ep := x.s.router.Snapshot().Endpoint(id); ep == nil || !x.ask.Demand.Meets(ep) {
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
