package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzParse looks for panics, for problems that are not inside the file, and for values of the
// environment in messages.
func FuzzParse(f *testing.F) {
	paths, err := filepath.Glob("testdata/*.bad.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range append(paths, examplePath) {
		src, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	for _, c := range accepted {
		f.Add([]byte(c.src))
	}
	// What every variable holds: it fits no typed field and is unlike anything in our own texts.
	const marker = "qZq7"
	getenv := func(name string) (string, bool) {
		return marker, !ours(name)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		env := getenv
		if strings.Contains(string(src), marker) {
			env = func(string) (string, bool) { return "", false } // what the file says itself may be quoted
		}
		c, err := Parse("f.yaml", src, Overrides{}, func(name string) (string, bool) {
			if ours(name) {
				return "", false
			}
			return env(name)
		})
		if err == nil {
			err = c.Validate()
		}
		if err == nil {
			return
		}
		problems, ok := errors.AsType[*Problems](err)
		if !ok || len(problems.List) == 0 {
			t.Fatalf("error is no *Problems: %v", err)
		}
		if !strings.Contains(string(src), marker) && strings.Contains(err.Error(), marker) {
			t.Errorf("a value of the environment is in %q", err.Error())
		}
		starts := lineStarts(src)
		last := 0
		for _, p := range problems.List {
			if p.Source != "f.yaml" || p.What == "" || p.Line < 1 || p.Line > len(starts) {
				t.Fatalf("not in the file of %d lines: %+v", len(starts), p)
			}
			if width := utf8.RuneCountInString(lineText(src, starts, p.Line)); p.Column < 1 || p.Column > width+1 {
				t.Errorf("not in its line of %d characters: %+v", width, p)
			}
			if p.Line < last {
				t.Errorf("line %d after line %d", p.Line, last)
			}
			last = p.Line
			if !utf8.ValidString(p.String()) {
				t.Errorf("not UTF-8: %q", p.String())
			}
		}
	})
}

// ours tells whether a variable stands for a value by itself.
func ours(name string) bool {
	return strings.HasPrefix(name, "HEADRACE_") || strings.HasPrefix(name, "RUNPOD_") || strings.HasPrefix(name, "VAST_") ||
		strings.HasPrefix(name, "OTEL_") || name == EnvRedis
}

// TestSecretsStayHidden puts a key where it belongs, but in every wrong shape.
func TestSecretsStayHidden(t *testing.T) {
	const secret = "sk-Zz19secret"
	for _, shape := range []string{
		"[%s]", "{%s: x}", "{x: %s}", "[[%s]]", "*%s", "&%s", "!%s x", "!!binary %s", "@%s", "`%s`", `"%s`, `'%s`, "%s: x", `"\z%s"`, "|\n  %s", ">\n%s",
		"$%s", "${%s}", "${%s", "a${A:-%s$}", "%%%s", "\t%s", "\"%s\\u0001\"", "? %s", "- %s", "%s\n   : x", "{%s", "[%s", "? [%s]\n      : x", "<<: %s",
	} {
		value := fmt.Sprintf(shape, secret)
		for _, at := range []string{
			"providers:\n  static:\n    - name: lab\n      base_url: \"http://a\"\n      api_key: %s\n      gpu: x\n",
			"providers:\n  static:\n    - {name: lab, base_url: \"http://a\", api_key: %s, gpu: x}\n",
		} {
			src := fmt.Sprintf(at, value)
			_, err := Parse("headrace.yaml", []byte(src), Overrides{}, func(string) (string, bool) { return "", false })
			if err == nil {
				continue
			}
			// ${NAME} repeats the name of a variable, which is none of its value.
			if message := strings.ReplaceAll(err.Error(), "${"+secret+"}", ""); strings.Contains(message, secret) {
				t.Errorf("value %q: %s", value, message)
			}
		}
	}
}
