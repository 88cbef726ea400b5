package router

import (
	"strconv"
	"strings"
	"time"

	"headrace/router/endpoint"
)

// Wish reads what a caller asks of the hosts that may serve q, in the words of headers and of the admin API: name is trust,
// region, ttft, tps or policy. It returns what the value should have been, "" when it is understood; known is false for
// another name.
func (q *Request) Wish(name, value string) (want string, known bool) {
	var ok bool
	switch name {
	case "trust":
		q.Demand.Trust, ok = endpoint.ParseTrust(strings.ToLower(value))
		want = "one of community, verified, datacenter or secure"
	case "region":
		for r := range strings.SplitSeq(value, ",") {
			if r = strings.TrimSpace(r); r != "" {
				q.Demand.Regions = append(q.Demand.Regions, r)
			}
		}
		ok = len(q.Demand.Regions) > 0
		want = "regions parted by commas, such as EU or US-KS-2,CA"
	case "ttft":
		q.SLO.TTFT, ok = parseWait(value)
		want = "the most time to the first token, such as 800ms or 2s"
	case "tps":
		var err error
		q.SLO.TPS, err = strconv.ParseFloat(value, 64)
		ok = err == nil && q.SLO.TPS > 0 && q.SLO.TPS <= 1e6
		want = "the least tokens per second of the stream, such as 20"
	case "policy":
		q.Policy, ok = ParsePolicy(value)
		want = "one of " + Policies("or")
	default:
		return "", false
	}
	if ok {
		want = ""
	}
	return want, true
}

// Policies lists the words of ParsePolicy, the last two joined by the given one.
func Policies(last string) string {
	words := policyNames[PolicyCost:]
	return strings.Join(words[:len(words)-1], ", ") + " " + last + " " + words[len(words)-1]
}

// parseWait reads a time: a Go duration, or a number of seconds.
func parseWait(s string) (time.Duration, bool) {
	d, err := time.ParseDuration(s)
	if f, ferr := strconv.ParseFloat(s, 64); err != nil && ferr == nil && f > 0 && f < 86400 {
		d, err = time.Duration(f*float64(time.Second)), nil
	}
	return d, err == nil && d > 0 && d <= 24*time.Hour
}
