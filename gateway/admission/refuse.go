package admission

import (
	"fmt"
	"strings"
	"time"

	"headrace/gateway/openai"
)

// reason is why a request was refused.
type reason uint8

const (
	noKey reason = iota
	badKey
	queryKey
	disabledKey
	expiredKey
	notAllowed
	overRequests
	overTokens
	overConcurrency
	overBudget
	unknownBudget
	numReasons
)

var reasonWords = [numReasons]string{"no_key", "bad_key", "key_in_query", "disabled", "expired", "not_allowed", "requests", "tokens", "concurrency", "budget", "budget_unknown"}

// Refusals calls each with every reason's word and how many requests were refused for it.
func (g *Gate) Refusals(each func(reason string, n int64)) {
	for r := range numReasons {
		each(reasonWords[r], g.counts.refused[r].Load())
	}
}

// Warned returns how many times a soft limit of a budget was passed.
func (g *Gate) Warned() int64 { return g.counts.warned.Load() }

// Waits returns how many requests waited for Redis and were told, and how many were not in time.
func (g *Gate) Waits() (answered, alone int64) {
	if g.share == nil {
		return 0, 0
	}
	alone = g.share.fellOut.Load()
	return max(0, g.share.waited.Load()-alone), alone
}

// refuse counts.
func (g *Gate) refuse(r reason, e *openai.Error) *openai.Error {
	if g != nil {
		g.counts.refused[r].Add(1)
	}
	return e
}

func errNoKey() *openai.Error {
	return &openai.Error{
		Status: 401, Type: openai.TypeInvalidRequest, Code: openai.CodeInvalidAPIKey,
		Message: "You didn't provide an API key. Send it in the header Authorization as \"Bearer KEY\", or in x-api-key or api-key.",
	}
}

// errBadKey says the same of every key that does not open the door: what is wrong with it is nobody's business.
func errBadKey() *openai.Error {
	return &openai.Error{
		Status: 401, Type: openai.TypeInvalidRequest, Code: openai.CodeInvalidAPIKey,
		Message: "Incorrect API key provided. Ask whoever runs this gateway for one: headrace keys create.",
	}
}

func errTwoKeys() *openai.Error {
	return &openai.Error{
		Status: 401, Type: openai.TypeInvalidRequest, Code: openai.CodeInvalidAPIKey,
		Message: "The request carries two different API keys. Send one, in one of the headers Authorization, x-api-key and api-key.",
	}
}

// errQueryKey names the parameter, which is one of a closed set.
func errQueryKey(name string) *openai.Error {
	return &openai.Error{
		Status: 401, Type: openai.TypeInvalidRequest, Param: name, Code: "api_key_in_query",
		Message: "The URL has a parameter " + name + ". URLs end up in logs, so no credential is taken from them, nor passed on: send it in the header Authorization as \"Bearer KEY\", and replace the key if it is a real one.",
	}
}

func errDisabled() *openai.Error {
	return &openai.Error{
		Status: 401, Type: openai.TypeInvalidRequest, Code: openai.CodeInvalidAPIKey,
		Message: "The API key is switched off for the time being. Ask whoever runs this gateway.",
	}
}

func errExpired(at time.Time) *openai.Error {
	return &openai.Error{
		Status: 401, Type: openai.TypeInvalidRequest, Code: openai.CodeInvalidAPIKey,
		Message: "The API key expired on " + at.UTC().Format(time.RFC3339) + ". Ask whoever runs this gateway for another one.",
	}
}

func errNotAllowed(param, code, message string) *openai.Error {
	return &openai.Error{Status: 403, Type: openai.TypeForbidden, Param: param, Code: code, Message: message}
}

// errRate says which limit was met. wait is how long until the same request would pass, 0 where it never will.
func errRate(r reason, limit, want int64, wait time.Duration) *openai.Error {
	e := &openai.Error{Status: 429, Type: openai.TypeRequests, Code: openai.CodeRateLimitExceeded, RetryAfter: wait}
	what := "requests per minute"
	if r == overTokens {
		e.Type, what = openai.TypeTokens, "tokens per minute"
	}
	switch {
	case r == overConcurrency:
		e.Message = fmt.Sprintf("Rate limit reached for this API key: %d requests at once are allowed. Wait for one of them to end.", limit)
	case wait == 0:
		e.Message = fmt.Sprintf("The request is too large for this API key: about %d tokens, where %d %s are allowed. Send less, or lower max_tokens.", want, limit, what)
	default:
		e.Message = fmt.Sprintf("Rate limit reached for this API key: %d %s are allowed. Try again in %s.", limit, what, seconds(wait))
	}
	return e
}

// errBudget says why a budget of which so much is spent has no room for a request that may cost nano; next is when one of those that run ends.
func errBudget(w window, limit, spent, nano int64, next time.Duration, now time.Time) *openai.Error {
	of, again := "of its life", "Ask whoever runs this gateway for more."
	end := w.ends(now)
	if !end.IsZero() {
		of, again = "of this "+w.String(), "It begins anew at "+end.Format(time.RFC3339)+"."
	}
	if spent < limit && nano <= limit-spent {
		return &openai.Error{
			Status: 429, Type: openai.TypeRequests, Code: openai.CodeRateLimitExceeded, RetryAfter: next,
			Message: fmt.Sprintf("What is left of this API key's budget %s, $%s of $%s, may be needed by its running requests. Wait for one of them to end.", of, dollars(limit-spent), dollars(limit)),
		}
	}
	e := &openai.Error{Status: 429, Type: openai.TypeInsufficientQuota, Code: openai.CodeInsufficientQuota}
	if !end.IsZero() {
		e.RetryAfter = end.Sub(now)
	}
	e.Message = fmt.Sprintf("This API key has spent its budget %s, $%s. %s", of, dollars(limit), again)
	if spent < limit {
		e.Message = fmt.Sprintf("This request alone may cost $%s, and $%s of this API key's budget %s, $%s, are left. Send less, or lower max_tokens. %s", dollars(nano), dollars(limit-spent), of, dollars(limit), again)
	}
	return e
}

func errBudgetUnknown() *openai.Error {
	return &openai.Error{
		Status: 503, Type: openai.TypeServer, Code: "budget_unknown", RetryAfter: time.Second,
		Message: "What is left of this API key's budget cannot be told: the gateway's Redis does not answer. Try again shortly.",
	}
}

// dollars writes an amount without needless zeros.
func dollars(nano int64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.6f", usd(nano)), "0"), ".")
}

// seconds writes how long to wait as people say it: a second at least, as the header says, and never less than it is.
func seconds(d time.Duration) string {
	const tenth = time.Second / 10
	return max(time.Second, (d + tenth - 1).Truncate(tenth)).String()
}
