package promql_test

import (
	"slices"
	"strings"
	"testing"

	"headrace/deploy/internal/promql"
)

func TestCheck(t *testing.T) {
	known := promql.Metrics{
		"a_total":          {"x", "y"},
		"b_seconds_bucket": {"x", "le"},
		"up":               {"job"},
	}
	for _, tc := range []struct {
		expr    string
		further []string
		want    string // part of the error, "" for none
	}{
		{expr: `a_total`},
		{expr: `sum(rate(a_total{x="1",y!~"a|b"}[5m]))`},
		{expr: `sum by (x) (rate(a_total[$__rate_interval])) / ignoring(y) group_left (x) a_total`},
		{expr: `sum(a_total) by (x) > 1e3 and on (x) a_total offset 1h or up == bool 1.5`},
		{expr: `histogram_quantile(0.99, sum by (le, x) (rate(b_seconds_bucket[1h30m])))`, further: []string{"x"}},
		{expr: `a_total{x='it\'s {b}'} unless up{job="c_total"}`},
		{expr: `c_total`, want: "no metric c_total"},
		{expr: `sum(rate(a_total{z="1"}[5m]))`, want: "a_total has no label z"},
		{expr: `sum by (y) (b_seconds_bucket) / sum by (x) (a_total)`, want: "label y is of no metric in its scope"},
		{expr: `sum(b_seconds_bucket) by (y) / sum(a_total)`, want: "label y is of no metric in its scope"},
		{expr: `sum without (job) (a_total)`, want: "label job"},
		{expr: `a_total * on (z) up`, want: "label z"},
		{expr: `a_total`, further: []string{"le"}, want: "label le"},
		{expr: `{x="1"}`, want: "without a metric"},
		{expr: `vector(1)`, want: "names no metric"},
		{expr: `a_total{x="1}`, want: "string without an end"},
	} {
		err := known.Check(tc.expr, tc.further...)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("Check(%s, %v) = %v, want %q", tc.expr, tc.further, err, tc.want)
		}
	}
}

func TestRecord(t *testing.T) {
	known := promql.Metrics{"a_total": {"x", "y"}}
	if err := known.Record("r:a", `sum by (x) (max by (x, y) (a_total) and on (x, y) a_total) / sum by (x) (a_total)`); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(known["r:a"], []string{"x"}) {
		t.Errorf("labels %v, want x", known["r:a"])
	}
}

// TestKnown holds the names to what Prometheus shows for a counter, a gauge and a histogram.
func TestKnown(t *testing.T) {
	known := promql.Known()
	for name, label := range map[string]string{
		"headrace_requests_total":                          "headrace_class",
		"headrace_host_in_flight":                          "headrace_endpoint",
		"gen_ai_server_time_to_first_token_seconds_bucket": "le",
		"gen_ai_server_time_to_first_token_seconds_count":  "gen_ai_request_model",
	} {
		if !slices.Contains(known[name], label) {
			t.Errorf("%s has labels %v, want %s among them", name, known[name], label)
		}
	}
}
