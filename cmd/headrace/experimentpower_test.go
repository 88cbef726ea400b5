package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"headrace/router/experiment/trial"
)

// power runs the command.
func power(t *testing.T, args ...string) (string, error) {
	t.Helper()
	c := experimentPowerCommand()
	var out bytes.Buffer
	c.SetOut(&out)
	c.SetErr(&out)
	c.SetArgs(args)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

func TestExperimentPower(t *testing.T) {
	t.Parallel()
	out, err := power(t, "--requests", "1500,500", "--runs", "20", "--failures", "25%", "--ttft", "0.1", "--share", "20%", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var rows []trial.Row
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if len(rows) != 1 || rows[0].Effect != "TTFT +10 %, failures +25 pt" || !rows[0].Sticky || rows[0].Runs != 20 || rows[0].Weight != 0.2 {
		t.Fatalf("%+v: want one row of what was asked for", rows)
	}
	if s := rows[0].Stopped; len(s) != 2 || s[0].Requests != 500 || s[1].Share < 0.9 {
		t.Errorf("stopped %+v: want nearly all within 1,500 requests", s)
	}
	out, err = power(t, "--requests", "300", "--runs", "5", "--units", "requests")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"5 made-up experiments", "by requests", "no difference", "TTFT +10 %", "failures +20 pt", "error_rate"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in:\n%s", want, out)
		}
	}
}

func TestExperimentPowerRefuses(t *testing.T) {
	for name, args := range map[string][]string{
		"output": {"-o", "yaml"}, "units": {"--units", "keys"}, "runs": {"--runs", "0"}, "requests": {"--requests", "5"}, "share": {"--share", "150%"},
		"no share": {"--share", "0"}, "words": {"--ttft", "much"}, "nan": {"--ttft", "NaN"},
	} {
		t.Run(name, func(t *testing.T) {
			if out, err := power(t, args...); err == nil {
				t.Errorf("no error: %s", out)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := experimentPowerCommand()
	c.SetOut(new(bytes.Buffer))
	c.SetErr(new(bytes.Buffer))
	c.SetArgs([]string{"--runs", "1000"})
	var exit *exitError
	if err := c.ExecuteContext(ctx); !errors.As(err, &exit) || exit.code != 130 {
		t.Errorf("interrupted: %v", err)
	}
}
