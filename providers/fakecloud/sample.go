package fakecloud

import (
	"maps"
	"math"
	"slices"
	"strings"
)

// maxDepth bounds schemas that refer to themselves.
const maxDepth = 12

// sample makes a value that follows a JSON schema in its property names, types, enums and limits; o decides what is
// free. Patterns and formats but the common ones are beyond it.
func sample(schema any, o oracle) any {
	s := sampler{root: schema, oracle: o}
	return s.value(schema, 0)
}

type sampler struct {
	root   any
	oracle oracle
	n      int // values drawn
}

func (s *sampler) value(schema any, depth int) any {
	m, ok := schema.(map[string]any)
	if !ok {
		if schema == nil && depth == 0 {
			return map[string]any{} // a tool without parameters
		}
		return s.text(m)
	}
	if depth > maxDepth {
		return nil
	}
	if ref, ok := m["$ref"].(string); ok {
		return s.value(s.find(ref), depth+1)
	}
	if c, ok := m["const"]; ok {
		return c
	}
	if e, ok := m["enum"].([]any); ok && len(e) > 0 {
		return e[s.draw()%uint64(len(e))]
	}
	for _, of := range []string{"anyOf", "oneOf"} {
		if alternatives, ok := m[of].([]any); ok && len(alternatives) > 0 {
			return s.value(alternatives[0], depth+1)
		}
	}
	if all, ok := m["allOf"].([]any); ok {
		return s.merged(m, all, depth)
	}
	switch typeOf(m) {
	case "object":
		return s.object(m, depth)
	case "array":
		return s.array(m, depth)
	case "integer":
		return int64(s.number(m, 1))
	case "number":
		return s.number(m, 0.25)
	case "boolean":
		return s.draw()%2 == 0
	case "null":
		return nil
	default:
		return s.text(m)
	}
}

func typeOf(m map[string]any) string {
	switch t := m["type"].(type) {
	case string:
		return t
	case []any:
		for _, one := range t {
			if name, ok := one.(string); ok && name != "null" {
				return name
			}
		}
	}
	if _, ok := m["properties"]; ok {
		return "object"
	}
	if _, ok := m["items"]; ok {
		return "array"
	}
	return "string"
}

// find follows a reference into the same document, such as "#/$defs/person".
func (s *sampler) find(ref string) any {
	at := s.root
	for step := range strings.SplitSeq(strings.TrimPrefix(strings.TrimPrefix(ref, "#"), "/"), "/") {
		m, ok := at.(map[string]any)
		if !ok || step == "" {
			return at
		}
		at = m[strings.NewReplacer("~1", "/", "~0", "~").Replace(step)]
	}
	return at
}

// merged is an object with what m and all its parts have.
func (s *sampler) merged(m map[string]any, parts []any, depth int) any {
	out, _ := s.object(m, depth).(map[string]any)
	for _, p := range parts {
		v := s.value(p, depth+1)
		more, ok := v.(map[string]any)
		if !ok {
			return v
		}
		maps.Copy(out, more)
	}
	return out
}

func (s *sampler) object(m map[string]any, depth int) any {
	out := map[string]any{}
	properties, _ := m["properties"].(map[string]any)
	required, _ := m["required"].([]any)
	for _, name := range sortedKeys(properties) {
		if depth >= maxDepth/2 && !contains(required, name) {
			continue // what refers to itself has to end somewhere
		}
		out[name] = s.value(properties[name], depth+1)
	}
	return out
}

func (s *sampler) array(m map[string]any, depth int) any {
	n := 1 + s.draw()%2
	if low, ok := m["minItems"].(float64); ok {
		n = max(n, uint64(max(0, low)))
	}
	if high, ok := m["maxItems"].(float64); ok {
		n = min(n, uint64(max(0, high)))
	}
	if depth >= maxDepth/2 {
		n = 0
		if low, ok := m["minItems"].(float64); ok {
			n = uint64(max(0, low))
		}
	}
	out := make([]any, 0, n)
	for range n {
		out = append(out, s.value(m["items"], depth+1))
	}
	return out
}

// number is a multiple of step within the schema's limits, from 0 to 99 where there are none.
func (s *sampler) number(m map[string]any, step float64) float64 {
	low, high := 0.0, 99.0
	if x, ok := m["minimum"].(float64); ok {
		low, high = x, max(high, x)
	}
	if x, ok := m["exclusiveMinimum"].(float64); ok {
		low, high = math.Floor(x/step)*step+step, max(high, x+2*step)
	}
	if x, ok := m["maximum"].(float64); ok {
		high, low = x, min(low, x)
	}
	if x, ok := m["exclusiveMaximum"].(float64); ok {
		high, low = math.Ceil(x/step)*step-step, min(low, x-2*step)
	}
	if x, ok := m["multipleOf"].(float64); ok && x > 0 {
		step = x
	}
	low = math.Ceil(low/step) * step
	n := uint64(max(0, math.Floor((high-low)/step))) + 1
	return low + float64(s.draw()%n)*step
}

func (s *sampler) text(m map[string]any) string {
	switch m["format"] {
	case "date":
		return "2024-02-29"
	case "date-time":
		return "2024-02-29T12:30:00Z"
	case "time":
		return "12:30:00"
	case "email":
		return "miller@example.com"
	case "uri":
		return "https://example.com/mill"
	case "uuid":
		return "123e4567-e89b-42d3-a456-426614174000"
	}
	text := strings.TrimSpace(words[s.draw()%40]) + " " + strings.TrimSpace(words[s.draw()%40]) + " ☼"
	if low, ok := m["minLength"].(float64); ok {
		text += strings.Repeat("x", max(0, int(low)-len([]rune(text))))
	}
	if high, ok := m["maxLength"].(float64); ok {
		text = string([]rune(text)[:min(len([]rune(text)), max(0, int(high)))])
	}
	return text
}

func (s *sampler) draw() uint64 {
	s.n++
	return s.oracle.number(1000 + s.n)
}

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

func contains(list []any, name string) bool {
	return slices.ContainsFunc(list, func(v any) bool { return v == name })
}
