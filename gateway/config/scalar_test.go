package config

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	for in, want := range map[string]any{
		"2s": 2 * time.Second, "1.5m": 90 * time.Second, "1h30m": 90 * time.Minute, "500ms": 500 * time.Millisecond, "0": time.Duration(0), "0s": time.Duration(0),
		"8784h": 366 * 24 * time.Hour,
		"2":     "is a number without a unit", "1.5": "is a number without a unit", "-1s": "is negative", "8785h": "is longer than a year",
		"2 s": "is not a duration: it holds a space", "2d": "is not a duration: days are not understood", "1 day": "is not a duration: days are not understood",
		"": "is not a duration", "s": "is not a duration", "d": "is not a duration", "2x": "is not a duration",
	} {
		got, m := parseDuration(in)
		if d, ok := want.(time.Duration); ok != (m == nil) || ok && got != d || !ok && m.what != want {
			t.Errorf("%q: %v, %v; want %v", in, got, m, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"4096": 4096, "0": 0, "1B": 1, "16KB": 16000, "16KiB": 16384, "32MiB": 32 << 20, "32 MiB": 32 << 20, "1.5kib": 1536, "2GB": 2e9, "1GiB": 1 << 30,
		"1048576GiB": 1 << 50,
		"1048577GiB": -1, "9999999999999999999": -1, "1.5": -1, "0.3KiB": -1, "32M": -1, "": -1, "MiB": -1, "-1": -1, "1TB": -1, "1e3": -1, "1,5MiB": -1, "32  MiB": -1,
	} {
		if got, m := parseSize(in); (m == nil) != (want >= 0) || m == nil && got != want {
			t.Errorf("%q: %d, %v; want %d", in, got, m, want)
		}
	}
}

func TestExpand(t *testing.T) {
	env := func(name string) (string, bool) {
		v, ok := map[string]string{"A": "a", "B_2": "${A}", "EMPTY": ""}[name]
		return v, ok
	}
	for in, want := range map[string]string{
		"plain": "plain", "": "", "${A}": "a", "x${A}y${A}": "xaya", "$$": "$", "$${A}": "${A}", "$$$$": "$$",
		"${B_2}":   "${A}", // a value is not expanded again
		"${NO:-d}": "d", "${EMPTY:-d}": "d", "${NO:-}": "", "${A:-d}": "a", "${NO:-http://x:1/}": "http://x:1/",
		"${NO}": "!environment variable NO is not set", "${EMPTY}": "!environment variable EMPTY is set but empty",
		"$": `!holds a single "$"`, "$A": `!holds a single "$"`, "a$": `!holds a single "$"`, "${A": `!holds a "${" without its "}"`,
		"${}": "!holds a ${…} that names no environment variable", "${1A}": "!holds a ${…} that names no environment variable",
		"${A-b}": "!holds a ${…} that names no environment variable", "${NO:-${A}}": `!has a "$" in the default of ${NO}`,
	} {
		got, _, what, hint := expand(in, env)
		if what != "" {
			got = "!" + what
		}
		if got != want || (what != "") != (hint != "") {
			t.Errorf("%q: %q (%s), want %q", in, got, hint, want)
		}
	}
}

func TestEdits(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"abc", "abc", 0}, {"abc", "", 3}, {"", "ab", 2}, {"bas_url", "base_url", 1}, {"listne", "listen", 1}, {"kitten", "sitting", 3}, {"ca", "abc", 3}, {"ä", "a", 1},
	} {
		if got := edits(tc.a, tc.b); got != tc.want {
			t.Errorf("%q to %q: %d edits, want %d", tc.a, tc.b, got, tc.want)
		}
	}
}

// TestSyntaxPlace breaks a good file at every line in ways that cannot parse and expects the place
// to be that line.
func TestSyntaxPlace(t *testing.T) {
	const lines = 12
	var good []string
	for i := range lines {
		good = append(good, fmt.Sprintf("k%d: {a: [1, 2], b: \"x: y\"}", i))
	}
	for _, bad := range []string{"\tx: y", "x: y: z", "x: [1", `x: "open`, "x: *nobody", "  x: y", "x: @y", `x: "\z"`} {
		for at := range lines {
			broken := append([]string{}, good...)
			broken[at] = bad
			if at == 0 && bad == "  x: y" {
				continue // only the lines below do not fit then
			}
			_, p := parseTree([]byte(strings.Join(broken, "\n")))
			if p == nil || p.Line != at+1 {
				t.Errorf("%q on line %d: %+v", bad, at+1, p)
			}
		}
	}
}

// TestSyntaxPlaceIsBounded gives a file that is too large to be searched: the parser's own line has to do.
func TestSyntaxPlaceIsBounded(t *testing.T) {
	src := []byte(strings.Repeat("key: [\n", maxFileBytes/7))
	start := time.Now()
	_, p := parseTree(src)
	if p == nil || p.Line < 1 || p.Line > len(lineStarts(src)) {
		t.Errorf("problem %+v", p)
	}
	t.Logf("%d bytes took %v", len(src), time.Since(start))
}

// TestAliasesAreBounded unfolds to 9^8 values unless something stops it.
func TestAliasesAreBounded(t *testing.T) {
	var b strings.Builder
	b.WriteString("models:\n  m0: &m0 {serves: [a]}\n")
	for i := 1; i < 9; i++ {
		fmt.Fprintf(&b, "  m%d: &m%d {<<: [%s]}\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*m%d, ", i-1), 9), ", "))
	}
	_, err := Parse("headrace.yaml", []byte(b.String()), Overrides{}, testEnv)
	if err == nil || !strings.Contains(err.Error(), "is repeated by too many aliases (*)") {
		t.Errorf("got %v", err)
	}
	d := decoder{source: "f", getenv: testEnv, origin: map[string]origin{}}
	root, p := parseTree([]byte(b.String()))
	if p != nil {
		t.Fatal(p)
	}
	d.decode(root, &Config{})
	if spent := countNodes(root) + extraVisits - d.visits; spent > countNodes(root)+2*extraVisits {
		t.Errorf("looked at %d values of a tree of %d", spent, countNodes(root))
	}
}
