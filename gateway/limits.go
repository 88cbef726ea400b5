package gateway

import (
	"strconv"
	"strings"
	"time"

	"headrace/gateway/admission"
)

// Names of header fields for limits, in the form they go out: OpenAI's, Anthropic's, and one of ours.
var (
	nameLimitRequests = []byte("X-Ratelimit-Limit-Requests")
	nameLeftRequests  = []byte("X-Ratelimit-Remaining-Requests")
	nameResetRequests = []byte("X-Ratelimit-Reset-Requests")
	nameLimitTokens   = []byte("X-Ratelimit-Limit-Tokens")
	nameLeftTokens    = []byte("X-Ratelimit-Remaining-Tokens")
	nameResetTokens   = []byte("X-Ratelimit-Reset-Tokens")

	nameRequestsLimit     = []byte("Anthropic-Ratelimit-Requests-Limit")
	nameRequestsRemaining = []byte("Anthropic-Ratelimit-Requests-Remaining")
	nameRequestsReset     = []byte("Anthropic-Ratelimit-Requests-Reset")
	nameTokensLimit       = []byte("Anthropic-Ratelimit-Tokens-Limit")
	nameTokensRemaining   = []byte("Anthropic-Ratelimit-Tokens-Remaining")
	nameTokensReset       = []byte("Anthropic-Ratelimit-Tokens-Reset")

	nameBudget      = []byte("X-Headrace-Budget-Remaining-Usd")
	nameShouldRetry = []byte("X-Should-Retry")
)

// ofAnthropic tells whether callers of the route have Anthropic's SDK.
func (r *route) ofAnthropic() bool { return strings.HasPrefix(r.path, "/v1/messages") }

// setLimits tells the caller what is left of his limits, as his SDK reads it.
func (x *exchange) setLimits(l *admission.Left) {
	var buf [64]byte
	h := &x.ctx.Response.Header
	switch {
	case l.RPM == 0:
	case x.route.ofAnthropic():
		h.SetCanonical(nameRequestsLimit, strconv.AppendInt(buf[:0], l.RPM, 10))
		h.SetCanonical(nameRequestsRemaining, strconv.AppendInt(buf[:0], l.Requests, 10))
		h.SetCanonical(nameRequestsReset, appendWhen(buf[:0], x.rec.At, l.RequestsFullIn))
	default:
		h.SetCanonical(nameLimitRequests, strconv.AppendInt(buf[:0], l.RPM, 10))
		h.SetCanonical(nameLeftRequests, strconv.AppendInt(buf[:0], l.Requests, 10))
		h.SetCanonical(nameResetRequests, appendReset(buf[:0], l.RequestsFullIn))
	}
	switch {
	case l.TPM == 0:
	case x.route.ofAnthropic():
		h.SetCanonical(nameTokensLimit, strconv.AppendInt(buf[:0], l.TPM, 10))
		h.SetCanonical(nameTokensRemaining, strconv.AppendInt(buf[:0], l.Tokens, 10))
		h.SetCanonical(nameTokensReset, appendWhen(buf[:0], x.rec.At, l.TokensFullIn))
	default:
		h.SetCanonical(nameLimitTokens, strconv.AppendInt(buf[:0], l.TPM, 10))
		h.SetCanonical(nameLeftTokens, strconv.AppendInt(buf[:0], l.Tokens, 10))
		h.SetCanonical(nameResetTokens, appendReset(buf[:0], l.TokensFullIn))
	}
	if l.Budget {
		h.SetCanonical(nameBudget, strconv.AppendFloat(buf[:0], l.USD(), 'f', 6, 64))
	}
}

// appendWhen writes the time that comes d after now as Anthropic does, in whole seconds: it is not over before.
func appendWhen(dst []byte, now time.Time, d time.Duration) []byte {
	return now.Add(d+time.Second-1).UTC().AppendFormat(dst, time.RFC3339)
}

// appendReset writes a time as OpenAI does: 12ms, 7.66s, 6m0s.
func appendReset(dst []byte, d time.Duration) []byte {
	switch d = max(d, 0); {
	case d < time.Second:
		return append(strconv.AppendInt(dst, d.Milliseconds(), 10), "ms"...)
	case d < time.Minute:
		return append(strconv.AppendFloat(dst, float64(d.Milliseconds())/1e3, 'f', -1, 64), 's')
	default:
		dst = append(strconv.AppendInt(dst, int64(d/time.Minute), 10), 'm')
		return append(strconv.AppendFloat(dst, float64((d%time.Minute).Milliseconds())/1e3, 'f', -1, 64), 's')
	}
}
