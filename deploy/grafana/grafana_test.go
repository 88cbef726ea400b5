package grafana_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"headrace/deploy/grafana"
	"headrace/deploy/internal/promql"
	"headrace/telemetry"
)

var update = flag.Bool("update", false, "rewrite dashboards/*.json")

func TestFilesAreCurrent(t *testing.T) {
	want := map[string]bool{}
	for _, d := range grafana.Dashboards() {
		path := filepath.Join("dashboards", d.UID+".json")
		want[path] = true
		text, err := d.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(path, text, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%s is stale (%v): run go test ./deploy/grafana -update", path, err)
		}
	}
	files, err := filepath.Glob("dashboards/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !want[f] {
			t.Errorf("%s is made by nobody", f)
		}
	}
}

// known returns all metrics that dashboards may use: those of the table that are there whatever names are chosen, and the rules'.
func known(t *testing.T) promql.Metrics {
	t.Helper()
	m := promql.Known()
	for _, i := range telemetry.Instruments() {
		if i.Set != telemetry.Always {
			for _, suffix := range []string{"", "_bucket", "_sum", "_count"} {
				delete(m, i.Prometheus()+suffix)
			}
		}
	}
	src, err := os.ReadFile("../prometheus/headrace.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Record, Expr string }
		}
	}
	if err := yaml.Unmarshal(src, &rules); err != nil {
		t.Fatal(err)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.Record == "" {
				continue
			}
			if err := m.Record(r.Record, r.Expr); err != nil {
				t.Fatal(err)
			}
		}
	}
	return m
}

var (
	legendLabel = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)
	variable    = regexp.MustCompile(`\$\{?(\w+)`)
	labelValues = regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`)
)

// TestQueries holds every query, legend and variable to the table of instruments.
func TestQueries(t *testing.T) {
	m := known(t)
	for _, d := range grafana.Dashboards() {
		vars := map[string]bool{"__rate_interval": true, "__range": true}
		for _, v := range d.Templating.List {
			vars[v.Name] = true
			if v.Type != "query" {
				continue
			}
			q := labelValues.FindStringSubmatch(v.Query)
			if q == nil {
				t.Errorf("%s: variable %s asks %q", d.Title, v.Name, v.Query)
			} else if err := m.Check(q[1], q[2]); err != nil {
				t.Errorf("%s: variable %s: %v", d.Title, v.Name, err)
			}
		}
		queries := 0
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				queries++
				var labels []string
				for _, l := range legendLabel.FindAllStringSubmatch(q.LegendFormat, -1) {
					labels = append(labels, l[1])
				}
				if err := m.Check(q.Expr, labels...); err != nil {
					t.Errorf("%s: %s: %v", d.Title, p.Title, err)
				}
				for _, v := range variable.FindAllStringSubmatch(q.Expr, -1) {
					if !vars[v[1]] {
						t.Errorf("%s: %s: %s has no variable $%s", d.Title, p.Title, q.Expr, v[1])
					}
				}
				for _, l := range labels {
					if strings.Contains(q.Expr, "by (") && !strings.Contains(q.Expr, l) {
						t.Errorf("%s: %s: the legend has %s, which %s leaves out", d.Title, p.Title, l, q.Expr)
					}
				}
			}
			if p.Type != "row" && len(p.Targets) == 0 {
				t.Errorf("%s: %s asks nothing", d.Title, p.Title)
			}
		}
		if queries < 10 {
			t.Errorf("%s has %d queries", d.Title, queries)
		}
	}
}

// TestEveryInstrumentIsShown names the figures that no dashboard has. Those of the conventions are there under several names.
func TestEveryInstrumentIsShown(t *testing.T) {
	var all strings.Builder
	for _, d := range grafana.Dashboards() {
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				all.WriteString(q.Expr + "\n")
			}
		}
	}
	rules, err := os.ReadFile("../prometheus/headrace.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	all.Write(rules)
	for _, i := range telemetry.Instruments() {
		if i.Set == telemetry.Always && !strings.Contains(all.String(), i.Prometheus()) {
			t.Errorf("%s (%s) is in no dashboard and no rule", i.Name, i.Prometheus())
		}
	}
}

// TestLayout: pages and panels are told apart, and none covers another.
func TestLayout(t *testing.T) {
	uids := map[string]bool{}
	for _, d := range grafana.Dashboards() {
		if uids[d.UID] {
			t.Errorf("two pages have the uid %s", d.UID)
		}
		uids[d.UID] = true
		ids := map[int]bool{}
		for i, p := range d.Panels {
			if ids[p.ID] || p.Title == "" {
				t.Errorf("%s: panel %d %q: no title, or an id that another has", d.Title, p.ID, p.Title)
			}
			ids[p.ID] = true
			if p.GridPos.X+p.GridPos.W > 24 || p.GridPos.W < 1 || p.GridPos.H < 1 {
				t.Errorf("%s: %s is at %+v, of 24 columns", d.Title, p.Title, p.GridPos)
			}
			for _, o := range d.Panels[:i] {
				a, b := p.GridPos, o.GridPos
				if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
					t.Errorf("%s: %s covers %s", d.Title, p.Title, o.Title)
				}
			}
			refs := []string{}
			for _, q := range p.Targets {
				if slices.Contains(refs, q.RefID) {
					t.Errorf("%s: %s has two queries %s", d.Title, p.Title, q.RefID)
				}
				refs = append(refs, q.RefID)
			}
		}
	}
}

// TestPromtool lets Prometheus' own parser read every query.
func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed (Debian: prometheus)")
	}
	values := strings.NewReplacer("$__rate_interval", "5m", "$__range", "1h")
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var rules []rule
	for _, d := range grafana.Dashboards() {
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				rules = append(rules, rule{fmt.Sprintf("q:%d", len(rules)), values.Replace(q.Expr)})
			}
		}
	}
	text, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboards", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "queries.yml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), promtool, "check", "rules", path).CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}
