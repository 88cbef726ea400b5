package config

import (
	"fmt"
	"strings"
)

// expand replaces ${NAME}, ${NAME:-default} and $$ in a value of the file. The names are those of
// the variables met. what is empty unless the value cannot be expanded; no message repeats the value.
func expand(s string, getenv func(string) (string, bool)) (text string, names []string, what, hint string) {
	var b strings.Builder
	for {
		at := strings.IndexByte(s, '$')
		if at < 0 {
			b.WriteString(s)
			return b.String(), names, "", ""
		}
		b.WriteString(s[:at])
		s = s[at+1:]
		if strings.HasPrefix(s, "$") {
			b.WriteByte('$')
			s = s[1:]
			continue
		}
		if !strings.HasPrefix(s, "{") {
			return "", names, `holds a single "$"`, "write ${NAME} for an environment variable, or $$ for a dollar sign"
		}
		inside, rest, closed := strings.Cut(s[1:], "}")
		if !closed {
			return "", names, `holds a "${" without its "}"`, "write ${NAME} for an environment variable, or $${ for the characters themselves"
		}
		s = rest
		name, fallback, hasFallback := strings.Cut(inside, ":-")
		if !isVariable(name) {
			return "", names, "holds a ${…} that names no environment variable", "a name has letters, digits and _ only, as in ${LAB_KEY} or ${LAB_KEY:-default}"
		}
		if strings.Contains(fallback, "$") {
			return "", names, fmt.Sprintf("has a \"$\" in the default of ${%s}", name), "defaults are plain text"
		}
		names = append(names, name)
		value, set := getenv(name)
		switch {
		case value != "":
			b.WriteString(value)
		case hasFallback:
			b.WriteString(fallback)
		case set:
			return "", names, fmt.Sprintf("environment variable %s is set but empty", name), fmt.Sprintf("give it a value, or write ${%s:-} if nothing is meant", name)
		default:
			return "", names, fmt.Sprintf("environment variable %s is not set", name), fmt.Sprintf("set it, or write ${%s:-default}", name)
		}
	}
}

func isVariable(name string) bool {
	for i, c := range []byte(name) {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

// variables names variables as they stand in the file: "${A}" or "${A} and ${B}".
func variables(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = "${" + n + "}"
	}
	return strings.Join(quoted, " and ")
}
