package gateway

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"strings"
	"testing"
)

// scanned is what a formScanner found.
type scanned struct {
	found, ended bool
	value        string
	from, to     int64
	wrong        string
}

func scanForm(body []byte, bound string, cuts func(n int) int) scanned {
	sc := newFormScanner(bound)
	for len(body) > 0 {
		n := cuts(len(body))
		sc.feed(body[:n])
		body = body[n:]
	}
	out := scanned{found: sc.found, ended: sc.ended}
	if sc.wrong != nil {
		out.wrong = sc.wrong.message
	}
	if sc.found {
		out.value, out.from, out.to = string(sc.value), sc.from, sc.to
	}
	return out
}

func allAtOnce(n int) int { return n }

// modelOf is the model field as mime/multipart reads it; ok is false when the form is not whole up to it.
func modelOf(body []byte, bound string) (value string, ok, whole bool) {
	mr := multipart.NewReader(bytes.NewReader(body), bound)
	for {
		p, err := mr.NextPart()
		if err != nil {
			return "", false, errors.Is(err, io.EOF)
		}
		b, err := io.ReadAll(p)
		if err != nil {
			return "", false, false
		}
		if p.FormName() == "model" && p.FileName() == "" {
			return string(b), true, true
		}
	}
}

func TestFormScanner(t *testing.T) {
	for name, tc := range map[string]struct {
		body  string
		value string
		found bool
		ended bool
	}{
		"first":                           {part("model", "", "m") + formEnd, "m", true, true},
		"last":                            {part("a", "", "b") + part("model", "", "m") + formEnd, "m", true, true},
		"none":                            {part("a", "", "b") + formEnd, "", false, true},
		"a file":                          {part("model", "x", "m") + formEnd, "", false, true},
		"empty value":                     {part("model", "", "") + formEnd, "", true, true},
		"empty part in front":             {"--" + boundary + "\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n--" + boundary + "\r\n" + strings.SplitN(part("model", "", "m"), "\r\n", 2)[1] + formEnd, "m", true, true},
		"delimiter's likeness in a value": {part("a", "", "x\r\n--"+boundary+"y\r\n\r\r\n--"+boundary[:5]) + part("model", "", "m") + formEnd, "m", true, true},
		"likeness in the model":           {part("model", "", "x\r\n--"+boundary+"y") + formEnd, "x\r\n--" + boundary + "y", true, true},
		"bytes of a likeness are kept":    {part("model", "", "a\r\n--"+boundary[:4]+"b\r\r\nc") + formEnd, "a\r\n--" + boundary[:4] + "b\r\r\nc", true, true},
		"other disposition":               {strings.Replace(part("model", "", "m"), "form-data", "attachment", 1) + formEnd, "", false, true},
		"no end":                          {part("model", "", "m"), "", false, false},
		"white space behind a delimiter":  {strings.Replace(part("model", "", "m"), boundary, boundary+" \t", 1) + formEnd, "m", true, true},
		"header in capitals":              {strings.Replace(part("model", "", "m"), "Content-Disposition", "CONTENT-DISPOSITION", 1) + formEnd, "m", true, true},
		"two models":                      {part("model", "", "m") + part("model", "", "n") + formEnd, "m", true, true},
		"nothing":                         {"", "", false, false},
		"only an end":                     {formEnd, "", false, true},
	} {
		t.Run(name, func(t *testing.T) {
			got := scanForm([]byte(tc.body), boundary, allAtOnce)
			if got.found != tc.found || got.value != tc.value || got.ended != tc.ended {
				t.Errorf("%+v, want found %t, %q, ended %t", got, tc.found, tc.value, tc.ended)
			}
			if got.found && tc.body[got.from:got.to] != tc.value {
				t.Errorf("it stands at %d to %d, where %q is", got.from, got.to, tc.body[got.from:got.to])
			}
		})
	}
}

// What hosts' readers take for a model and ours does not, or the other way round, is refused, wherever it stands.
func TestFormScannerRefuses(t *testing.T) {
	m, end := part("model", "", "m"), formEnd
	head := func(h string) string { return "--" + boundary + "\r\n" + h + "\r\n\r\nn\r\n" }
	for name, body := range map[string]string{
		"twice":                        m + part("file", "a", "x") + part("model", "", "n") + end,
		"another case":                 part("Model", "", "n") + m + end,
		"another case behind":          m + part("MODEL", "", "n") + end,
		"as a list":                    m + part("model[]", "", "n") + end,
		"with a blank":                 m + part(" model", "", "n") + end,
		"with a backslash":             m + part(`mod\el`, "", "n") + end,
		"as a file":                    m + part("model", "a", "n") + end,
		"no form-data":                 m + head(`Content-Disposition: attachment; name="model"`) + end,
		"malformed":                    head(`Content-Disposition: form-data; name="model"; x`) + m + end,
		"two names":                    m + head(`Content-Disposition: form-data; name="a"; name="model"`) + end,
		"another character set":        m + head(`Content-Disposition: form-data; name="a"; name*=utf-8''model`) + end,
		"in pieces":                    m + head(`Content-Disposition: form-data; name*0="mod"; name*1="el"`) + end,
		"two dispositions":             m + head("Content-Disposition: form-data; name=\"a\"\r\nContent-Disposition: form-data; name=\"model\"") + end,
		"blank before the colon":       m + head(`Content-Disposition : form-data; name="model"`) + end,
		"line feed in a head":          m + head("A: b\nContent-Disposition: form-data; name=\"model\"") + end,
		"carriage return in a head":    m + head("A: b\rContent-Disposition: form-data; name=\"model\"") + end,
		"line feed only":               strings.ReplaceAll(m+end, "\r\n", "\n"),
		"line feed at a boundary":      part("a", "", "x\n--"+boundary+"\nContent-Disposition: form-data; name=\"model\"\n\nn") + m + end,
		"boundary in a value":          part("a", "", "x--"+boundary) + m + end,
		"boundary in the preamble":     "x--" + boundary + "\r\n" + m + end,
		"boundary behind the end":      m + end + part("model", "", "n") + end,
		"text behind a boundary":       m + "--" + boundary + "  x\r\n" + end,
		"disposition of many lines":    m + head(`Content-Disposition: form-data; name="a";`+strings.Repeat("\r\n "+strings.Repeat("b", 1000), 6)) + end,
		"disposition of a long line":   m + head(`Content-Disposition: form-data; a="`+strings.Repeat("b", 5000)+`"; name="model"`) + end,
		"models, where a key is bound": m + part("models", "", "n") + end,
	} {
		for _, cuts := range []func(int) int{allAtOnce, func(int) int { return 1 }, func(n int) int { return min(n, 7) }} {
			sc := newFormScanner(boundary)
			sc.confined = true
			for rest := body; rest != ""; {
				n := cuts(len(rest))
				sc.feed([]byte(rest[:n]))
				rest = rest[n:]
			}
			if sc.wrong == nil {
				t.Errorf("%s: nothing is wrong with %q", name, body)
			}
		}
	}
	for name, body := range map[string]string{
		"plain":                     m + part("file", "model.wav", "RIFF\r\n--x") + end,
		"preamble and epilogue":     "hello\n" + m + end + "bye\n",
		"foreign file name":         m + head(`Content-Disposition: form-data; name="file"; filename="a"; filename*=utf-8''%e2%82%ac`) + end,
		"models of an unbound key":  m + part("models", "", "n") + end,
		"dashes":                    m + part("prompt", "", "-----") + end,
		"a part without a name":     m + "--" + boundary + "\r\n\r\nx\r\n" + end,
		"blanks behind a boundary":  strings.Replace(m, boundary, boundary+" \t", 1) + end,
		"value that begins with it": part("a", "", "\r\n--") + m + end,
	} {
		if got := scanForm([]byte(body), boundary, func(int) int { return 1 }); got.wrong != "" || !got.found {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// FuzzFormScanner cuts forms at any place, and compares with Go's own reader.
func FuzzFormScanner(f *testing.F) {
	for _, s := range []string{
		part("model", "", "m") + formEnd,
		part("file", "a", "\r\n--xYz\r\n\r") + part("model", "", "m") + formEnd,
		"pre\r\n" + part("model", "", "") + formEnd + "post",
		"--" + boundary + "\r\n\r\n--" + boundary + "--",
		"--" + boundary + "\n\n\r\n--" + boundary + "--",
	} {
		f.Add([]byte(s), uint64(1))
	}
	f.Fuzz(func(t *testing.T, body []byte, seed uint64) {
		whole := scanForm(body, boundary, allAtOnce)
		same := func(a, b scanned) bool { return a == b || a.wrong != "" && b.wrong != "" } // of several mistakes the one that is met first is told
		r := rand.New(rand.NewPCG(seed, 0))
		if cut := scanForm(body, boundary, func(n int) int { return 1 + r.IntN(min(n, 9)) }); !same(cut, whole) {
			t.Fatalf("%q: cut %+v, whole %+v", body, cut, whole)
		}
		if one := scanForm(body, boundary, func(int) int { return 1 }); !same(one, whole) {
			t.Fatalf("%q: byte by byte %+v, whole %+v", body, one, whole)
		}
		if whole.found && (whole.from > whole.to || whole.to > int64(len(body)) || len(whole.value) < maxFormModel && string(body[whole.from:whole.to]) != whole.value) {
			t.Fatalf("%q: %+v", body, whole)
		}
		value, ok, _ := modelOf(body, boundary)
		switch {
		case !ok || len(value) > maxFormModel || bytes.Contains(body, []byte("\n\n")) || lineEndsOdd(body):
		case whole.found && whole.value != value:
			t.Fatalf("%q: found %q, mime/multipart finds %q", body, whole.value, value)
		}
	})
}

// lineEndsOdd tells whether a body has line ends other than CRLF, which the scanner takes for the
// ends of headers, and mime/multipart for those of delimiters too.
func lineEndsOdd(body []byte) bool {
	return bytes.Count(body, []byte("\n")) != bytes.Count(body, []byte("\r\n"))
}

// TestFormScannerRandom compares with mime/multipart on forms that a client may send.
func TestFormScannerRandom(t *testing.T) {
	r := random(t)
	pieces := []string{"\r", "\n", "-", "--", "\r\n", "\r\n--", boundary[:6], boundary, "\r\n--" + boundary, "a", "\x00\xff", "model"}
	for range 20_000 {
		var fields [][2]string
		for range r.IntN(4) {
			var v strings.Builder
			for range r.IntN(6) {
				v.WriteString(pieces[r.IntN(len(pieces))])
			}
			if strings.Contains("\r\n"+v.String()+"\r\n", "\r\n--"+boundary+"\r\n") || strings.Contains(v.String(), "\r\n--"+boundary) && r.IntN(4) > 0 {
				continue
			}
			fields = append(fields, [2]string{"f", v.String()})
		}
		at := r.IntN(len(fields) + 1)
		fields = append(fields[:at:at], append([][2]string{{"model", "the-model"}}, fields[at:]...)...)
		body := formBytes(t, fields...)
		value, ok, _ := modelOf(body, boundary)
		got := scanForm(body, boundary, func(n int) int { return 1 + r.IntN(n) })
		if !ok || value != "the-model" {
			continue // a value held a delimiter after all
		}
		if !got.found || got.value != value || string(body[got.from:got.to]) != value {
			t.Fatalf("%q: %+v", body, got)
		}
	}
}
