package config

import (
	"fmt"
	"log/slog"
	"reflect"
	"strconv"
	"strings"
	"time"

	"headrace/router/endpoint"
)

// field is what the tags say of one key.
type field struct {
	index int
	key   string
	doc   string
	def   string // value when absent, "" for none
	other string // the same in words
	eg    string
	unit  string // "bytes", "file" or ""
	words []string
	aka   []string

	required bool
	short    bool
	single   bool

	min, max, above *float64
}

// fields reads the tags of a section, in the order of the struct.
func fields(t reflect.Type) []field {
	fs := make([]field, 0, t.NumField())
	for i := range t.NumField() {
		sf := t.Field(i)
		key := sf.Tag.Get("yaml")
		if !sf.IsExported() || key == "-" {
			continue
		}
		if key == "" {
			panic("BUG: config: no yaml tag on " + t.Name() + "." + sf.Name)
		}
		fs = append(fs, field{
			index: i, key: key,
			doc: sf.Tag.Get("doc"), def: sf.Tag.Get("default"), other: sf.Tag.Get("otherwise"),
			eg: sf.Tag.Get("eg"), unit: sf.Tag.Get("unit"),
			words: split(sf.Tag.Get("words")), aka: split(sf.Tag.Get("aka")),
			required: sf.Tag.Get("required") == "true",
			short:    sf.Tag.Get("short") == "true",
			single:   sf.Tag.Get("single") == "true",
			min:      limit(sf, "min"), max: limit(sf, "max"), above: limit(sf, "above"),
		})
	}
	return fs
}

func keysOf(fs []field) []string {
	keys := make([]string, len(fs))
	for i, f := range fs {
		keys[i] = f.key
	}
	return keys
}

func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "|")
}

func limit(sf reflect.StructField, tag string) *float64 {
	s, ok := sf.Tag.Lookup(tag)
	if !ok {
		return nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		panic(fmt.Sprintf("BUG: config: tag %s of %s: %v", tag, sf.Name, err))
	}
	return &f
}

// item is what holds for the items of a list or table: limits, but neither key, default nor presence.
func (f field) item() field {
	return field{eg: f.eg, unit: f.unit, words: f.words, min: f.min, max: f.max, above: f.above}
}

// kind is how a value is written in the file.
type kind uint8

const (
	kindText kind = iota
	kindSecret
	kindFile
	kindWord
	kindBool
	kindInt
	kindNumber
	kindShare
	kindDuration
	kindSize
	kindList
	kindTable   // keys of the user's choice
	kindSection // keys of ours
)

// kindOf says how a value of type t is written.
func kindOf(t reflect.Type, f field) kind {
	switch rk := t.Kind(); {
	case t == reflect.TypeFor[endpoint.Secret]():
		return kindSecret
	case t == reflect.TypeFor[time.Duration]():
		return kindDuration
	case rk == reflect.Slice:
		return kindList
	case rk == reflect.Map:
		return kindTable
	case rk == reflect.Struct:
		return kindSection
	case rk == reflect.Pointer:
		return kindOf(t.Elem(), f)
	case rk == reflect.Bool:
		return kindBool
	case rk == reflect.Float64 && f.unit == "share":
		return kindShare
	case rk == reflect.Float64:
		return kindNumber
	case len(f.words) > 0:
		return kindWord
	case f.unit == "bytes":
		return kindSize
	case f.unit == "file":
		return kindFile
	case rk == reflect.Int:
		return kindInt
	case rk == reflect.String:
		return kindText
	}
	panic("BUG: config: no way to write a " + t.String())
}

// wants names what a value of kind k is to be, for messages.
func (k kind) wants() string {
	switch k {
	case kindText, kindSecret:
		return "text"
	case kindFile:
		return "a file name"
	case kindWord:
		return "a word"
	case kindBool:
		return "true or false"
	case kindInt:
		return "a whole number"
	case kindNumber:
		return "a number"
	case kindShare:
		return "a share"
	case kindDuration:
		return "a duration"
	case kindSize:
		return "a size"
	case kindList:
		return "a list"
	case kindTable, kindSection:
		return `"key: value" lines`
	}
	panic(fmt.Sprintf("BUG: config: kind %d has no name", k))
}

// setWord stores one of a field's words in v.
func setWord(v reflect.Value, word string) {
	switch p := v.Addr().Interface().(type) {
	case *endpoint.Tenure:
		t, ok := endpoint.ParseTenure(word)
		if !ok {
			panic("BUG: config: endpoint knows no tenure " + word)
		}
		*p = t
	case *endpoint.Trust:
		*p = trustOf(word)
	case *slog.Level:
		if err := p.UnmarshalText([]byte(word)); err != nil {
			panic("BUG: config: slog knows no level " + word)
		}
	default:
		v.SetString(word)
	}
}

func trustOf(word string) endpoint.Trust {
	for t := endpoint.TrustCommunity; t <= endpoint.TrustSecure; t++ {
		if t.String() == word {
			return t
		}
	}
	panic("BUG: config: endpoint knows no trust " + word)
}
