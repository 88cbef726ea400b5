package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

const (
	examplePath = "../../deploy/headrace.example.yaml"
	schemaPath  = "../../deploy/headrace.schema.json"
	docsPath    = "../../docs/config.md"
)

func TestSchemaFileIsCurrent(t *testing.T) {
	golden(t, schemaPath, string(Schema()))
}

// validator compiles Schema, which fails when it is no valid 2020-12 schema.
func validator(t *testing.T) func(src []byte) error {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("headrace.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile("headrace.json")
	if err != nil {
		t.Fatal(err)
	}
	return func(src []byte) error {
		var v any
		if err := yaml.Unmarshal(src, &v); err != nil {
			t.Fatal(err)
		}
		asJSON, err := json.Marshal(v) // numbers and maps as the validator knows them
		if err != nil {
			t.Fatal(err)
		}
		if v, err = jsonschema.UnmarshalJSON(bytes.NewReader(asJSON)); err != nil {
			t.Fatal(err)
		}
		return schema.Validate(v)
	}
}

func TestExample(t *testing.T) {
	src, err := os.ReadFile(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse("headrace.yaml", src, Overrides{}, testEnv)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if err := validator(t)(src); err != nil {
		t.Error(err)
	}
	for _, s := range sections(reflect.TypeFor[Config](), "") {
		for _, f := range s.fields {
			if !regexp.MustCompile(`(?m)^[^#]*\b` + f.key + `:`).Match(src) {
				t.Errorf("%s lacks %q of section %q", examplePath, f.key, s.path)
			}
		}
	}
	// What it calls a default is one: without those lines nothing changes.
	plain, err := Parse("", nil, Overrides{}, testEnv)
	if err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string][2]any{
		"limits": {c.Limits, plain.Limits}, "timeouts": {c.Timeouts, plain.Timeouts}, "retries": {c.Retries, plain.Retries},
		"breaker": {c.Breaker, plain.Breaker}, "continuation": {c.Continuation, plain.Continuation}, "log": {c.Log, plain.Log}, "telemetry": {silent(c.Telemetry), plain.Telemetry}, "admin": {c.Admin, plain.Admin},
		"listen": {c.Listen[0], plain.Listen[0]},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: the example says %+v, the default is %+v", name, pair[0], pair[1])
		}
	}
}

// silent is t without the address that the example gives.
func silent(t Telemetry) Telemetry {
	t.OTLP = ""
	return t
}

// TestSchemaAgrees takes files that Parse accepts and mistakes that an editor should see.
func TestSchemaAgrees(t *testing.T) {
	valid := validator(t)
	for name, c := range accepted {
		if err := valid([]byte(c.src)); name != "nothing" && err != nil {
			t.Errorf("%s: parsed, but the schema says %v", name, err)
		}
	}
	for _, name := range []string{
		"unknown-key", "unknown-key-belongs-elsewhere", "list-for-section", "section-for-list", "text-for-section", "text-for-list",
		"list-for-text", "number-for-text", "not-a-bool", "number-out-of-range", "duration-without-unit", "bad-size", "unknown-word",
		"missing-required", "empty-lists", "root-is-list", "root-is-text",
	} {
		src, err := os.ReadFile("testdata/" + name + ".bad.yaml")
		if err != nil {
			t.Fatal(err)
		}
		if valid(src) == nil {
			t.Errorf("%s: the schema finds nothing wrong", name)
		}
	}
}

type docSection struct {
	path   string
	t      reflect.Type
	fields []field
}

// sections lists t and every section below it, as their paths stand in the documentation.
func sections(t reflect.Type, path string) []docSection {
	all := []docSection{{path, t, fields(t)}}
	for _, f := range fields(t) {
		at := strings.TrimPrefix(path+"."+f.key, ".")
		ft := t.Field(f.index).Type
		for ; ft.Kind() == reflect.Slice || ft.Kind() == reflect.Map || ft.Kind() == reflect.Pointer; ft = ft.Elem() {
			if ft.Kind() == reflect.Slice {
				at += "[]"
			} else if ft.Kind() == reflect.Map {
				at += ".NAME"
			}
		}
		if ft.Kind() == reflect.Struct {
			all = append(all, sections(ft, at)...)
		}
	}
	return all
}

// TestDocsAreCurrent keeps the tables of docs/config.md as the tags have them, one for every section.
func TestDocsAreCurrent(t *testing.T) {
	src, err := os.ReadFile(docsPath)
	if err != nil {
		t.Fatal(err)
	}
	tables := make(map[string]string)
	for _, s := range sections(reflect.TypeFor[Config](), "") {
		tables[s.path] = table(s)
	}
	block := regexp.MustCompile(`(?s)<!-- keys: ?(\S*) -->\n.*?<!-- end -->`)
	got := block.ReplaceAllStringFunc(string(src), func(b string) string {
		path := block.FindStringSubmatch(b)[1]
		content, ok := tables[path]
		if !ok {
			t.Errorf("%s has a table for %q, which is no section", docsPath, path)
		}
		delete(tables, path)
		return strings.ReplaceAll(fmt.Sprintf("<!-- keys: %s -->\n%s<!-- end -->", path, content), "keys:  -->", "keys: -->")
	})
	for path := range tables {
		t.Errorf("%s has no table for section %q: add <!-- keys: %s --> and <!-- end -->", docsPath, path, path)
	}
	golden(t, docsPath, got)
	for _, env := range []string{EnvListen, EnvAdmin, EnvAllowUnauthenticated} {
		if !strings.Contains(got, env) {
			t.Errorf("%s does not mention %s", docsPath, env)
		}
	}
}

func table(s docSection) string {
	var b strings.Builder
	b.WriteString("| key | type | default | meaning |\n|---|---|---|---|\n")
	for _, f := range s.fields {
		def := f.other
		switch {
		case f.def != "":
			def = "`" + f.def + "`"
		case f.required:
			def = "**required**"
		case def == "":
			def = "see there"
			if kindOf(s.t.Field(f.index).Type, f) == kindList || kindOf(s.t.Field(f.index).Type, f) == kindDuration {
				def = "none"
			}
			if strings.HasSuffix(s.path, ".price") {
				def = ""
			}
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.key, typeName(s.t.Field(f.index).Type, f), def, strings.ReplaceAll(f.doc, "|", `\|`))
	}
	return b.String()
}

func typeName(t reflect.Type, f field) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch k := kindOf(t, f); {
	case k == kindList:
		of := typeName(t.Elem(), f.item())
		name := map[string]string{"text": "list of texts", "share": "list of shares", "section": "list of sections", "text or section": "list of texts or sections"}[of]
		switch {
		case f.single && of == "text":
			name = "text, or list of texts"
		case f.single:
			name = "address, section, or list of them"
		}
		return name
	case k == kindTable:
		if t.Elem().Kind() == reflect.Struct {
			return "names, each with a section"
		}
		return "names, each with " + typeName(t.Elem(), f.item())
	case k == kindSection:
		for _, sf := range fields(t) {
			if sf.short {
				return "text or section"
			}
		}
		return "section"
	case k == kindWord:
		return "`" + strings.Join(f.words, "` \\| `") + "`"
	case k == kindInt:
		return "whole number"
	case k == kindSecret:
		return "text (secret)"
	default:
		return strings.TrimPrefix(k.wants(), "a ")
	}
}

// TestConfigsInDocs reads the configs that pages show whole, so that who copies one gets what the page promises.
func TestConfigsInDocs(t *testing.T) {
	env := func(name string) (string, bool) {
		v, ok := map[string]string{"RUNPOD_API_KEY": "rpa_x", "VAST_API_KEY": "x", "REDIS_URL": "redis://127.0.0.1:6379"}[name]
		return v, ok
	}
	block := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```")
	whole := regexp.MustCompile(`^(listen|admin|providers|models|experiments|state|queue|telemetry):`)
	for page, least := range map[string]int{"docs/config.md": 1, "docs/experiments.md": 1, "docs/providers.md": 1, "docs/replicas.md": 1, "README.md": 0} {
		text, err := os.ReadFile("../../" + page)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, b := range block.FindAllStringSubmatch(string(text), -1) {
			src := b[1]
			if !whole.MatchString(src) {
				continue
			}
			n++
			c, err := Parse("headrace.yaml", []byte(src), Overrides{}, env)
			if err == nil {
				err = c.Validate()
			}
			if err != nil {
				t.Errorf("%s shows\n%s\nand %v", page, src, err)
			}
		}
		if n < least {
			t.Errorf("%s shows %d configs, want %d or more", page, n, least)
		}
	}
}
