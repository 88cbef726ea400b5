package gateway

import (
	"math"
	"slices"
	"testing"
	"time"

	"headrace/gateway/openai"
)

// TestGapBuckets has every gap in a bucket whose value is near, and buckets in order.
func TestGapBuckets(t *testing.T) {
	last := -1
	for d := time.Duration(0); d < 2*time.Hour; d += max(time.Microsecond, d/100) {
		i := gapIndex(d)
		if i < last || i > last+1 && last >= 0 {
			t.Fatalf("%v is in bucket %d, a little less in %d", d, i, last)
		}
		last = i
		if v := gapValue(i); d >= time.Microsecond && math.Abs(float64(v-d.Truncate(time.Microsecond))) > 0.125*float64(d) {
			t.Errorf("%v is counted as %v", d, v)
		}
	}
	for _, d := range []time.Duration{-time.Second, math.MaxInt64} {
		if i := gapIndex(d); i < 0 || i >= gapBuckets {
			t.Errorf("%v is in bucket %d", d, i)
		}
	}
}

// TestGapQuantiles compares with exact quantiles of random gaps.
func TestGapQuantiles(t *testing.T) {
	r := random(t)
	var none gapHistogram
	if q := none.quantile(0.5); q != 0 {
		t.Errorf("no gaps: %v", q)
	}
	for range 50 {
		var h gapHistogram
		n := 1 + r.IntN(5000)
		gaps := make([]time.Duration, n)
		scale := math.Exp(r.Float64() * 12)
		for i := range gaps {
			gaps[i] = time.Duration(r.ExpFloat64() * scale * float64(10*time.Microsecond))
			h.add(gaps[i])
		}
		slices.Sort(gaps)
		for _, q := range []float64{0.01, 0.5, 0.9, 0.99, 1} {
			want := gaps[max(0, int(math.Ceil(q*float64(n)))-1)]
			got := h.quantile(q)
			if math.Abs(float64(got-want)) > 0.125*float64(want)+float64(time.Microsecond) {
				t.Errorf("quantile %v of %d gaps: %v, want %v", q, n, got, want)
			}
		}
	}
}

// TestGapCountsDoNotOverflow keeps the shape of a stream longer than its counters.
func TestGapCountsDoNotOverflow(t *testing.T) {
	var h gapHistogram
	for i := range 400_000 {
		d := 10 * time.Millisecond
		if i%4 == 0 {
			d = 40 * time.Millisecond
		}
		h.add(d)
	}
	for q, want := range map[float64]time.Duration{0.5: 10 * time.Millisecond, 0.9: 40 * time.Millisecond} {
		if got := h.quantile(q); math.Abs(float64(got-want)) > 0.125*float64(want) {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
	}
}

// TestMeter counts tokens, by the host's own figures where there are any.
func TestMeter(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	events := func(m *meter, data ...string) {
		for i, d := range data {
			var c openai.Chunk
			c.Parse(nil, []byte(d))
			m.see(&c, at.Add(time.Duration(i)*100*time.Millisecond))
		}
	}
	const (
		role  = `{"choices":[{"delta":{"role":"assistant","content":""}}]}`
		token = `{"choices":[{"delta":{"content":"x"}}]}`
		two   = `{"choices":[{"index":0,"delta":{"content":"x"}},{"index":1,"delta":{"content":"y"}}]}`
		stop  = `{"choices":[{"delta":{},"finish_reason":"a_reason_that_is_longer_than_usual"}]}`
		usage = `{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":40,"prompt_tokens_details":{"cached_tokens":4}}}`
	)
	for name, tc := range map[string]struct {
		data      []string
		output    int64
		estimated bool
		tps       float64
		finish    string
	}{
		"nothing":          {nil, 0, true, 0, ""},
		"role only":        {[]string{role}, 0, true, 0, ""},
		"one token":        {[]string{role, token}, 1, true, 0, ""},
		"counted":          {[]string{role, token, token, token}, 3, true, 2 / 0.2, ""},
		"two choices":      {[]string{two, two}, 4, true, 3 / 0.1, ""},
		"reported":         {[]string{role, token, token, stop, usage, "[DONE]"}, 40, false, 39 / 0.1, "a_reason_that_is"},
		"anthropic":        {[]string{`{"type":"message_start","message":{"usage":{"input_tokens":9,"output_tokens":1}}}`, `{"type":"content_block_delta","delta":{"type":"text_delta","text":"x"}}`, `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":12}}`, `{"type":"message_stop"}`}, 12, false, 0, "end_turn"},
		"continuous usage": {[]string{`{"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":9,"completion_tokens":1}}`, `{"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":9,"completion_tokens":2}}`}, 2, false, 1 / 0.1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var m meter
			events(&m, tc.data...)
			n, estimated := m.output()
			if n != tc.output || estimated != tc.estimated {
				t.Errorf("%d tokens, estimated %t, want %d, %t", n, estimated, tc.output, tc.estimated)
			}
			if math.Abs(m.tps()-tc.tps) > 1e-9 {
				t.Errorf("%v tokens a second, want %v", m.tps(), tc.tps)
			}
			if got := finishReason(m.finish[:m.finishN]); got != tc.finish {
				t.Errorf("finish %q, want %q", got, tc.finish)
			}
			if m.hasUsage && m.usage.Prompt != 9 {
				t.Errorf("prompt %d, want 9", m.usage.Prompt)
			}
		})
	}
}
