package providers_test

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestFailureModesHaveTests compares the failure modes that docs/providers.md lists, and the packages it names for each, with
// the subtests that there are.
func TestFailureModesHaveTests(t *testing.T) {
	doc, err := os.ReadFile("../docs/providers.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string][]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `((?:runpod_9|vast_7)\\.\\d+)` \\| .* \\| (.*) \\|$").FindAllStringSubmatch(string(doc), -1) {
		listed[m[1]] = strings.Split(m[2], ", ")
	}
	if len(listed) != 40 {
		t.Errorf("%d failure modes are listed, 40 are known", len(listed))
	}
	found := map[string]map[string]bool{}
	name := regexp.MustCompile(`"((?:runpod_9|vast_7)\.\d+)_`)
	err = filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range name.FindAllStringSubmatch(string(src), -1) {
			if found[m[1]] == nil {
				found[m[1]] = map[string]bool{}
			}
			found[m[1]][filepath.Base(filepath.Dir(path))] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for mode, in := range found {
		if listed[mode] == nil {
			t.Errorf("%s has tests in %v and is not listed", mode, slices.Sorted(maps.Keys(in)))
		}
	}
	for mode, in := range listed {
		slices.Sort(in)
		if got := slices.Sorted(maps.Keys(found[mode])); !slices.Equal(got, in) {
			t.Errorf("%s has tests in %v, and is listed with %v", mode, got, in)
		}
	}
}
