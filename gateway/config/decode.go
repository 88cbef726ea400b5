package config

import (
	"fmt"
	"reflect"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// decoder turns a YAML tree into a struct with our tags, collecting every problem on the way.
type decoder struct {
	source   string
	dir      string // that relative file names start from
	getenv   func(string) (string, bool)
	problems []Problem
	origin   map[string]origin
	// visits counts down the values left to look at. Aliases let a small file unfold into billions
	// of values; no honest one comes near the bound.
	visits int
}

const extraVisits = 10_000

func (d *decoder) decode(root *yaml.Node, into any) {
	d.visits = countNodes(root) + extraVisits
	v := reflect.ValueOf(into).Elem()
	d.defaults(v)
	if root == nil {
		return
	}
	root = d.follow(root)
	if root.Kind == yaml.ScalarNode && root.ShortTag() != "!!null" {
		d.add(root, "", `needs "key: value" lines, but is text`, `write "key: value", with a space after the colon`)
		return
	}
	d.section(root, v, field{}, "")
}

func countNodes(n *yaml.Node) int {
	if n == nil {
		return 0
	}
	total := 1
	for _, c := range n.Content {
		total += countNodes(c)
	}
	return total
}

func (d *decoder) add(n *yaml.Node, path, what, hint string) {
	d.problems = append(d.problems, Problem{Source: d.source, Line: max(n.Line, 1), Column: max(n.Column, 1), Path: path, What: what, Hint: hint})
}

// spend takes one visit; false once there are none left, which is a problem.
func (d *decoder) spend(n *yaml.Node, path string) bool {
	d.visits--
	if d.visits == 0 {
		d.add(n, path, "is repeated by too many aliases (*)", "write the values out")
	}
	return d.visits > 0
}

func (d *decoder) follow(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	return n
}

func (d *decoder) mark(path string, n *yaml.Node, env string, bad bool) {
	d.origin[path] = origin{source: d.source, line: max(n.Line, 1), column: max(n.Column, 1), env: env, bad: bad}
}

// value reads n into v. What cannot be read becomes a problem and leaves v alone.
func (d *decoder) value(n *yaml.Node, v reflect.Value, f field, path string) {
	n = d.follow(n)
	if !d.spend(n, path) {
		return
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
			d.defaults(v.Elem())
		}
		v = v.Elem()
	}
	switch k := kindOf(v.Type(), f); {
	case k == kindList:
		d.list(n, v, f, path)
	case k == kindTable:
		d.table(n, v, f, path)
	case k == kindSection:
		d.section(n, v, f, path)
	default:
		d.scalar(n, v, f, path)
	}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func (d *decoder) list(n *yaml.Node, v reflect.Value, f field, path string) {
	if isNull(n) {
		if f.single {
			d.add(n, path, "has no value", "write one, or delete the line")
		}
		return
	}
	d.mark(path, n, "", false)
	elem := v.Type().Elem()
	if n.Kind != yaml.SequenceNode {
		if f.single {
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			d.defaults(v.Index(0))
			d.value(n, v.Index(0), f.item(), path)
			return
		}
		d.mismatch(n, kindList, f, path)
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		at := path + "[" + strconv.Itoa(i) + "]"
		if elem.Kind() == reflect.Struct {
			d.defaults(v.Index(i))
		}
		d.value(item, v.Index(i), f.item(), at)
	}
}

func (d *decoder) table(n *yaml.Node, v reflect.Value, f field, path string) {
	if isNull(n) {
		return
	}
	d.mark(path, n, "", false)
	if n.Kind != yaml.MappingNode {
		d.mismatch(n, kindTable, f, path)
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for _, p := range d.pairs(n, path) {
		at := join(path, p.name)
		if p.name == "" {
			d.add(p.key, path, "has an empty key", "write a name in front of the colon")
			continue
		}
		item := reflect.New(v.Type().Elem()).Elem()
		if item.Kind() == reflect.Struct {
			d.defaults(item)
		}
		d.value(p.value, item, f.item(), at)
		v.SetMapIndex(reflect.ValueOf(p.name), item)
	}
}

func (d *decoder) section(n *yaml.Node, v reflect.Value, f field, path string) {
	d.mark(path, n, "", false)
	fs := fields(v.Type())
	switch {
	case isNull(n): // only what is required is missed
	case n.Kind == yaml.ScalarNode:
		for _, sf := range fs {
			if sf.short {
				sf.key = ""
				if f.eg != "" {
					sf.eg = f.eg
				}
				d.scalar(n, v.Field(sf.index), sf, path)
				from := d.origin[path]
				from.short = true
				d.origin[path] = from
				return
			}
		}
		d.mismatch(n, kindSection, f, path, keysOf(fs)...)
		return
	case n.Kind != yaml.MappingNode:
		d.mismatch(n, kindSection, f, path, keysOf(fs)...)
		return
	}
	seen := make(map[string]bool, len(fs))
	for _, p := range d.pairs(n, path) {
		at := join(path, p.name)
		known := false
		for _, sf := range fs {
			if sf.key == p.name {
				known, seen[sf.key] = true, true
				d.value(p.value, v.Field(sf.index), sf, at)
			}
		}
		if !known {
			meant, hint := suggestKey(p.name, v.Type())
			seen[meant] = true // rather than missing
			d.add(p.key, at, "unknown key", hint)
		}
	}
	for _, sf := range fs {
		if sf.required && !seen[sf.key] && d.visits > 0 {
			d.add(n, join(path, sf.key), "is missing", "add "+example(sf, kindOf(v.Type().Field(sf.index).Type, sf)))
		}
	}
}

// example writes a field as it could stand in the file, without a key for an item.
func example(f field, k kind) string {
	value := strconv.Quote(f.eg)
	switch k {
	case kindList:
		value = "[" + value + "]"
	case kindInt, kindNumber, kindShare, kindDuration, kindSize, kindBool, kindWord:
		value = f.eg
	case kindText, kindSecret, kindFile, kindTable, kindSection:
	}
	if f.key == "" {
		return value
	}
	return f.key + ": " + value
}

// join appends a key to a path, in quotes where it would not read as one.
func join(path, key string) string {
	for _, r := range key {
		if r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			return fmt.Sprintf("%s[%q]", path, abridged(key))
		}
	}
	if path == "" {
		return key
	}
	return path + "." + abridged(key)
}

const maxShown = 100

// abridged keeps messages readable when a whole text was pasted into the wrong place.
func abridged(s string) string {
	if r := []rune(s); len(r) > maxShown {
		return string(r[:maxShown]) + "…"
	}
	return s
}

type pair struct {
	name       string
	key, value *yaml.Node
}

// pairs returns the keys of a map in their order, each once: its own first, then what "<<" merges
// in. Doubled keys are problems.
func (d *decoder) pairs(n *yaml.Node, path string) []pair {
	var own []pair
	var merges []*yaml.Node
	lines := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := d.follow(n.Content[i]), n.Content[i+1]
		if !d.spend(key, path) {
			return nil
		}
		switch {
		case key.Kind == yaml.ScalarNode && key.ShortTag() == "!!merge":
			merges = append(merges, value)
			continue
		case key.Kind != yaml.ScalarNode:
			d.add(n.Content[i], path, "has a key that is not text", `write "key: value"; put "${NAME}" in quotes`)
			continue
		}
		if first, double := lines[key.Value]; double {
			d.add(n.Content[i], join(path, key.Value), fmt.Sprintf("is given twice, first on line %d", first), "keep one")
			continue
		}
		lines[key.Value] = key.Line
		own = append(own, pair{key.Value, n.Content[i], value})
	}
	for _, m := range merges {
		d.merge(m, path, map[*yaml.Node]bool{n: true}, func(p pair) {
			if _, taken := lines[p.name]; !taken {
				lines[p.name] = p.key.Line
				own = append(own, p)
			}
		})
	}
	return own
}

// merge calls yield for what the value of a "<<" key holds. around are the maps being merged, which
// may not contain themselves.
func (d *decoder) merge(m *yaml.Node, path string, around map[*yaml.Node]bool, yield func(pair)) {
	at := m
	m = d.follow(m)
	if !d.spend(at, path) {
		return
	}
	switch {
	case m.Kind == yaml.SequenceNode && !around[m]:
		around[m] = true
		for _, item := range m.Content {
			d.merge(item, path, around, yield)
		}
		delete(around, m)
	case m.Kind == yaml.MappingNode && !around[m]:
		around[m] = true
		var deeper []*yaml.Node
		for i := 0; i+1 < len(m.Content); i += 2 {
			key := d.follow(m.Content[i])
			if !d.spend(key, path) {
				return
			}
			if key.Kind != yaml.ScalarNode {
				continue // reported where the map itself stands, if that is a section
			}
			if key.ShortTag() == "!!merge" {
				deeper = append(deeper, m.Content[i+1])
				continue
			}
			yield(pair{key.Value, m.Content[i], m.Content[i+1]})
		}
		for _, v := range deeper {
			d.merge(v, path, around, yield)
		}
		delete(around, m)
	case around[m]:
		d.add(at, path, `merges ("<<") a map into itself`, "remove it")
	default:
		d.add(at, path, `has a merge ("<<") of something that is no map`, "write <<: *name, where &name marks a map")
	}
}

// defaults fills a section with the values of its default tags, below it too.
func (d *decoder) defaults(v reflect.Value) {
	if v.Kind() != reflect.Struct {
		return
	}
	for _, f := range fields(v.Type()) {
		fv := v.Field(f.index)
		if fv.Kind() == reflect.Struct {
			d.defaults(fv)
			continue
		}
		if f.def == "" {
			continue
		}
		k := kindOf(fv.Type(), f)
		if k == kindList { // of one item in its short form
			fv.Set(reflect.MakeSlice(fv.Type(), 1, 1))
			d.defaults(fv.Index(0))
			for _, ef := range fields(fv.Type().Elem()) {
				if ef.short {
					fv, f, k = fv.Index(0).Field(ef.index), field{def: f.def}, kindText
					break
				}
			}
		}
		if m := assign(fv, f, k, f.def, ""); m != nil {
			panic(fmt.Sprintf("BUG: config: default of %s %s", f.key, m.what))
		}
	}
}
