package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// suggestKey says what may have been meant by an unknown key of the section t; meant is the key of t
// that it takes it for, "" for none.
func suggestKey(key string, t reflect.Type) (meant, hint string) {
	fs := fields(t)
	keys := keysOf(fs)
	for _, f := range fs {
		if slices.ContainsFunc(f.aka, func(a string) bool { return plain(a) == plain(key) }) {
			return f.key, fmt.Sprintf("did you mean %q?", f.key)
		}
	}
	if near := nearest(key, keys); near != "" {
		return near, fmt.Sprintf("did you mean %q?", near)
	}
	if homes := homesOf(key, reflect.TypeFor[Config](), ""); len(homes) > 0 && len(homes) <= 2 {
		return "", "it belongs under " + strings.Join(homes, " or ")
	}
	return "", "known keys here: " + strings.Join(keys, ", ")
}

// homesOf lists the sections below t that know the key.
func homesOf(key string, t reflect.Type, path string) []string {
	var homes []string
	for _, f := range fields(t) {
		if f.key == key {
			home := path
			if home == "" {
				home = "the top level"
			}
			homes = append(homes, home)
		}
		at := f.key
		if path != "" {
			at = path + "." + f.key
		}
		ft := t.Field(f.index).Type
		for ft.Kind() == reflect.Slice || ft.Kind() == reflect.Map || ft.Kind() == reflect.Pointer {
			if ft.Kind() == reflect.Slice {
				at += "[]" //nolint:perfsprint // two levels at most
			} else if ft.Kind() == reflect.Map {
				at += ".NAME"
			}
			ft = ft.Elem()
		}
		if ft.Kind() == reflect.Struct {
			homes = append(homes, homesOf(key, ft, at)...)
		}
	}
	return homes
}

// synonyms are words people use for words of ours.
var synonyms = map[string]string{
	"spot": "interruptible", "preemptible": "interruptible", "bid": "interruptible",
	"dedicated": "on_demand", "reserved": "on_demand", "rented": "on_demand",
	"token": "per_token", "api": "per_token",
	"warning": "warn", "err": "error", "trace": "debug", "verbose": "debug",
	"plain": "text", "console": "text", "logfmt": "text",
	"private": "secure", "own": "secure", "public": "community",
}

// suggestWord says which of the known words may have been meant.
func suggestWord(got string, words []string) string {
	if s := synonyms[plain(got)]; slices.Contains(words, s) {
		return fmt.Sprintf("did you mean %q?", s)
	}
	if near := nearest(got, words); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "write " + orList(words)
}

func orList(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

// plain drops what people get wrong without meaning anything else.
func plain(s string) string {
	return strings.NewReplacer("_", "", "-", "", " ", "", ".", "").Replace(strings.ToLower(s))
}

// nearest returns the candidate within a third of got's length in edits, "" when none is that near.
func nearest(got string, candidates []string) string {
	g := plain(got)
	if g == "" || len(g) > 64 { // a longer one is no misspelling, and the distance is quadratic
		return ""
	}
	best, bestAt := "", max(1, len(g)/3)+1
	for _, c := range candidates {
		if d := edits(g, plain(c)); d < bestAt {
			best, bestAt = c, d
		}
	}
	return best
}

// edits is the Damerau-Levenshtein distance in its restricted form: insertions, deletions,
// replacements and swaps of neighbours that make b of a.
func edits(a, b string) int {
	ra, rb := []rune(a), []rune(b)
	before, prev, cur := make([]int, len(rb)+1), make([]int, len(rb)+1), make([]int, len(rb)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(ra); i++ {
		cur[0] = i
		for j := 1; j <= len(rb); j++ {
			cost := 1
			if ra[i-1] == rb[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && ra[i-1] == rb[j-2] && ra[i-2] == rb[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(rb)]
}
