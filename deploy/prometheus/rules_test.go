// Package prometheus_test holds recording rules and alerts to the table of instruments, to their runbooks and to Prometheus itself.
package prometheus_test

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"headrace/deploy/internal/promql"
)

const (
	rulesPath    = "headrace.rules.yml"
	runbooksPath = "../../docs/runbooks.md"
)

// rule is a recording rule or an alert.
type rule struct {
	Record, Alert, Expr string
	For                 string
	Labels, Annotations map[string]string
}

func rules(t *testing.T) []rule {
	t.Helper()
	var doc struct {
		Groups []struct {
			Name  string
			Rules []rule
		}
	}
	read(t, rulesPath, &doc)
	var all []rule
	for _, g := range doc.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(src, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

var annotationLabel = regexp.MustCompile(`\$labels\.(\w+)`)

// TestRules holds every rule to the table of instruments, annotations included.
func TestRules(t *testing.T) {
	known := promql.Known()
	for _, r := range rules(t) {
		name := r.Record + r.Alert
		var labels []string
		for _, text := range r.Annotations {
			for _, l := range annotationLabel.FindAllStringSubmatch(text, -1) {
				labels = append(labels, l[1])
			}
		}
		if err := known.Check(r.Expr, labels...); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if r.Record != "" {
			if err := known.Record(r.Record, r.Expr); err != nil {
				t.Error(err)
			}
			continue
		}
		if !slices.Contains([]string{"page", "ticket", "info"}, r.Labels["severity"]) {
			t.Errorf("%s: severity %q", name, r.Labels["severity"])
		}
		if r.Annotations["summary"] == "" {
			t.Errorf("%s has no summary", name)
		}
		if want := "docs/runbooks.md#" + strings.ToLower(r.Alert); r.Annotations["runbook"] != want {
			t.Errorf("%s: runbook %q, want %q", name, r.Annotations["runbook"], want)
		}
	}
}

// TestRunbooks: every alert has a section that says what it means, what to look at and what to do, and no section is left over.
func TestRunbooks(t *testing.T) {
	src, err := os.ReadFile(runbooksPath)
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for i, s := range strings.Split(string(src), "\n### ") {
		if title, body, ok := strings.Cut(s, "\n"); i > 0 && ok {
			sections[title] = body
		}
	}
	for _, r := range rules(t) {
		if r.Alert == "" {
			continue
		}
		body, ok := sections[r.Alert]
		if !ok {
			t.Errorf("%s has no section %s", runbooksPath, r.Alert)
		}
		for _, part := range []string{"**Means:**", "**Look at:**", "**Do:**"} {
			if !strings.Contains(body, part) {
				t.Errorf("%s: %s does not say %s", runbooksPath, r.Alert, part)
			}
		}
		delete(sections, r.Alert)
	}
	for title := range sections {
		t.Errorf("%s: %s is the section of no alert", runbooksPath, title)
	}
}

var testFiles = []string{"headrace_test.yml", "long_test.yml"}

// TestCases: every alert is tested both ways, firing and silent.
func TestCases(t *testing.T) {
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, file := range testFiles {
		var doc struct {
			Tests []struct {
				Cases []struct {
					Alert string `yaml:"alertname"`
					Want  []any  `yaml:"exp_alerts"`
				} `yaml:"alert_rule_test"`
			}
		}
		read(t, file, &doc)
		for _, test := range doc.Tests {
			for _, c := range test.Cases {
				if len(c.Want) > 0 {
					fires[c.Alert] = true
				} else {
					silent[c.Alert] = true
				}
			}
		}
	}
	for _, r := range rules(t) {
		if r.Alert != "" && (!fires[r.Alert] || !silent[r.Alert]) {
			t.Errorf("%s: tested firing %v, silent %v", r.Alert, fires[r.Alert], silent[r.Alert])
		}
	}
}

// TestPromtool runs the cases in Prometheus' own evaluator.
func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed (Debian: prometheus)")
	}
	for _, args := range [][]string{{"check", "rules", rulesPath}, append([]string{"test", "rules"}, testFiles...)} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
