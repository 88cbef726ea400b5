package trace_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"headrace/gateway/trace"
)

const caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		header      string
		ok, sampled bool
	}{
		"sampled":                    {caller, true, true},
		"not sampled":                {caller[:53] + "00", true, false},
		"other flags":                {caller[:53] + "03", true, true},
		"nothing":                    {"", false, false},
		"too short":                  {caller[:54], false, false},
		"version 0 with more behind": {caller + "-x", false, false},
		"a later version":            {"01" + caller[2:] + "-x", true, true},
		"a later version as long":    {"cc" + caller[2:], true, true},
		"the forbidden version":      {"ff" + caller[2:], false, false},
		"upper case":                 {strings.ToUpper(caller), false, false},
		"no trace":                   {"00-" + strings.Repeat("0", 32) + caller[35:], false, false},
		"no span":                    {caller[:36] + strings.Repeat("0", 16) + "-01", false, false},
		"no hex":                     {"00-zz" + caller[5:], false, false},
		"wrong dashes":               {strings.ReplaceAll(caller, "-", "_"), false, false},
	} {
		id, span, sampled, ok := trace.Parse([]byte(c.header))
		if ok != c.ok || sampled != c.sampled || (id != trace.ID{}) != c.ok || (span != trace.SpanID{}) != c.ok {
			t.Errorf("%s: %x %x sampled %v, ok %v", name, id, span, sampled, ok)
		}
	}
}

func TestBegin(t *testing.T) {
	off := (&trace.Policy{}).Begin([]byte(caller), nil)
	if off.On() {
		t.Errorf("tracing is off, and the request is traced: %+v", off)
	}
	in, _, _, _ := trace.Parse([]byte(caller))

	trusting := trace.Policy{On: true, Trust: true, Ratio: 0}
	c := trusting.Begin([]byte(caller), []byte("vendor=1"))
	if c.ID != in || !c.Sampled || (c.Parent == trace.SpanID{}) || c.Span == c.Parent || c.State != "vendor=1" || (c.LinkID != trace.ID{}) {
		t.Errorf("a trusted caller's trace: %+v", c)
	}
	if got := string(c.AppendParent(nil, trace.SpanID{1, 2, 3})); got != "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-0102030000000000-01\r\nTracestate: vendor=1\r\n" {
		t.Errorf("hosts are told %q", got)
	}
	if c := trusting.Begin([]byte(caller), make([]byte, 600)); c.State != "" {
		t.Error("a tracestate of 600 bytes is kept")
	}

	wary := trace.Policy{On: true, Ratio: 1}
	c = wary.Begin([]byte(caller), []byte("vendor=1"))
	if c.ID == in || !c.Sampled || (c.Parent != trace.SpanID{}) || c.LinkID != in || c.State != "" {
		t.Errorf("a stranger's trace: %+v", c)
	}
}

func TestRatio(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's
	for _, ratio := range []float64{0, 0.1, 0.5, 1} {
		p := trace.Policy{On: true, Ratio: ratio, Rand: rng.Uint64}
		n, ids := 0, map[trace.ID]bool{}
		for range 20_000 {
			c := p.Begin(nil, nil)
			if ids[c.ID] = true; c.Sampled {
				n++
			}
		}
		if got := float64(n) / 20_000; got < ratio-0.02 || got > ratio+0.02 || (ratio == 0 || ratio == 1) && got != ratio {
			t.Errorf("ratio %v: %v are sampled", ratio, got)
		}
		if len(ids) != 20_000 {
			t.Errorf("%d traces of 20,000 have an id of their own", len(ids))
		}
	}
}

func TestAllocations(t *testing.T) {
	p := trace.Policy{On: true, Ratio: 0.1}
	buf, in := make([]byte, 0, 256), []byte(caller)
	if n := testing.AllocsPerRun(100, func() {
		c := p.Begin(in, nil)
		buf = c.AppendParent(buf[:0], p.NewSpan())
	}); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}

func BenchmarkBegin(b *testing.B) {
	p := trace.Policy{On: true, Ratio: 0.1}
	buf := make([]byte, 0, 256)
	b.ReportAllocs()
	for b.Loop() {
		c := p.Begin(nil, nil)
		buf = c.AppendParent(buf[:0], p.NewSpan())
	}
}
