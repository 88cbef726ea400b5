package ledger_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"headrace/gateway/admission/queue"
	"headrace/gateway/ledger"
	"headrace/gateway/trace"
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
	r := ledger.Record{Prompt: -1, Cached: -1, Output: -1, Reasoning: -1, Tries: ledger.MaxAttempts + 2, Attempts: make([]ledger.Attempt, ledger.MaxAttempts), Class: outcome.Truncated, Duration: 1500 * time.Microsecond}
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

// TestLineIsWhatSlogWrites holds the access log's own encoder to slog's, over random records.
func TestLineIsWhatSlogWrites(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's
	texts := []string{"", "m", "org/model-70b", "quote \" and \\ and \n", "émoji 🙂", "\u2028 < & >", "bad \xff bytes"}
	text := func() string { return texts[rng.IntN(len(texts))] }
	span := func() time.Duration { return time.Duration(rng.Int64N(1 << (1 + rng.IntN(40)))) }
	for range 2000 {
		r := ledger.Record{
			ID: text(), Route: text(), Model: text(), Key: text(), Stream: rng.IntN(2) == 0, Status: rng.IntN(600), Class: outcome.Class(rng.IntN(9)),
			Tries: rng.IntN(4), Code: text(), TTFT: span(), Queued: span() * time.Duration(rng.IntN(2)), Batch: rng.IntN(2) == 0, Refused: queue.Why(rng.IntN(7)), UpstreamTTFT: span(), Duration: span(), Overhead: span(), ITLp50: span(), ITLp99: span(),
			TPS: rng.ExpFloat64() * 50 * float64(rng.IntN(2)), Prompt: rng.Int64N(1e6) - 1, Output: int64(rng.IntN(4)) - 1, Estimated: rng.IntN(2) == 0,
			Hedge: []string{"", "", "won", "lost"}[rng.IntN(4)], HedgeUSD: rng.ExpFloat64() * 1e-7,
			USD: rng.ExpFloat64() * 1e-7, USDKnown: rng.IntN(2) == 0,
		}
		if rng.IntN(2) == 0 {
			r.Trace = (&trace.Policy{On: true, Rand: rng.Uint64}).Begin(nil, nil)
		}
		var want bytes.Buffer
		now := time.Unix(1700000000, rng.Int64N(1e9)).UTC()
		rec := slog.NewRecord(now, slog.LevelInfo, "request", 0)
		rec.AddAttrs(r.Attrs(nil)...)
		if err := slog.NewJSONHandler(&want, nil).Handle(context.Background(), rec); err != nil {
			t.Fatal(err)
		}
		var a, b map[string]any
		got := r.AppendLine(nil, now)
		if err := json.Unmarshal(got, &a); err != nil {
			t.Fatalf("%s: %v", got, err)
		}
		if err := json.Unmarshal(want.Bytes(), &b); err != nil {
			t.Fatal(err)
		}
		if len(a) != len(b) || got[len(got)-1] != '\n' || bytes.Count(got, []byte("\n")) != 1 {
			t.Fatalf("got  %s\nwant %s", got, want.Bytes())
		}
		for k := range b {
			if a[k] != b[k] {
				t.Fatalf("%s: got %v, want %v", k, a[k], b[k])
			}
		}
	}
}

func BenchmarkAppendLine(b *testing.B) {
	r := ledger.Record{ID: "req_dgheg3c4sth9403whzq0q158yg", Route: "/v1/chat/completions", Model: "mock-model", Endpoint: "static:mock", Status: 200, Tries: 1, Duration: 1316 * time.Microsecond, Overhead: 350 * time.Microsecond, Prompt: 12, Output: 64, USD: 4.99e-7, USDKnown: true}
	now := time.Unix(1700000000, 123456789)
	buf := make([]byte, 0, 1<<10)
	b.ReportAllocs()
	for b.Loop() {
		buf = r.AppendLine(buf[:0], now)
	}
}

// Of many attempts the last one is named: it is the one that served.
func TestNotesTheLast(t *testing.T) {
	var r ledger.Record
	for i := range ledger.MaxAttempts + 3 {
		*r.Note() = ledger.Attempt{Status: i}
		r.Tries++
	}
	if n := len(r.Attempts); n != ledger.MaxAttempts || r.Attempts[n-1].Status != n+2 || r.Attempts[n-2].Status != n-2 {
		t.Errorf("%d attempts: %+v", n, r.Attempts)
	}
}

// The memory of a settled request's attempts is the next one's: who keeps a record keeps copies of them.
func TestKeptRecordsShareNothing(t *testing.T) {
	r := ledger.Record{ID: "r", Attempts: []ledger.Attempt{{Endpoint: "h0"}, {Endpoint: "h1"}}}
	g := ledger.NewRing(1)
	var came []string
	b := ledger.NewBatches(func(r *ledger.Record) { came = append(came, string(r.Attempts[0].Endpoint)) })
	g.Add(&r)
	b.Add(&r)
	r.Attempts[0].Endpoint = "of the next request"
	kept := g.Newest(1, nil)
	if len(kept[0].Attempts) != 2 || kept[0].Attempts[0].Endpoint != "h0" {
		t.Errorf("the ring has %+v", kept[0].Attempts)
	}
	if b.Flush(); len(came) != 1 || came[0] != "h0" {
		t.Errorf("counted for %q", came)
	}
	r.Attempts = r.Attempts[:1]
	g.Add(&r)
	if kept[0].Attempts[0].Endpoint != "h0" || len(g.Newest(1, nil)[0].Attempts) != 1 {
		t.Errorf("what was read changes: %+v", kept[0].Attempts)
	}
	if n := testing.AllocsPerRun(100, func() { g.Add(&r) }); n != 0 {
		t.Errorf("%v allocations for a record of the ring", n)
	}
}
