package openai_test

import (
	"encoding/json"
	"strings"
	"testing"

	"headrace/gateway/openai"
)

func TestMembers(t *testing.T) {
	for _, tc := range []struct {
		in, want string // name=value of each, names in quotes as they stand
		whole    bool
	}{
		{`{}`, ``, true},
		{` { "a" : 1 , "b":{"c":[{}]} } `, `"a"=1 "b"={"c":[{}]}`, true},
		{`{"a":"\"}","\u0062":null,"a":NaN}`, `"a"="\"}" "\u0062"=null "a"=NaN`, true},
		{`{"a":1} x`, `"a"=1`, false},
		{`{"a":1,}`, `"a"=1`, false},
		{`{"a":1,"b":`, `"a"=1`, false},
		{`{"a":1,"b":[}`, `"a"=1`, false},
		{`[1]`, ``, false},
		{``, ``, false},
	} {
		var got []string
		m := openai.ReadMembers([]byte(tc.in))
		for name, at, ok := m.Next(); ok; name, at, ok = m.Next() {
			quoted := tc.in[m.NameAt().From:m.NameAt().To]
			var want string
			if err := json.Unmarshal([]byte(quoted), &want); err != nil || string(name) != want {
				t.Errorf("%s: name %q at %s", tc.in, name, quoted)
			}
			got = append(got, quoted+"="+tc.in[at.From:at.To])
		}
		if s := strings.Join(got, " "); s != tc.want || m.Whole() != tc.whole {
			t.Errorf("%s: %s, whole %v", tc.in, s, m.Whole())
		}
		if _, _, ok := m.Next(); ok {
			t.Errorf("%s: a member behind the last one", tc.in)
		}
	}
	m := openai.ReadMembers([]byte(`{"\u00e9":1,"` + strings.Repeat(`\u0061`, 33) + `":2,"é":3}`))
	for _, want := range []string{"", "", "é"} {
		if name, _, ok := m.Next(); !ok || string(name) != want {
			t.Errorf("name %q, want %q", name, want)
		}
	}
}
