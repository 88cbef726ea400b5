package openai

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxMessage bounds an upstream's message that is passed on, in bytes.
const maxMessage = 2 << 10

// NormalizeError turns an upstream's answer into the Error that a caller may get for it. asIs is
// true when body has OpenAI's shape already and can go on byte for byte.
//
// It knows OpenAI's shape, the flat one of older vLLM ({"object":"error","message":…,"code":400}),
// FastAPI's and problem+json's "detail", bodies with "message", "msg" or a text in "error", and plain
// text. Texts are cut at 2 KiB. HTML, binary data and JSON of unknown shape are not passed on.
// Where status is no error (some servers report errors under 200), the body's own code is taken, else 502.
func NormalizeError(status int, contentType, body []byte) (e Error, asIs bool) {
	e.Status = status
	body = bytes.TrimSpace(body)
	var fields map[string]json.RawMessage
	switch {
	case len(body) == 0:
		e.Message = "The upstream answered without a body."
	case isHTML(contentType, body):
		e.Message = htmlMessage
	case body[0] == '{' && json.Unmarshal(body, &fields) == nil:
		asIs = e.fromObject(fields)
	default:
		e.Message = textOf(body)
	}
	if e.Status < 400 || e.Status > 599 {
		e.Status = http.StatusBadGateway
	}
	if e.Message == "" {
		e.Message = fmt.Sprintf("The upstream answered with an error of unknown form (status %d %s).", e.Status, http.StatusText(e.Status))
	}
	if e.Type == "" {
		e.Type = TypeOfStatus(e.Status)
	}
	return e, asIs
}

const htmlMessage = "The upstream answered with an HTML page."

// isHTML says whether an answer is a page made for browsers, such as a proxy's error page.
func isHTML(contentType, body []byte) bool {
	return bytes.Contains(bytes.ToLower(contentType), []byte("html")) ||
		body[0] == '<' && looksLikeHTML(body[:min(len(body), 512)])
}

func looksLikeHTML(b []byte) bool {
	b = bytes.ToLower(b)
	for _, mark := range []string{"<!doctype html", "<html", "<head>", "<body", "<center>"} {
		if bytes.Contains(b, []byte(mark)) {
			return true
		}
	}
	return false
}

// fromObject fills e from a JSON object and says whether that has OpenAI's shape.
func (e *Error) fromObject(top map[string]json.RawMessage) (asIs bool) {
	at := top
	var inner map[string]json.RawMessage
	if v := top["error"]; len(v) > 0 && v[0] == '{' && json.Unmarshal(v, &inner) == nil {
		at = inner
	}
	e.Message = firstText(at, "message", "msg", "detail", "error", "title")
	if e.Type = word(at["type"]); strings.ContainsAny(e.Type, ":/ ") {
		e.Type = "" // the link that problem+json has there
	}
	e.Param = word(at["param"])
	e.Code = word(at["code"])
	if w := word(at["error"]); e.Code == "" && w != e.Message && !strings.Contains(w, " ") {
		e.Code = w // {"error":"some_code","msg":"what happened"}
	}
	if e.Status < 400 {
		for _, v := range []string{e.Code, word(at["status"]), word(top["code"]), word(top["status"])} {
			if n := httpStatus([]byte(v)); n != 0 {
				e.Status = n
				break
			}
		}
	}
	if e.Code == strconv.Itoa(e.Status) {
		e.Code = "" // it says nothing that the status does not
	}
	if m := inner["message"]; len(m) == 0 || m[0] != '"' || word(m) == "" {
		return false
	}
	return e.Message != htmlMessage
}

// firstText returns the first of the named members that holds a text, fit for passing on.
func firstText(fields map[string]json.RawMessage, names ...string) string {
	for _, name := range names {
		if s := text(fields[name]); s != "" {
			return s
		}
	}
	return ""
}

// text returns what v says: a string, the message of an object, or the items of a list joined.
// FastAPI's validation errors are lists of {"loc":["body","max_tokens"],"msg":"…","type":"…"}.
func text(v json.RawMessage) string {
	if len(v) == 0 {
		return ""
	}
	switch v[0] {
	case '"':
		var s string
		if json.Unmarshal(v, &s) != nil {
			return ""
		}
		return fit(s)
	case '{':
		var fields map[string]json.RawMessage
		if json.Unmarshal(v, &fields) != nil {
			return ""
		}
		for _, name := range []string{"message", "msg", "detail", "error"} {
			var s string
			if json.Unmarshal(fields[name], &s) == nil && s != "" {
				var loc []any
				if json.Unmarshal(fields["loc"], &loc) == nil && len(loc) > 0 {
					s = place(loc) + ": " + s
				}
				return fit(s)
			}
		}
	case '[':
		var items []json.RawMessage
		if json.Unmarshal(v, &items) != nil {
			return ""
		}
		var all []string
		for _, item := range items[:min(len(items), 10)] {
			if len(item) > 0 && item[0] != '[' {
				if s := text(item); s != "" {
					all = append(all, s)
				}
			}
		}
		return fit(strings.Join(all, "; "))
	}
	return ""
}

// place writes a path such as body.messages.0.content.
func place(loc []any) string {
	var b strings.Builder
	for i, step := range loc {
		if i > 0 {
			b.WriteByte('.')
		}
		fmt.Fprint(&b, step)
	}
	return b.String()
}

// textOf returns what a body that is no JSON object says.
func textOf(body []byte) string {
	if body[0] == '"' || body[0] == '[' {
		if s := text(body); s != "" || json.Valid(body) {
			return s
		}
	}
	if json.Valid(body) || !utf8.Valid(body) || bytes.IndexByte(body, 0) >= 0 {
		return "" // a bare number or literal, or no text
	}
	return fit(string(body))
}

// fit makes s short enough to pass on, without cutting a character in two.
func fit(s string) string {
	s = strings.TrimSpace(s)
	// A message may wrap a page ("got 502: <html>…"). Further back, it is the caller's own prompt quoted.
	if looksLikeHTML([]byte(s[:min(len(s), 64)])) {
		return htmlMessage
	}
	if len(s) <= maxMessage {
		return s
	}
	const more = " […]"
	n := maxMessage - len(more)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + more
}

// word returns a string or number in full, "" for anything else or when it is longer than a word may be.
func word(v json.RawMessage) string {
	const maxWord = 256
	if len(v) == 0 || len(v) > maxWord {
		return ""
	}
	if v[0] == '"' {
		var s string
		if json.Unmarshal(v, &s) != nil {
			return ""
		}
		return s
	}
	if v[0] == '-' || v[0]-'0' <= 9 {
		return string(v)
	}
	return ""
}

// httpStatus returns v as an error status, 400 to 599, 0 when it is none.
func httpStatus(v []byte) int {
	if len(v) != 3 || v[0] != '4' && v[0] != '5' || v[1]-'0' > 9 || v[2]-'0' > 9 {
		return 0
	}
	return int(v[0]-'0')*100 + int(v[1]-'0')*10 + int(v[2]-'0')
}
