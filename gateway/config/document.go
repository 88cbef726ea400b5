package config

import (
	"path/filepath"
)

// Document is a YAML file of another kind than the gateway's configuration, read as strictly: by the same struct tags, with
// ${ENV}, and with every mistake reported at its place.
type Document struct {
	place Config // its source and origin only
	src   []byte
	list  []Problem
}

// ReadDocument reads the file at path into a struct that to points to. Its Err has the mistakes; what could be read is read
// all the same. Relative file names of fields with unit "file" start from the file's directory.
func ReadDocument(path string, to any, getenv func(string) (string, bool)) *Document {
	src, err := readFile(path)
	if err != nil {
		return &Document{list: []Problem{{Source: path, What: "cannot be read: " + reason(err), Err: err}}}
	}
	return ParseDocument(path, src, to, getenv)
}

// ParseDocument is ReadDocument for a file's content.
func ParseDocument(name string, src []byte, to any, getenv func(string) (string, bool)) *Document {
	d := decoder{source: name, getenv: getenv, origin: make(map[string]origin)}
	if name != "" {
		d.dir = filepath.Dir(name)
	}
	doc := &Document{place: Config{source: name, origin: d.origin}, src: src}
	root, problem := parseTree(src)
	if problem != nil {
		problem.Source = name
		doc.list = []Problem{*problem}
		return doc
	}
	d.decode(root, to)
	doc.list = d.problems
	return doc
}

// Given says whether the key has a value, be it a bad one. Keys are written as in "hosts[0].price.usd_per_hour".
func (d *Document) Given(path string) bool { return d.place.given(path) }

// Add reports a mistake at a key: what is wrong, and how to put it right where what does not say it all.
func (d *Document) Add(path, what, hint string) {
	d.list = append(d.list, d.place.problem(path, what, hint))
}

// Err is a *Problems with all that is wrong, nil when nothing is.
func (d *Document) Err() error {
	keepInside(d.src, d.list)
	return asError(d.list)
}
