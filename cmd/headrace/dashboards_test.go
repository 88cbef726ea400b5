package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"headrace/deploy/grafana"
	"headrace/gateway/state/redistest"
)

const prometheusConfig = `
global: {scrape_interval: 4s, scrape_timeout: 4s, evaluation_interval: 1s} # a page takes its time on a busy machine
rule_files: [%q]
scrape_configs:
  - {job_name: headrace, static_configs: [{targets: [%q]}]}
`

// rare are figures that the demo need not have while the test looks: nobody leaves, nobody is late, no config is read again.
var rare = []string{
	"headrace_client_cancels_total", "headrace_hedges_total", "headrace_config_reloads_total", "headrace_continuation", "headrace_failovers_total",
	"headrace_cold_start", "headrace_host_workers", "headrace_host_continues", "headrace_host_losses_per_day", "headrace_probes_total",
	"headrace_calibration", `headrace_use="wasted"`, "headrace_telemetry", "headrace_refusals_total", "headrace_queue",
	"headrace_ledger_bill", "headrace_redis", "headrace_replica", "headrace_experiment", "headrace_keys", // bills, replicas, experiments and keys, of which the demo has none
}

// TestDashboardsHaveSeries runs the demo under a real Prometheus with the alert rules, until every query of every dashboard has an answer.
func TestDashboardsHaveSeries(t *testing.T) {
	t.Parallel()
	server, err := exec.LookPath("prometheus")
	if err != nil {
		t.Skip("prometheus is not installed (Debian: prometheus)")
	}
	rules, err := filepath.Abs("../../deploy/prometheus/headrace.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience) // for some hundred queries, one after another
	defer cancel()

	admin, web := redistest.Address(t), redistest.Address(t)
	o := quickDemo()
	o.admin, o.duration, o.rate = admin, 0, 20
	demoDone := make(chan error, 1)
	demoCtx, stopDemo := context.WithCancel(ctx)
	go func() { demoDone <- demo(demoCtx, o, io.Discard) }()
	defer func() {
		stopDemo()
		if err := <-demoDone; err != nil {
			t.Errorf("demo: %v", err)
		}
	}()

	dir := t.TempDir()
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, fmt.Appendf(nil, prometheusConfig, rules, admin), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.CommandContext(ctx, server, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+web,
		"--enable-feature=exemplar-storage")
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Wait() }()

	askIn := func(ctx context.Context, path string, q url.Values, into any) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+web+path+"?"+q.Encode(), nil)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		return json.NewDecoder(res.Body).Decode(into)
	}
	ask := func(path string, q url.Values, into any) error { return askIn(ctx, path, q, into) }
	type answer struct {
		Status, Error string
		Data          struct {
			Result []struct{ Metric map[string]string }
		}
	}
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	again := func(why string) bool {
		select {
		case <-tick.C:
			return true
		case <-ctx.Done():
			t.Errorf("no answer: %s", why)
			return false
		}
	}
	var busiest answer
	for ask("/api/v1/query", url.Values{"query": {"topk(1, sum by (headrace_endpoint) (headrace_attempts_total))"}}, &busiest) != nil || len(busiest.Data.Result) == 0 {
		if !again("which host is busiest") {
			t.Fatalf("%s", log.String())
		}
	}
	values := strings.NewReplacer("$__rate_interval", "1m", "$endpoint", busiest.Data.Result[0].Metric["headrace_endpoint"],
		"$model", ".*", "$provider", ".*", "$instance", ".*", "$experiment", ".*")
	for _, d := range grafana.Dashboards() {
		for _, p := range d.Panels {
		queries:
			for _, target := range p.Targets {
				q := values.Replace(target.Expr)
				for {
					var a answer
					err := ask("/api/v1/query", url.Values{"query": {q}}, &a)
					if err == nil && a.Status != "success" {
						t.Errorf("%s: %s: %s: %s", d.Title, p.Title, q, a.Error)
						continue queries
					}
					if err == nil && (len(a.Data.Result) > 0 || containsAny(q, rare)) {
						continue queries
					}
					if !again(d.Title + ": " + p.Title + ": " + q) {
						for _, name := range []string{"up", "scrape_duration_seconds", "headrace_host_state == 1", "headrace_host_usd_per_hour", "headrace_host_workers"} {
							var a any
							err := askIn(context.WithoutCancel(ctx), "/api/v1/query", url.Values{"query": {name}}, &a)
							t.Logf("%s: %v %v", name, a, err)
						}
						t.Logf("%s", log.String())
						return
					}
				}
			}
		}
	}

	var groups struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError string }
			}
		}
	}
	if err := ask("/api/v1/rules", nil, &groups); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, g := range groups.Data.Groups {
		for _, r := range g.Rules {
			if n++; r.Health != "ok" {
				t.Errorf("rule %s: %s %s", r.Name, r.Health, r.LastError)
			}
		}
	}
	if n == 0 {
		t.Error("Prometheus has no rules")
	}
	lintPage(t, admin)
}

// lintPage lets promtool judge names, types and texts of /metrics.
func lintPage(t *testing.T, admin string) {
	t.Helper()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		return // of the same package as prometheus
	}
	_, page := get(t, "http://"+admin+"/metrics")
	cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(page)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

func containsAny(s string, parts []string) bool {
	for _, p := range parts {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}
