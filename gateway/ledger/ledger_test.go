package ledger_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"headrace/gateway/ledger"
	"headrace/router/outcome"
)

func TestRingKeepsTheNewest(t *testing.T) {
	g := ledger.NewRing(3)
	for i := range 7 {
		g.Add(&ledger.Record{ID: fmt.Sprint(i), Model: []string{"a", "b"}[i%2]})
		got := g.Newest(10, nil)
		if len(got) != min(3, i+1) || got[0].ID != fmt.Sprint(i) || got[len(got)-1].ID != fmt.Sprint(max(0, i-2)) {
			t.Fatalf("after %d: %v", i, got)
		}
	}
	if got := g.Newest(10, func(r *ledger.Record) bool { return r.Model == "b" }); len(got) != 1 || got[0].ID != "5" {
		t.Errorf("filtered: %v", got)
	}
	if got := g.Newest(2, nil); len(got) != 2 || got[1].ID != "5" {
		t.Errorf("two newest: %v", got)
	}
	if g.Total() != 7 {
		t.Errorf("total %d, want 7", g.Total())
	}
}

func TestUnknownIsNull(t *testing.T) {
	r := ledger.Record{Prompt: -1, Cached: -1, Output: -1, Reasoning: -1, Tries: 6, Class: outcome.Truncated, Duration: 1500 * time.Microsecond}
	b, err := json.Marshal(&r)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"prompt_tokens", "output_tokens", "usd", "ttft_ms", "tokens_per_second", "itl_p99_ms"} {
		if v, there := m[k]; !there || v != nil {
			t.Errorf("%s is %v, want null", k, v)
		}
	}
	if m["duration_ms"] != 1.5 || m["class"] != "truncated" || m["attempts_not_shown"] != 2.0 || len(m["attempts"].([]any)) != ledger.MaxAttempts {
		t.Errorf("record: %s", b)
	}
	for _, a := range r.Attrs(nil) {
		if strings.Contains(a.Key, "token") || a.Key == "usd" {
			t.Errorf("the log line has %s, which is unknown", a)
		}
	}
}
