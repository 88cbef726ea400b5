package config

import (
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"headrace/router/endpoint"
)

// mismatch reports a node of another shape than wanted, without showing what it holds. keys are
// those of a section.
func (d *decoder) mismatch(n *yaml.Node, want kind, f field, path string, keys ...string) {
	d.mark(path, n, "", true)
	hint := ""
	switch {
	case want == kindList && n.Kind == yaml.ScalarNode:
		hint = "put it in [ ]"
	case want == kindList:
		hint = `start each item with "- "`
	case want == kindTable || want == kindSection:
		hint = "indent its keys below it"
		if len(keys) > 0 {
			hint += ": " + strings.Join(keys, ", ")
		}
		if n.Kind == yaml.SequenceNode {
			hint = `leave out the "- " in front of the keys`
		}
	case f.eg != "":
		hint = "write " + example(f, want)
	}
	d.add(n, path, fmt.Sprintf("needs %s, but is %s", want.wants(), describe(n)), hint)
}

// describe names what a node is.
func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.MappingNode:
		return `a map of "key: value"`
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!null":
		return "empty"
	}
	return "text"
}

// scalar reads one plain value.
func (d *decoder) scalar(n *yaml.Node, v reflect.Value, f field, path string) {
	k := kindOf(v.Type(), f)
	if n.Kind != yaml.ScalarNode {
		d.mismatch(n, k, f, path)
		return
	}
	tag := n.ShortTag()
	switch tag {
	case "!!str", "!!int", "!!float", "!!bool", "!!timestamp", "!!merge":
	case "!!null":
		d.mark(path, n, "", true)
		d.add(n, path, "has no value", "write one, or delete the line")
		return
	default:
		d.mark(path, n, "", true)
		d.add(n, path, `has a YAML tag ("!")`, "put the value in quotes if it begins with !")
		return
	}
	isText := tag == "!!str" || tag == "!!timestamp" || tag == "!!merge"
	text, env := n.Value, ""
	if isText && strings.Contains(text, "$") && !(k == kindNumber && decimal.MatchString(strings.TrimPrefix(text, "$"))) {
		expanded, names, what, hint := expand(text, d.getenv)
		env = variables(names)
		if what != "" {
			d.mark(path, n, env, true)
			d.add(n, path, what, hint)
			return
		}
		text = expanded
	}
	show := env == "" && k != kindSecret
	if problem := f.shape(n, k, text, env != "", isText, show); problem != nil {
		d.mark(path, n, env, true)
		hint := problem.hint
		if hint == "" && f.eg != "" {
			hint = "for example " + example(f, k)
		}
		d.add(n, path, problem.what, hint)
		return
	}
	m := assign(v, f, k, text, d.dir)
	d.mark(path, n, env, m != nil)
	if m == nil {
		return
	}
	subject := ""
	switch {
	case env != "":
		subject = "the value of " + env + " "
	case show:
		subject = strconv.Quote(abridged(text)) + " "
	}
	d.add(n, path, subject+m.what, m.hint)
}

// shape checks that the YAML type of a value suits the field: text where text is due, and no quotes
// around what is none. Values from the environment have no type.
func (f field) shape(n *yaml.Node, k kind, text string, fromEnv, isText, show bool) *mistake {
	if fromEnv {
		return nil
	}
	quoted := n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0
	switch k {
	case kindText, kindSecret, kindFile, kindWord:
		if isText {
			return nil
		}
		m := &mistake{what: fmt.Sprintf("needs %s, but is %s", k.wants(), describe(n)), hint: "put it in quotes"}
		switch {
		case k == kindWord:
			m.hint = "write " + orList(f.words)
		case f.eg != "" && k == kindText:
			m.hint += ", for example " + example(f, k)
		}
		return m
	case kindBool, kindInt, kindNumber:
		if !isText || !quoted {
			return nil // assign says more of an unquoted word
		}
		m := &mistake{what: fmt.Sprintf("needs %s, but is text", k.wants())}
		if show && (text == "true" || text == "false" || decimal.MatchString(text)) {
			m.hint = "leave out the quotes"
		}
		return m
	case kindDuration, kindSize, kindShare:
		return nil
	case kindList, kindTable, kindSection:
	}
	panic("BUG: config: not a scalar: " + k.wants())
}

// assign reads text into v, which stays as it is when there is a mistake. Mistakes do not repeat the text.
func assign(v reflect.Value, f field, k kind, text, dir string) *mistake {
	switch k {
	case kindText:
		v.SetString(text)
	case kindSecret:
		if strings.ContainsFunc(text, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			return &mistake{"holds a line break or another control character", "write the key on one line"}
		}
		v.Set(reflect.ValueOf(endpoint.Secret(text)))
	case kindFile:
		if text == "" {
			return &mistake{"is an empty file name", "write one, or delete the line"}
		}
		if dir != "" && !filepath.IsAbs(text) {
			text = filepath.Join(dir, text)
		}
		v.SetString(text)
	case kindWord:
		if !slices.Contains(f.words, text) {
			return &mistake{"is not known", suggestWord(text, f.words)}
		}
		setWord(v, text)
	case kindBool:
		switch text {
		case "true", "True", "TRUE":
			v.SetBool(true)
		case "false", "False", "FALSE":
			v.SetBool(false)
		default:
			return &mistake{"is neither true nor false", "write true or false, without quotes"}
		}
	case kindInt:
		n, m := parseInt(text)
		if m == nil {
			m = f.within(float64(n), plainNumber)
		}
		if m != nil {
			return m
		}
		v.SetInt(int64(n))
	case kindNumber:
		n, m := parseNumber(text)
		if m == nil {
			m = f.within(n, plainNumber)
		}
		if m != nil {
			return m
		}
		v.SetFloat(n)
	case kindShare:
		n, m := parseShare(text)
		if m == nil {
			m = f.within(n, plainShare)
		}
		if m != nil {
			return m
		}
		v.SetFloat(n)
	case kindDuration:
		t, m := parseDuration(text)
		if m == nil {
			m = f.within(float64(t), func(f float64) string { return time.Duration(f).String() })
		}
		if m != nil {
			return m
		}
		v.SetInt(int64(t))
	case kindSize:
		n, m := parseSize(text)
		if m == nil {
			m = f.within(float64(n), plainNumber)
		}
		if m != nil {
			return m
		}
		v.SetInt(n)
	case kindList, kindTable, kindSection:
		panic("BUG: config: not a scalar: " + k.wants())
	}
	return nil
}
