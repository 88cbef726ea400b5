package openai

import (
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Error types as OpenAI sends them. Its SDKs choose their exception by the HTTP status alone, so the
// type is for people and for programs that read the body themselves.
const (
	TypeInvalidRequest    = "invalid_request_error" // 4xx but for those below; OpenAI sends it with 401 and 404 too
	TypeForbidden         = "request_forbidden"     // 403
	TypeRateLimit         = "rate_limit_error"      // 429 when it is not known which limit was met
	TypeRequests          = "requests"              // 429: requests per minute
	TypeTokens            = "tokens"                // 429: tokens per minute
	TypeInsufficientQuota = "insufficient_quota"    // 429: the budget is spent, waiting does not help
	TypeServer            = "server_error"          // 5xx
)

// Error codes of OpenAI that the gateway sends as well.
const (
	CodeInvalidAPIKey     = "invalid_api_key"     // 401
	CodeModelNotFound     = "model_not_found"     // 404, also when the key may not use the model
	CodeRateLimitExceeded = "rate_limit_exceeded" // 429
	CodeInsufficientQuota = "insufficient_quota"  // 429
)

// Error is OpenAI's error object together with how it is sent. Its text goes to callers, so it may
// hold nothing that they must not see.
type Error struct {
	Status     int // HTTP status, 400 to 599
	Message    string
	Type       string        // "" means TypeOfStatus(Status)
	Param      string        // the request member at fault, "" for none
	Code       string        // what programs may key on, "" for none
	Partial    bool          // a part of the answer was sent: adds "partial":true
	RetryAfter time.Duration // value for the Retry-After header, 0 for none; only AppendEvent makes it part of the JSON
}

// Error returns status, code and message on one line, for logs.
func (e *Error) Error() string {
	if e.Code != "" {
		return fmt.Sprintf("status %d (%s): %s", e.Status, e.Code, e.Message)
	}
	return fmt.Sprintf("status %d: %s", e.Status, e.Message)
}

// AppendJSON appends {"error":{"message":…,"type":…,"param":…,"code":…}} to dst, with null for an
// empty param or code. It is valid JSON whatever the fields hold.
func (e *Error) AppendJSON(dst []byte) []byte { return append(e.appendMembers(dst), '}', '}') }

// AppendEvent appends what AppendJSON does, for an event of a stream whose header is out: RetryAfter becomes the member
// "retry_after" of the error, in whole seconds, rounded up.
func (e *Error) AppendEvent(dst []byte) []byte {
	return append(e.AppendRetryAfter(e.appendMembers(dst)), '}', '}')
}

// AppendRetryAfter appends ,"retry_after":SECONDS to an object that is not closed yet; nothing where RetryAfter is 0.
func (e *Error) AppendRetryAfter(dst []byte) []byte {
	if e.RetryAfter <= 0 {
		return dst
	}
	return strconv.AppendInt(append(dst, `,"retry_after":`...), int64((e.RetryAfter+time.Second-1)/time.Second), 10)
}

// appendMembers is AppendJSON without the two closing braces.
func (e *Error) appendMembers(dst []byte) []byte {
	kind := e.Type
	if kind == "" {
		kind = TypeOfStatus(e.Status)
	}
	dst = append(dst, `{"error":{"message":`...)
	dst = AppendString(dst, e.Message)
	dst = append(dst, `,"type":`...)
	dst = AppendString(dst, kind)
	dst = append(dst, `,"param":`...)
	dst = appendStringOrNull(dst, e.Param)
	dst = append(dst, `,"code":`...)
	dst = appendStringOrNull(dst, e.Code)
	if e.Partial {
		dst = append(dst, `,"partial":true`...)
	}
	return dst
}

func appendStringOrNull(dst []byte, s string) []byte {
	if s == "" {
		return append(dst, `null`...)
	}
	return AppendString(dst, s)
}

// TypeOfStatus returns the error type that goes with an HTTP status.
func TypeOfStatus(status int) string {
	switch {
	case status == http.StatusForbidden:
		return TypeForbidden
	case status == http.StatusTooManyRequests:
		return TypeRateLimit
	case status >= 500:
		return TypeServer
	default:
		return TypeInvalidRequest
	}
}
