package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
)

// Schema returns the JSON Schema (2020-12) of the file, indented, for editors to complete and check
// by. It is looser than Load where only Load can know: any number, word or size may be a "${NAME}".
func Schema() []byte {
	root := object{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"title", "Headrace configuration"},
		{"description", "See docs/config.md. Every value may hold ${NAME} or ${NAME:-default} for an environment variable, and $$ for a dollar sign."},
	}
	root = append(root, sectionSchema(reflect.TypeFor[Config]())...)
	root = append(root, member{"$defs", object{
		{"variable", object{
			{"description", "A value from the environment."},
			{"type", "string"},
			{"pattern", `\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}$]*)?\}`},
		}},
		{"duration", object{
			{"description", `A number with a unit, such as "1.5s", "2m" or "1h30m"; 0 needs no unit.`},
			{"anyOf", []any{
				object{{"type", "string"}, {"pattern", `^[+]?(0|([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+$`}},
				object{{"const", 0}},
				object{{"$ref", "#/$defs/variable"}},
			}},
		}},
		{"share", object{
			{"description", `Percents, such as "5%" or "+20%", or a share of 1, such as 0.05.`},
			{"anyOf", []any{
				object{{"type", "string"}, {"pattern", `^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)? *%?$`}},
				object{{"type", "number"}, {"minimum", -1}, {"maximum", 1}},
				object{{"$ref", "#/$defs/variable"}},
			}},
		}},
		{"size", object{
			{"description", `Bytes: a whole number, or one with a unit, such as "32MiB" (1024s) or "32MB" (1000s).`},
			{"anyOf", []any{
				object{{"type", "string"}, {"pattern", `^[0-9]+(\.[0-9]+)? ?([Bb]|[KkMmGg][Ii]?[Bb])?$`}},
				object{{"type", "integer"}, {"minimum", 0}},
				object{{"$ref", "#/$defs/variable"}},
			}},
		}},
	}})
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(root); err != nil {
		panic("BUG: config: schema: " + err.Error())
	}
	return out.Bytes()
}

// object is a JSON object that keeps its order, which is that of the file.
type object []member

type member struct {
	name  string
	value any
}

// MarshalJSON writes the members in their order.
func (o object) MarshalJSON() ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	for i, m := range o {
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		out.WriteByte(sep)
		if err := enc.Encode(m.name); err != nil {
			return nil, err
		}
		out.WriteByte(':')
		if err := enc.Encode(m.value); err != nil {
			return nil, err
		}
	}
	if len(o) == 0 {
		out.WriteByte('{')
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

func sectionSchema(t reflect.Type) object {
	var properties object
	var required []string
	for _, f := range fields(t) {
		p := object{{"description", f.doc}}
		p = append(p, valueSchema(t.Field(f.index).Type, f)...)
		if f.def != "" {
			p = append(p, member{"default", jsonDefault(kindOf(t.Field(f.index).Type, f), f.def)})
		}
		properties = append(properties, member{f.key, p})
		if f.required {
			required = append(required, f.key)
		}
	}
	o := object{{"type", "object"}, {"additionalProperties", false}}
	if len(required) > 0 {
		o = append(o, member{"required", required})
	}
	return append(o, member{"properties", properties})
}

// valueSchema describes a value by its type and limits.
func valueSchema(t reflect.Type, f field) object {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	orVariable := func(o object) object {
		return object{{"anyOf", []any{o, object{{"$ref", "#/$defs/variable"}}}}}
	}
	switch k := kindOf(t, f); k {
	case kindSection:
		o := sectionSchema(t)
		if !slices.ContainsFunc(fields(t), func(sf field) bool { return sf.required }) {
			o[0].value = []string{"object", "null"} // a section whose keys are all commented out
		}
		for _, sf := range fields(t) {
			if sf.short {
				return object{{"anyOf", []any{object{{"type", "string"}}, o}}}
			}
		}
		return o
	case kindList:
		items := valueSchema(t.Elem(), f.item())
		if f.single {
			return object{{"anyOf", []any{items, object{{"type", "array"}, {"minItems", 1}, {"items", items}}}}}
		}
		list := object{{"type", []string{"array", "null"}}}
		if t.Elem() != reflect.TypeFor[StaticHost]() { // none of them is no mistake of the file
			list = append(list, member{"minItems", 1})
		}
		return append(list, member{"items", items})
	case kindTable:
		return object{{"type", []string{"object", "null"}}, {"additionalProperties", valueSchema(t.Elem(), f.item())}}
	case kindWord:
		return orVariable(object{{"enum", f.words}})
	case kindBool:
		return orVariable(object{{"type", "boolean"}})
	case kindInt, kindNumber:
		o := object{{"type", "number"}}
		if k == kindInt {
			o = object{{"type", "integer"}}
		}
		for _, l := range []struct {
			name  string
			limit *float64
		}{{"minimum", f.min}, {"exclusiveMinimum", f.above}, {"maximum", f.max}} {
			if l.limit != nil {
				o = append(o, member{l.name, json.Number(plainNumber(*l.limit))})
			}
		}
		return orVariable(o)
	case kindShare:
		return object{{"$ref", "#/$defs/share"}}
	case kindDuration:
		return object{{"$ref", "#/$defs/duration"}}
	case kindSize:
		return object{{"$ref", "#/$defs/size"}}
	case kindText, kindFile, kindSecret:
		return object{{"type", "string"}}
	}
	panic(fmt.Sprintf("BUG: config: no schema for a %v", t))
}

func jsonDefault(k kind, def string) any {
	switch {
	case k == kindBool:
		b, err := strconv.ParseBool(def)
		if err != nil {
			panic("BUG: config: default " + def)
		}
		return b
	case k == kindInt || k == kindNumber:
		return json.Number(def)
	default:
		return def
	}
}
