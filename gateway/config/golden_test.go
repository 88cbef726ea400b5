package config

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite golden files, deploy/headrace.schema.json and the tables of docs/config.md")

// labKey is a secret in the environment of all tests; no message may hold it.
const labKey = "sk-environment-secret"

func testEnv(name string) (string, bool) {
	v, ok := map[string]string{"LAB_KEY": labKey, "EMPTY": "", "SIZE": "17k", "SEQS": "64", "SECONDS": "5s", "YES": "true"}[name]
	return v, ok
}

// golden compares got with a file, or rewrites the file.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (write it with -update)", err)
	}
	if got != string(want) {
		t.Errorf("%s is stale (rewrite it with -update)\n--- got\n%s\n--- want\n%s", path, got, want)
	}
}

func TestBadFiles(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.bad.yaml")
	if err != nil || len(paths) < 35 {
		t.Fatalf("%d bad files, %v", len(paths), err)
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".bad.yaml")
		t.Run(name, func(t *testing.T) {
			src, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			c, err := Parse("headrace.yaml", src, Overrides{}, testEnv)
			if err == nil {
				t.Fatalf("no problem found; config %+v", c)
			}
			message := err.Error()
			for _, secret := range []string{labKey, "17k", "sk-secret", "hunter2"} {
				if strings.Contains(message, secret) {
					t.Errorf("message holds %q:\n%s", secret, message)
				}
			}
			golden(t, "testdata/"+name+".golden", message+"\n")
		})
	}
}
