package openai

import (
	"bytes"
	"fmt"
	"net/http"
)

// Codes of a ScanError, sent to the caller as the error's "code".
const (
	CodeInvalidJSON  = "invalid_json"  // the body is no JSON, or no object
	CodeTooDeep      = "json_too_deep" // objects and arrays nested deeper than 512
	CodeDuplicateKey = "duplicate_key" // a name occurs twice in the outermost object
	CodeInvalidType  = "invalid_type"  // a member has the wrong type (OpenAI's own code for it)
)

// maxEcho bounds the bytes of a request body that an error message repeats.
const maxEcho = 32

// ScanError says why a request body was refused. Its message is made for the person who sent it.
type ScanError struct {
	Param   string // the member at fault, "" when the body is no JSON object at all
	Code    string
	Message string
	Offset  int // index of the byte at fault, len(body) when the body ends too early
}

// Error returns the message.
func (e *ScanError) Error() string { return e.Message }

// Wire returns the error as the caller gets it, under status 400.
func (e *ScanError) Wire() Error {
	return Error{
		Status: http.StatusBadRequest, Type: TypeOfStatus(http.StatusBadRequest),
		Message: e.Message, Param: e.Param, Code: e.Code,
	}
}

// where names a place in body as an editor shows it; columns count bytes.
func where(body []byte, at int) string {
	line := 1 + bytes.Count(body[:at], []byte{'\n'})
	column := at - bytes.LastIndexByte(body[:at], '\n')
	return fmt.Sprintf("line %d, column %d (byte %d)", line, column, at)
}

// found names the byte at at.
func found(body []byte, at int) string {
	if c := body[at]; c > ' ' && c < 0x7f {
		return fmt.Sprintf("%q", rune(c))
	}
	return fmt.Sprintf("the byte 0x%02x", body[at])
}

// syntaxError reports what stopped rd.
func syntaxError(body []byte, rd *reader) *ScanError {
	e := &ScanError{Code: CodeInvalidJSON, Offset: min(rd.i, len(body))}
	var expected string
	switch rd.problem {
	case endsEarly, endsInString:
		inside := "before its object is closed"
		if rd.problem == endsInString {
			inside = "inside a string"
		}
		e.Message = fmt.Sprintf("The request body is not complete: it ends after %d bytes %s. Send all of it, and check Content-Length.",
			len(body), inside)
		return e
	case tooDeep:
		e.Code = CodeTooDeep
		e.Message = fmt.Sprintf("The request body nests objects and arrays more than %d deep at %s. Flatten it.", maxDepth, where(body, e.Offset))
		return e
	case badControl:
		e.Message = fmt.Sprintf("The request body is not valid JSON: a string holds %s unescaped at %s. Write it as an escape such as \\n or \\u00%02x.",
			found(body, e.Offset), where(body, e.Offset), body[e.Offset])
		return e
	case badEscape:
		e.Message = fmt.Sprintf("The request body is not valid JSON: the backslash at %s starts no escape that JSON knows. Write \\\\ for a backslash.",
			where(body, e.Offset))
		return e
	case badNumber:
		expected = "a digit"
	case wantKey:
		expected = "a member name in double quotes"
	case wantColon:
		expected = "a colon"
	case wantCommaOrBrace:
		expected = "a comma or a closing brace"
	case wantCommaOrBracket:
		expected = "a comma or a closing bracket"
	default:
		expected = "a value"
	}
	e.Message = fmt.Sprintf("The request body is not valid JSON: found %s at %s where %s belongs. Check quotes, commas and brackets there.",
		found(body, e.Offset), where(body, e.Offset), expected)
	return e
}

// notAnObject reports a body that starts with something else; rd has tried to read that.
func notAnObject(body []byte, rd *reader) *ScanError {
	e := &ScanError{Code: CodeInvalidJSON}
	switch {
	case len(bytes.TrimSpace(body)) == 0:
		e.Message = `The request body is empty. Send a JSON object, such as {"model": "...", "messages": [...]}.`
	case bytes.HasPrefix(body, []byte("\xEF\xBB\xBF")):
		e.Message = "The request body starts with a byte order mark, which JSON forbids. Send it as UTF-8 without one."
	case rd.problem != fine:
		return syntaxError(body, rd)
	case rd.i < len(body):
		return trailing(body, rd.i)
	default:
		v := bytes.TrimLeft(body, " \t\r\n")
		e.Offset = len(body) - len(v)
		e.Message = fmt.Sprintf("The request body is %s. Send a JSON object instead, with its members in braces.", kind(v))
	}
	return e
}

// trailing reports bytes behind the value.
func trailing(body []byte, at int) *ScanError {
	return &ScanError{Code: CodeInvalidJSON, Offset: at, Message: fmt.Sprintf(
		"The request body goes on behind the end of its JSON, with %s at %s. Send one JSON object and nothing more.",
		found(body, at), where(body, at))}
}

// duplicate reports that the name at at, which reads as name, was there before.
func duplicate(body []byte, at int, name []byte) *ScanError {
	at += bytes.IndexByte(body[at:], '"')
	shown := string(name)
	if len(name) > maxEcho {
		shown = string(name[:maxEcho-3]) + "..."
	}
	return &ScanError{Param: shown, Code: CodeDuplicateKey, Offset: at, Message: fmt.Sprintf(
		"The request body has %q twice; the second is at %s. Send it once: servers differ in which of the two they take.",
		shown, where(body, at))}
}

// wrongType reports that param has the value v, which r has just read. It returns nil when there is
// no whole value: the problem that r has met is reported instead.
func (r *reader) wrongType(param, want string, v []byte) *ScanError {
	if len(v) == 0 {
		return nil
	}
	at := r.i - len(v)
	return &ScanError{Param: param, Code: CodeInvalidType, Offset: at, Message: fmt.Sprintf(
		"Invalid type for '%s': expected %s, but got %s at %s.", param, want, kind(v), where(r.b, at))}
}

// kind names the type of the JSON value v.
func kind(v []byte) string {
	switch v[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	if bytes.ContainsAny(v, ".eE") {
		return "a number that is no integer"
	}
	if len(v) > 18 {
		return "a number that is too large"
	}
	return "a number"
}
