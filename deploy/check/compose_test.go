package check

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
)

// TestCompose loads compose.yaml alone and with demo.yaml as Compose does: its schema, its interpolation, its merging.
func TestCompose(t *testing.T) {
	for name, files := range map[string][]string{
		"accounts": {"../compose/compose.yaml"},
		"demo":     {"../compose/compose.yaml", "../compose/demo.yaml"},
		"keys":     {"../compose/compose.yaml", "../compose/keys.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := cli.NewProjectOptions(files, cli.WithEnv([]string{"GRAFANA_PASSWORD=x", "RUNPOD_API_KEY=rpa_example", "HEADRACE_ADMIN_KEY=hr_example"}), cli.WithResolvedPaths(true))
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
			for _, v := range h.Volumes {
				if v.Target == "/etc/headrace/headrace.yaml" && strings.HasSuffix(v.Source, "headrace.keys.yaml") != (name == "keys") {
					t.Errorf("the config is %s", v.Source)
				}
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

// TestComposeConfig lets the gateway read its config.
func TestComposeConfig(t *testing.T) {
	for _, name := range []string{"headrace.yaml", "headrace.keys.yaml"} {
		path, err := filepath.Abs("../compose/" + name)
		if err != nil {
			t.Fatal(err)
		}
		configIsGood(t, path)
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

// collector returns the binary that OTELCOL names.
func collector(t *testing.T) string {
	t.Helper()
	bin := os.Getenv("OTELCOL")
	if bin == "" {
		t.Skip("OTELCOL names no collector (otelcol-contrib, or one made from collector-builder.yaml)")
	}
	return bin
}

// TestCollectorConfig lets a collector with the config's parts read it.
func TestCollectorConfig(t *testing.T) {
	bin := collector(t)
	if out, err := exec.CommandContext(t.Context(), bin, "validate", "--config", "../compose/collector.yaml").CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%s: %v\n%s", bin, err, out)
	}
}

// overrides replace what a test has no use for: addresses, and Tempo.
const overrides = `
receivers: {otlp: {protocols: {grpc: {endpoint: "127.0.0.1:0"}, http: {endpoint: "127.0.0.1:%d"}}}}
processors: {batch: {timeout: 10ms}}
exporters: {file: {path: %q}}
extensions: {health_check: {endpoint: "127.0.0.1:0"}}
service:
  pipelines: {traces: {receivers: [otlp], processors: [memory_limiter, tail_sampling, batch], exporters: [file]}}
  telemetry: {metrics: {readers: [{pull: {exporter: {prometheus: {host: 127.0.0.1, port: 0}}}}]}}
`

// TestTailSampling runs the collector: traces that failed or moved are kept, of the others about a tenth, and what comes late goes
// where its trace went.
func TestTailSampling(t *testing.T) {
	bin := collector(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	_ = ln.Close()
	dir := t.TempDir()
	kept := filepath.Join(dir, "kept.json")
	over := filepath.Join(dir, "over.yaml")
	if err := os.WriteFile(over, fmt.Appendf(nil, overrides, port, kept), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, "--config", "../compose/collector.yaml", "--config", over)
	cmd.Env = append(os.Environ(), "TAIL_SAMPLING_WAIT=1s")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Wait() })
	defer stop()

	send := func(spans ...string) error {
		body := `{"resourceSpans":[{"scopeSpans":[{"spans":[` + strings.Join(spans, ",") + `]}]}]}`
		res, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/v1/traces", port), "application/json", strings.NewReader(body))
		if err != nil {
			return err
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d", res.StatusCode)
		}
		return nil
	}
	rng := rand.New(rand.NewPCG(1, 2)) // sampling goes by the trace's id
	ids := 0
	id := func() string { ids++; return fmt.Sprintf("%016x%016x", rng.Uint64(), ids) }
	span := func(trace, name, rest string) string {
		ids++
		return fmt.Sprintf(`{"traceId":%q,"spanId":"%016x","name":%q,"kind":2,"startTimeUnixNano":"1","endTimeUnixNano":"2"%s}`, trace, ids, name, rest)
	}
	const attempts = `,"attributes":[{"key":"headrace.attempts","value":{"intValue":"%d"}}]`
	failed, moved := id(), id()
	var plain []string
	for range 400 {
		plain = append(plain, span(id(), "plain", fmt.Sprintf(attempts, 1)))
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for send(span(failed, "failed", `,"status":{"code":2}`), span(failed, "beside", "")) != nil {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the collector does not take spans:\n%s", log.String())
		}
	}
	if err := send(append(plain, span(moved, "moved", fmt.Sprintf(attempts, 2)))...); err != nil {
		t.Fatal(err)
	}
	names := func() map[string]int {
		src, _ := os.ReadFile(kept)
		n := map[string]int{}
		for _, name := range []string{"failed", "beside", "moved", "plain", "late"} {
			n[name] = strings.Count(string(src), fmt.Sprintf(`"name":%q`, name))
		}
		return n
	}
	until := func(what string, enough func(n map[string]int) bool) {
		for !enough(names()) {
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatalf("%s: kept %v\n%s", what, names(), log.String())
			}
		}
	}
	until("decided", func(n map[string]int) bool { return n["failed"] == 1 && n["moved"] == 1 && n["plain"] > 0 })
	if err := send(span(failed, "late", "")); err != nil {
		t.Fatal(err)
	}
	until("late", func(n map[string]int) bool { return n["late"] == 1 })
	stop()
	if n := names(); n["beside"] != 1 || n["plain"] < 10 || n["plain"] > 90 {
		t.Errorf("kept %v of 400 plain traces; want the failed trace whole, and a tenth of these", n)
	}
}
