package config

import (
	"strings"
	"testing"
	"time"
)

// TestExperiments reads what a file says in few words, and what follows from it.
func TestExperiments(t *testing.T) {
	c, err := Parse("headrace.yaml", []byte(`
providers: {runpod: {api_key: k}}
experiments:
  - name: awq
    model: llama-70b
    arms: {control: {hosts: {served: "meta-llama/*"}}, canary: {hosts: {served: ["*-awq", "*-gptq"]}}}
    steps: [5%, 0.25, "100 %"]
    guardrails: {error_rate: +1%, ttft_p95: +20%, tps: -15%, usd_per_mtok: +0%}
  - name: fixed
    model: llama-70b
    assign_by: request
    traffic: 20%
    arms: {control: {}, a: {weight: 10%}, b: {weight: 30%, policy: latency}}
    start: "2026-08-01T11:00:00+02:00"
`), Overrides{}, noVariables)
	if err != nil {
		t.Fatal(err)
	}
	e := c.Experiments[0]
	if e.AssignBy[0] != "request" || e.Steps[0] != 0.05 || e.Steps[1] != 0.25 || e.Steps[2] != 1 || e.MinTime != 10*time.Minute || e.MinUnits != 200 || e.Alpha != 0.05 || e.Control != "control" {
		t.Errorf("read %+v", e)
	}
	if g := e.Guardrails; *g.ErrorRate != 0.01 || *g.TTFTP95 != 0.2 || *g.TPS != -0.15 || *g.USDPerMTok != 0 || g.TTFT != nil || g.Score != nil {
		t.Errorf("guardrails %+v", g)
	}
	if from, to := e.Slice(); from != 0 || to != 0.8 {
		t.Errorf("the first has units %v to %v, want what the second leaves", from, to)
	}
	if got := e.Arms["canary"]; got.Weight != 1 || len(got.Hosts.Served) != 2 {
		t.Errorf("canary %+v", got)
	}
	e = c.Experiments[1]
	if from, to := e.Slice(); from != 0.8 || to != 1 {
		t.Errorf("the second has units %v to %v", from, to)
	}
	if start, end := e.Span(); !start.Equal(time.Date(2026, 8, 1, 9, 0, 0, 0, time.UTC)) || !end.IsZero() {
		t.Errorf("from %v to %v", start, end)
	}
	if e.Guardrails != nil {
		t.Errorf("guardrails %+v", e.Guardrails)
	}
}

// TestExperimentWarnings tells of a control that says not which hosts are its own beside an arm that does.
func TestExperimentWarnings(t *testing.T) {
	for arms, want := range map[string]string{
		`control: {}, canary: {hosts: {gpu: "H100"}}`:                                      "experiments[0].arms.control: ",
		`control: {hosts: {gpu: "A100"}}, canary: {hosts: {gpu: "H100"}}`:                  "",
		`control: {}, fast: {policy: latency}`:                                             "",
		`control: {}, small: {model: other, hosts: {gpu: "H100"}}`:                         "",
		`control: {policy: cost}, same: {model: m, hosts: {gpu: "H100"}, policy: latency}`: "experiments[0].arms.control: ",
	} {
		c, err := Parse("headrace.yaml", []byte("providers: {runpod: {api_key: k}}\nexperiments:\n  - {name: e, model: m, arms: {"+arms+"}}\n"), Overrides{}, noVariables)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(c.Warnings(), "; "); (got == "") != (want == "") || !strings.HasPrefix(got, want) {
			t.Errorf("%s: warnings %q", arms, got)
		}
	}
}

func noVariables(string) (string, bool) { return "", false }
