package check

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
)

// TestCompose loads compose.yaml alone and with demo.yaml as Compose does: its schema, its interpolation, its merging.
func TestCompose(t *testing.T) {
	for name, files := range map[string][]string{
		"accounts": {"../compose/compose.yaml"},
		"demo":     {"../compose/compose.yaml", "../compose/demo.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := cli.NewProjectOptions(files, cli.WithEnv([]string{"GRAFANA_PASSWORD=x", "RUNPOD_API_KEY=rpa_example"}), cli.WithResolvedPaths(true))
			if err != nil {
				t.Fatal(err)
			}
			p, err := o.LoadProject(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.WithServicesEnabled(); err != nil {
				t.Fatal(err)
			}
			h, err := p.GetService("headrace")
			if err != nil {
				t.Fatal(err)
			}
			if key := h.Environment["RUNPOD_API_KEY"]; key == nil || *key != "rpa_example" {
				t.Error("the key does not reach the gateway")
			}
			if (h.Command[0] == "demo") != (name == "demo") {
				t.Errorf("command %v", h.Command)
			}
		})
	}
	o, err := cli.NewProjectOptions([]string{"../compose/compose.yaml"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.LoadProject(t.Context()); err == nil || !strings.Contains(err.Error(), "GRAFANA_PASSWORD") {
		t.Errorf("without a password: %v", err)
	}
}

// TestPrometheusConfig lets promtool read the config, with the rules where it looks for them.
func TestPrometheusConfig(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed (Debian: prometheus)")
	}
	dir := t.TempDir()
	for to, from := range map[string]string{"prometheus.yml": "../compose/prometheus.yml", "rules/headrace.rules.yml": "../prometheus/headrace.rules.yml"} {
		src, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, to)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, to), src, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), promtool, "check", "config", filepath.Join(dir, "prometheus.yml")).CombinedOutput(); err != nil || !strings.Contains(string(out), "rules found") {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// TestCollectorConfig lets a collector with the config's parts read it. OTELCOL names its binary.
func TestCollectorConfig(t *testing.T) {
	bin := os.Getenv("OTELCOL")
	if bin == "" {
		t.Skip("OTELCOL names no collector (otelcol-contrib, or one made from collector-builder.yaml)")
	}
	if out, err := exec.CommandContext(t.Context(), bin, "validate", "--config", "../compose/collector.yaml").CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", bin, err, out)
	}
}
