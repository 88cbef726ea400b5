package telemetry_test

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"headrace/telemetry"
)

var update = flag.Bool("update", false, "rewrite the tables of docs/telemetry.md")

const docsPath = "../docs/telemetry.md"

// TestDocsAreCurrent keeps the tables of docs/telemetry.md as the table of instruments has them.
func TestDocsAreCurrent(t *testing.T) {
	src, err := os.ReadFile(docsPath)
	if err != nil {
		t.Fatal(err)
	}
	got := string(src)
	for name, content := range map[string]string{"instruments": instrumentsTable(), "labels": labelsTable()} {
		begin, end := "<!-- "+name+" -->\n", "<!-- end -->"
		head, rest, ok := strings.Cut(got, begin)
		_, tail, closed := strings.Cut(rest, end)
		if !ok || !closed {
			t.Fatalf("%s has no place for its table of %s: add %q and %q", docsPath, name, begin, end)
		}
		got = head + begin + content + end + tail
	}
	if *update {
		if err := os.WriteFile(docsPath, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != string(src) {
		t.Errorf("the tables of %s are stale: run go test ./telemetry -update", docsPath)
	}
}

func instrumentsTable() string {
	var b strings.Builder
	b.WriteString("| OpenTelemetry, Prometheus | kind, unit | labels | meaning |\n|---|---|---|---|\n")
	for _, i := range telemetry.Instruments() {
		kind := i.Kind.String() + ", `" + i.Unit + "`"
		if i.Set != telemetry.Always {
			kind += map[telemetry.Set]string{telemetry.Latest: "; not with names `legacy`", telemetry.Legacy: "; not with names `latest`"}[i.Set]
		}
		var labels, bounds []string
		for _, l := range i.Labels {
			labels = append(labels, "`"+l+"`")
		}
		doc := i.Doc
		for _, v := range i.Buckets {
			bounds = append(bounds, strconv.FormatFloat(v, 'g', -1, 64))
		}
		if len(bounds) > 0 {
			doc += " Buckets: " + strings.Join(bounds, ", ") + "."
		}
		fmt.Fprintf(&b, "| `%s`<br>`%s` | %s | %s | %s |\n", i.Name, i.Prometheus(), kind, strings.Join(labels, ", "), doc)
	}
	return b.String()
}

func labelsTable() string {
	var b strings.Builder
	b.WriteString("| label | values |\n|---|---|\n")
	for _, l := range telemetry.LabelDocs() {
		fmt.Fprintf(&b, "| `%s` | %s |\n", l.Key, l.Doc)
	}
	return b.String()
}

// TestInstruments holds the table to the rules of OpenTelemetry and Prometheus, so that no figure is refused by a backend.
func TestInstruments(t *testing.T) {
	name := regexp.MustCompile(`^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$`)
	known, used := map[string]bool{}, map[string]bool{}
	for _, l := range telemetry.LabelDocs() {
		if known[l.Key] || l.Doc == "" || !name.MatchString(l.Key) {
			t.Errorf("label %q is documented twice, not at all or badly named", l.Key)
		}
		known[l.Key] = true
	}
	seen := map[string]bool{}
	for _, i := range telemetry.Instruments() {
		if !name.MatchString(i.Name) || i.Unit == "" || i.Doc == "" || seen[i.Name] || seen[i.Prometheus()] {
			t.Errorf("%+v: badly named, or without unit or meaning, or there twice", i)
		}
		seen[i.Name], seen[i.Prometheus()] = true, true
		if (i.Kind == telemetry.Histogram) != (len(i.Buckets) > 0) || !slices.IsSorted(i.Buckets) {
			t.Errorf("%s: buckets %v of a %s", i.Name, i.Buckets, i.Kind)
		}
		for n, l := range i.Labels {
			if !known[l] || slices.Contains(i.Labels[:n], l) {
				t.Errorf("%s: label %q is not documented, or there twice", i.Name, l)
			}
			used[l] = true
		}
	}
	for l := range known {
		if !used[l] {
			t.Errorf("label %q is documented and not used", l)
		}
	}
}
