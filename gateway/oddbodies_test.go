package gateway

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// TestBadInputBodies sends JSON that is wrong in itself or in what it says.
func TestBadInputBodies(t *testing.T) {
	const invalid, wrong = "invalid_json", "invalid_type"
	with := func(member string) string { return fmt.Sprintf(`{"model":%q,%s,"messages":[]}`, model, member) }
	var rows []badInput
	for _, b := range []struct{ name, body, code, param, says string }{
		{"nothing", "", invalid, "", "is empty"},
		{"blanks", " \r\n\t", invalid, "", "is empty"},
		{"null", "null", invalid, "", "is null"},
		{"false", "false", invalid, "", "is a boolean"},
		{"array", "[" + goodBody + "]", invalid, "", "is an array"},
		{"string", `"hi"`, invalid, "", "is a string"},
		{"number", "-1.5e3", invalid, "", "number"},
		{"a word", "hello", invalid, "", "not valid JSON"},
		{"a form", "model=m1&stream=true", invalid, "", "not valid JSON"},
		{"cut in a string", goodBody[:11], invalid, "", "inside a string"},
		{"cut behind a comma", goodBody[:14], invalid, "", "not complete"},
		{"no closing brace", goodBody[:len(goodBody)-1], invalid, "", "before its object is closed"},
		{"text behind it", goodBody + " x", invalid, "", "behind the end"},
		{"two objects", goodBody + "\n" + goodBody, invalid, "", "line 2, column 1"},
		{"NUL behind it", goodBody + "\x00", invalid, "", "0x00"},
		{"NUL before it", "\x00" + goodBody, invalid, "", "0x00"},
		{"byte order mark", "\xef\xbb\xbf" + goodBody, invalid, "", "byte order mark"},
		{"UTF-16", "{\x00\"\x00m\x00\"\x00:\x001\x00}\x00", invalid, "", "0x00"},
		{"single quotes", "{'model':'m1'}", invalid, "", "double quotes"},
		{"names without quotes", "{model:1}", invalid, "", "double quotes"},
		{"comma at the end", `{"model":"m1",}`, invalid, "", "member name"},
		{"no comma", `{"model":"m1" "n":1}`, invalid, "", "a comma"},
		{"comment", `{"model":"m1"/**/}`, invalid, "", "a comma"},
		{"NaN", with(`"top_p":NaN`), invalid, "", "where a value belongs"},
		{"leading zero", with(`"n":01`), invalid, "", "a comma"},
		{"hexadecimal number", with(`"n":0x1`), invalid, "", "a comma"},
		{"unknown escape", with(`"a":"\x"`), invalid, "", "no escape"},
		{"half an escape", with(`"a":"\u12"`), invalid, "", "no escape"},
		{"line break in a string", with("\"a\":\"b\nc\""), invalid, "", `such as \n or \u000a`},
		{"NUL in a string", with("\"a\":\"\x00\""), invalid, "", "0x00"},
		{"wrong bracket", with(`"a":[1}`), invalid, "", "closing bracket"},
		{"arrays 10000 deep", with(`"a":` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000)), "json_too_deep", "", "more than 512 deep"},
		{"objects 10000 deep and cut", `{"a":` + strings.Repeat(`{"a":`, 10000), "json_too_deep", "", "more than 512 deep"},
		{"model twice", with(`"model":"m2"`), "duplicate_key", "model", `"model" twice`},
		{"model twice by an escape", with(`"mod\u0065l":"m2"`), "duplicate_key", "model", `"model" twice`},
		{"unknown member twice", with(`"a":1,"a":2`), "duplicate_key", "a", "at line 1"},
		{"empty name twice", with(`"":1,"":2`), "duplicate_key", "", `"" twice`},
		{"stream twice", with(`"stream":true,"stream":false`), "duplicate_key", "stream", "twice"},
		{"no member", "{}", "missing_required_parameter", "model", "model"},
		{"no model", `{"messages":[]}`, "missing_required_parameter", "model", "model"},
		{"empty model", `{"model":""}`, "missing_required_parameter", "model", "model"},
		{"name in capitals", `{"MODEL":"m1"}`, "missing_required_parameter", "model", "model"},
		{"model in an object", `{"a":{"model":"m1"}}`, "missing_required_parameter", "model", "model"},
		{"model null", `{"model":null}`, wrong, "model", "but got null"},
		{"model number", `{"model":1}`, wrong, "model", "but got a number"},
		{"model list", `{"model":["m1"]}`, wrong, "model", "but got an array"},
		{"model object", `{"model":{"id":"m1"}}`, wrong, "model", "but got an object"},
		{"stream string", with(`"stream":"true"`), wrong, "stream", "but got a string"},
		{"stream number", with(`"stream":1`), wrong, "stream", "but got a number"},
		{"stream_options list", with(`"stream_options":[]`), wrong, "stream_options", "but got an array"},
		{"include_usage string", with(`"stream_options":{"include_usage":"yes"}`), wrong, "stream_options.include_usage", "but got a string"},
		{"max_tokens string", with(`"max_tokens":"5"`), wrong, "max_tokens", "but got a string"},
		{"max_tokens fraction", with(`"max_tokens":1.5`), wrong, "max_tokens", "no integer"},
		{"max_tokens of 30 digits", with(`"max_tokens":` + strings.Repeat("9", 30)), wrong, "max_tokens", "too large"},
		{"max_completion_tokens of 1e99", with(`"max_completion_tokens":1e99`), wrong, "max_completion_tokens", "no integer"},
		{"n list", with(`"n":[1]`), wrong, "n", "but got an array"},
		{"n string", with(`"n":"1"`), wrong, "n", "but got a string"},
	} {
		rows = append(rows, badInput{name: b.name, send: postChat + sizedMessage(b.body), status: 400, code: b.code, param: b.param, says: b.says})
	}
	for _, m := range []struct{ name, model, says string }{
		{"unknown", "nosuch", `The model "nosuch" does not exist. Available: m1.`},
		{"in capitals", "M1", `"M1"`},
		{"with a blank", "m1 ", `"m1 "`},
		{"with NUL", `m1\u0000`, `"m1\x00"`},
		{"of 60 KB", strings.Repeat("x", 60<<10), "xxx…"},
		{"that is no UTF-8", "\xff\xfe", `"?"`},
		{"with half a surrogate pair", `\ud800`, "does not exist"},
		{"with markup", `<b>&\"</b>`, `<b>&\"</b>`},
		{"with a line break", `a\r\nX-Evil: 1`, `"a\r\nX-Evil: 1"`},
		{"with a path", "../m1", `"../m1"`},
	} {
		rows = append(rows, badInput{
			name: "model " + m.name, send: postChat + sizedMessage(`{"model":"`+m.model+`"}`), status: 404, code: "model_not_found", param: "model", says: m.says,
			also: func(t *testing.T, r *http.Response) {
				if r.ContentLength > 1<<10 {
					t.Errorf("an error of %d bytes", r.ContentLength)
				}
			},
		})
	}
	for _, b := range []struct{ name, body string }{
		{"model with escapes", `{"mod\u0065l":"\u006d1"}`},
		{"capitals beside", with(`"Model":"m2","STREAM":"yes"`)},
		{"nulls", with(`"stream":null,"stream_options":null,"max_tokens":null,"n":null`)},
		{"empty stream_options", with(`"stream_options":{}`)},
		{"negative numbers", with(`"max_tokens":-1,"n":-1`)},
		{"whole numbers as fractions", with(`"max_tokens":5.0,"n":1e0`)},
		{"numbers that nobody reads", with(`"a":1e999,"b":-0,"c":` + strings.Repeat("9", 1000))},
		{"arrays 500 deep", with(`"a":` + strings.Repeat("[", 500) + strings.Repeat("]", 500))},
		{"many members", with(manyMembers(3000))},
		{"blanks all over", " {\r\n\t\"model\" : \"m1\" , \"messages\" : [ ] }\n"},
		{"no UTF-8", with("\"a\":\"\xff\xfe\"")},
		{"half a surrogate pair", with(`"a":"\ud800"`)},
		{"messages of another kind", `{"model":"m1","messages":"hi"}`}, // the host's to judge
	} {
		rows = append(rows, badInput{name: b.name, send: postChat + sizedMessage(b.body), status: 200, says: plainBody, seen: seenChat})
	}
	runBadInputs(t, rows)
	t.Run("model of 1 MB", func(t *testing.T) {
		runBadInputs(t, []badInput{{
			name: "alone", send: postChat + sizedMessage(`{"model":"`+strings.Repeat("x", 1<<20)+`"}`), status: 404, code: "model_not_found", param: "model", says: "xxx…",
		}}, func(o *rigOptions) { o.set.MaxBody = 2 << 20 })
	})
}

func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"k%d":0,`, i)
	}
	return b.String() + `"last":0`
}

// TestBadInputPassthrough sends odd things to where everything is passed on.
func TestBadInputPassthrough(t *testing.T) {
	send := func(line, fields, body string) string {
		return line + " HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer " + callerSecret + "\r\n" + fields + sizedMessage(body)
	}
	rows := []badInput{
		{name: "fields of this hop", send: send("PUT /v1/x", "Connection: keep-alive, X-Hop\r\nX-Hop: "+callerSecret+"\r\nTE: trailers\r\nKeep-Alive: "+callerSecret+"\r\nProxy-Authorization: "+callerSecret+"\r\nUpgrade: h2c\r\n", "x"), status: 200, seen: "PUT /v1/x"},
		{name: "credentials", send: send("POST /v1/x", "Cookie: "+callerSecret+"\r\nX-Api-Key: "+callerSecret+"\r\nApi-Key: "+callerSecret+"\r\nX-Headrace-A: "+callerSecret+"\r\n", "x"), status: 200, seen: "POST /v1/x"},
		{name: "blank in a name", send: send("POST /v1/x", "X A: 1\r\n", "x"), status: 200, seen: "POST /v1/x"},
		{name: "folded line", send: send("POST /v1/x", "X-A: 1\r\n 2\r\n", "x"), status: 200, seen: "POST /v1/x"},
		{name: "absolute form", send: send("POST http://other/v1/x?a=b", "", "x"), status: 200, seen: "POST /v1/x?a=b"},
		{name: "fragment", send: send("GET /v1/x?a#b", "", ""), status: 200, seen: "GET /v1/x?a"},
		{name: "escapes", send: send("DELETE /v1/x%2Fy/%zz?a=%00", "", ""), status: 400, code: "invalid_url"},
		{name: "escaped slash", send: send("DELETE /v1/x%2Fy?a=%00", "", ""), status: 200, seen: "DELETE /v1/x%2Fy?a=%00"},
		{name: "DELETE of a model", send: send("DELETE /v1/models/m1", "", ""), status: 200, seen: "DELETE /v1/models/m1"},
		{name: "dot segments", send: send("GET /v1/../admin", "", ""), status: 400, code: "invalid_url"},
		{name: "escaped dot segments", send: send("GET /v1/x/%2e%2E/admin", "", ""), status: 400, code: "invalid_url"},
		{name: "dot segments behind a backslash", send: send(`GET /v1/x\..\admin`, "", ""), status: 400, code: "invalid_url"},
		{name: "dot segments in the absolute form", send: send("GET http://gw/v1/../admin", "", ""), status: 400, code: "invalid_url"},
		{name: "outside v1", send: send("GET /admin", "", ""), status: 404, code: "unknown_url"},
		{name: "known route", send: send("GET "+chatPath, "", ""), status: 405, code: "method_not_allowed"},
		{name: "large body", send: send("POST /v1/x", "", strings.Repeat("x", 128<<10)), status: 413, code: "request_too_large", then: closed},
	}
	runBadInputs(t, rows, func(o *rigOptions) { o.set.Passthrough = "static:h0" })
}
