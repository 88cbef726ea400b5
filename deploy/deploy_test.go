// Package deploy_test holds what is deployed to what docs/deploy.md promises, as far as that costs a moment; `make deploy-check` does
// the rest.
package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

type service struct {
	Image       string
	Build       struct{ Context string }
	Ports       []string
	Volumes     []string
	CapDrop     []string `yaml:"cap_drop"`
	SecurityOpt []string `yaml:"security_opt"`
	ReadOnly    bool     `yaml:"read_only"`
	StopGrace   string   `yaml:"stop_grace_period"`
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

// TestCompose: nothing is published to the network, nothing runs as it likes, mounted files are there, images are pinned.
func TestCompose(t *testing.T) {
	var doc struct {
		Services map[string]service
	}
	read(t, "compose/compose.yaml", &doc)
	want := []string{"grafana", "headrace", "otel-collector", "prometheus", "redis", "tempo"}
	for _, name := range want {
		if _, ok := doc.Services[name]; !ok {
			t.Errorf("no service %s", name)
		}
	}
	for name, s := range doc.Services {
		for _, p := range s.Ports {
			if !strings.HasPrefix(p, "127.0.0.1:") {
				t.Errorf("%s publishes %s beyond loopback", name, p)
			}
		}
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			if !strings.HasPrefix(from, ".") {
				continue // a named volume
			}
			if _, err := os.Stat(filepath.Join("compose", from)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if !strings.HasSuffix(v, ":ro") {
				t.Errorf("%s may write to %s", name, v)
			}
		}
		if !slices.Contains(s.CapDrop, "ALL") || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s keeps capabilities %v, options %v", name, s.CapDrop, s.SecurityOpt)
		}
		if name != "grafana" && !s.ReadOnly { // Grafana unpacks plugins beside itself
			t.Errorf("%s may write to its image", name)
		}
		if s.Build.Context == "" && !regexp.MustCompile(`:v?\d+\.\d+`).MatchString(s.Image) {
			t.Errorf("%s: image %s is pinned to no version", name, s.Image)
		}
	}
}

// TestComposeDrain: whoever stops the gateway waits until its longest stream has ended.
func TestComposeDrain(t *testing.T) {
	var doc struct {
		Services map[string]service
	}
	read(t, "compose/compose.yaml", &doc)
	var cfg struct {
		Timeouts struct{ Total, Drain time.Duration }
	}
	read(t, "compose/headrace.yaml", &cfg)
	grace, err := time.ParseDuration(doc.Services["headrace"].StopGrace)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Timeouts.Drain < cfg.Timeouts.Total || grace < cfg.Timeouts.Drain+10*time.Second {
		t.Errorf("total %v, drain %v, stop_grace_period %v: each must outlast the one before", cfg.Timeouts.Total, cfg.Timeouts.Drain, grace)
	}
}

// TestGrafanaProvisioning: what data sources and dashboards say of each other fits.
func TestGrafanaProvisioning(t *testing.T) {
	var sources struct {
		Datasources []struct {
			UID, Type string
			JSONData  struct {
				Exemplars []struct {
					Name string
					UID  string `yaml:"datasourceUid"`
				} `yaml:"exemplarTraceIdDestinations"`
			} `yaml:"jsonData"`
		}
	}
	read(t, "compose/grafana/datasources/headrace.yaml", &sources)
	uids := map[string]string{}
	for _, s := range sources.Datasources {
		uids[s.UID] = s.Type
	}
	for _, s := range sources.Datasources {
		for _, e := range s.JSONData.Exemplars {
			if uids[e.UID] != "tempo" || e.Name != "trace_id" {
				t.Errorf("exemplars of %s lead to %+v, which is no Tempo", s.UID, e)
			}
		}
	}
	var boards struct {
		Providers []struct{ Options struct{ Path string } }
	}
	read(t, "compose/grafana/dashboards/headrace.yaml", &boards)
	src, err := os.ReadFile("compose/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range boards.Providers {
		if !strings.Contains(string(src), ":"+p.Options.Path+":ro") {
			t.Errorf("nothing is mounted at %s", p.Options.Path)
		}
	}
}

// TestChartFiles: the chart ships the very rules and dashboards of this tree.
func TestChartFiles(t *testing.T) {
	for link, target := range map[string]string{"rules": "prometheus", "dashboards": "grafana/dashboards"} {
		got, err := filepath.EvalSymlinks(filepath.Join("helm/headrace/files", link))
		if err != nil || got != target {
			t.Errorf("files/%s is %s (%v), want %s", link, got, err, target)
		}
	}
}

// TestUnit lets systemd read the unit and judge how much it may do.
func TestUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	src, err := os.ReadFile("systemd/headrace.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "headrace.service")
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(src), "/usr/local/bin/headrace", "/bin/true")), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(filepath.Dir(unit), "headrace.socket")
	if src, err = os.ReadFile("systemd/headrace.socket"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(socket, src, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"verify", unit, socket}, {"security", "--offline=true", "--threshold=20", unit}} {
		out, err := exec.CommandContext(t.Context(), analyze, args...).CombinedOutput()
		if err != nil || args[0] == "verify" && len(out) > 0 {
			t.Errorf("systemd-analyze %s: %v\n%s", args[0], err, out)
		}
	}
}
