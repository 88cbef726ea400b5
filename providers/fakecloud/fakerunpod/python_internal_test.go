package fakerunpod

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// TestDecodeReplace holds what CPython 3.11 answers.
func TestDecodeReplace(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                    "plain",
		"\xe2\x82":                 "\ufffd",
		"\x82\xac":                 "\ufffd\ufffd",
		"a\xf0\x9f\xa6":            "a\ufffd",
		"\xf0\x9f":                 "\ufffd",
		"\xc3":                     "\ufffd",
		"\xe2\x82\xac":             "€",
		"\xed\xa0\x80":             "\ufffd\ufffd\ufffd", // a surrogate
		"\xf0\x80\x80":             "\ufffd\ufffd\ufffd", // too long a form
		"\xf4\x90\x80\x80":         "\ufffd\ufffd\ufffd\ufffd",
		"\xc0\x80":                 "\ufffd\ufffd",
		"\xe2\x28\xa1":             "\ufffd(\ufffd",
		"\xef\xbf\xbd":             "\ufffd", // was there before
		"\xa6\x8a data: \xf0\x9f":  "\ufffd\ufffd data: \ufffd",
		"\xe6\xb0\xb4\xe8\xbb":     "水\ufffd",
		"\xf1\x80\x80\xf1\x80\x41": "\ufffd\ufffdA",
	} {
		got, destroyed := decodeReplace([]byte(in))
		n := strings.Count(want, "\ufffd") - strings.Count(in, "\xef\xbf\xbd")
		if got != want || destroyed != n {
			t.Errorf("%q: %q with %d destroyed, want %q with %d", in, got, destroyed, want, n)
		}
	}
}

// TestPythonStr holds what CPython's str() makes of json.loads of these.
func TestPythonStr(t *testing.T) {
	for in, want := range map[string]string{
		`"as it is"`:                                   "as it is",
		`{"message":"a","code":null,"n":400}`:          `{'message': 'a', 'code': None, 'n': 400}`,
		`{"a":[true,false,{}],"b":1.5}`:                `{'a': [True, False, {}], 'b': 1.5}`,
		`["it's"]`:                                     `["it's"]`,
		`["it's \"so\""]`:                              `['it\'s "so"']`,
		`["say \"so\"\n\t\\"]`:                         `['say "so"\n\t\\']`,
		"[\"\u00e9\\u0000\\u200b\\u2028 \U0001f98a\"]": "['\u00e9\\x00\\u200b\\u2028 \U0001f98a']",
		`["\ud83e\udd8a\u00a0"]`:                       "['\U0001f98a\\xa0']",
		`{`:                                            `{`,
	} {
		if got := pythonStr([]byte(in)); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// FuzzDecodeReplace checks that two halves of a text lose the one character between them and nothing else.
func FuzzDecodeReplace(f *testing.F) {
	f.Add("data: {\"content\":\"水車 🦊\"}\n\n", 23)
	f.Fuzz(func(t *testing.T, s string, cut int) {
		if !utf8.ValidString(s) || cut < 0 || cut > len(s) {
			return
		}
		a, n := decodeReplace([]byte(s[:cut]))
		b, m := decodeReplace([]byte(s[cut:]))
		from, to := cut, cut
		for from > 0 && from < len(s) && !utf8.RuneStart(s[from]) {
			from--
		}
		for to < len(s) && !utf8.RuneStart(s[to]) {
			to++
		}
		left, right := 0, to-cut
		if from < cut {
			left = 1
		}
		if n != left || m != right || a != s[:from]+strings.Repeat("\ufffd", left) || b != strings.Repeat("\ufffd", right)+s[to:] {
			t.Errorf("%q cut at %d: %q (%d), %q (%d)", s, cut, a, n, b, m)
		}
	})
}

// TestHandlerError checks the ends of what an exception of the handler becomes, as runpod-python 1.12 writes it.
func TestHandlerError(t *testing.T) {
	got := handlerError("KeyError", "'prompt'")
	for _, want := range []string{"handler: 'prompt' \ntraceback: Traceback (most recent call last):\n  File \"", ", in run_job_generator\nKeyError: 'prompt'\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
}
