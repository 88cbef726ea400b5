package check

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// TestDashboards reads every page strictly as Grafana's own types, its panels' options and queries included.
func TestDashboards(t *testing.T) {
	plugins.RegisterDefaultPlugins() // panels' own options
	files, err := filepath.Glob("../grafana/dashboards/*.json")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d dashboards, %v", len(files), err)
	}
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var strict, d dashboard.Dashboard
		if err := strict.UnmarshalJSONStrict(src); err != nil && err.Error() != "" { // the SDK returns an empty list of errors for none
			t.Errorf("%s: %v", filepath.Base(f), err)
		}
		if err := json.Unmarshal(src, &d); err != nil {
			t.Fatal(err)
		}
		if err := d.Validate(); err != nil && err.Error() != "" {
			t.Errorf("%s: %v", filepath.Base(f), err)
		}
		for _, p := range d.Panels {
			if p.Panel == nil && p.RowPanel == nil {
				t.Errorf("%s: a panel of no kind", filepath.Base(f))
			}
		}
	}
}
