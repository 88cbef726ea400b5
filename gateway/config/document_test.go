package config

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"
)

type garden struct {
	Name string   `yaml:"name" required:"true" eg:"roses"`
	Size float64  `yaml:"size" above:"0" default:"2"`
	Beds []bed    `yaml:"beds" aka:"plots"`
	Map  string   `yaml:"map" unit:"file"`
	Tags []string `yaml:"tags" single:"true"`
}

type bed struct {
	Plant string `yaml:"plant" required:"true"`
}

func TestDocument(t *testing.T) {
	env := func(name string) (string, bool) { return "tulips", name == "PLANT" }
	var g garden
	d := ParseDocument("in/garden.yaml", []byte("name: front\nbeds: [{plant: \"${PLANT}\"}]\nmap: plan.png\ntags: old\n"), &g, env)
	if err := d.Err(); err != nil {
		t.Fatal(err)
	}
	if g.Name != "front" || g.Size != 2 || len(g.Beds) != 1 || g.Beds[0].Plant != "tulips" || g.Map != filepath.Join("in", "plan.png") || len(g.Tags) != 1 {
		t.Errorf("read %+v", g)
	}
	if !d.Given("beds[0].plant") || d.Given("size") {
		t.Error("what is given is not known")
	}
	d.Add("beds[0].plant", "is out of season", "wait")
	if err := d.Err(); err == nil || err.Error() != "in/garden.yaml:2:16: beds[0].plant: is out of season; wait" {
		t.Errorf("error %v", err)
	}
}

// TestDocumentMistakes are all told, whoever found them, in the order of the file.
func TestDocumentMistakes(t *testing.T) {
	var g garden
	d := ParseDocument("garden.yaml", []byte("size: -1\nplots: []\n"), &g, testEnv)
	d.Add("size", "is no size", "")
	const want = `garden.yaml:1:1: name: is missing; add name: "roses"
garden.yaml:1:7: size: "-1" must be above 0
garden.yaml:1:7: size: is no size
garden.yaml:2:1: plots: unknown key; did you mean "beds"?`
	if err := d.Err(); err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if err := ParseDocument("garden.yaml", []byte("a: b: c\n"), &g, testEnv).Err(); err == nil {
		t.Error("what is not YAML is accepted")
	}
	if err := ReadDocument(filepath.Join(t.TempDir(), "none.yaml"), &g, testEnv).Err(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}
