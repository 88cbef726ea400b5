package capacity

import (
	"math"
	"net/url"
	"testing"
	"time"
)

// TestEstimate holds the estimate against every line that was measured.
func TestEstimate(t *testing.T) {
	var sum, n float64
	for _, e := range entries() {
		p := Estimate(&e.gpu, e.count, e.model)
		off := e.prior.ITLSeconds / p.ITLSeconds
		sum += math.Abs(math.Log(off))
		n++
		t.Logf("%d x %-15s %-16s %s: %6.1f tok/s estimated, %6.1f measured", e.count, e.gpu.Name, e.name, e.model.Quant, 1/p.ITLSeconds, 1/e.prior.ITLSeconds)
		near := func(what string, estimated, measured, factor float64) {
			t.Helper()
			if measured > 0 && !within(estimated/measured, 1/factor, factor) {
				t.Errorf("%d x %s, %s %s: %s estimated %g, measured %g", e.count, e.gpu.Name, e.name, e.model.Quant, what, estimated, measured)
			}
		}
		near("tokens per second", 1/p.ITLSeconds, 1/e.prior.ITLSeconds, 2)
		near("prompt tokens per second", p.PrefillTokensPerSecond, e.prior.PrefillTokensPerSecond, 4)
		near("slope", p.Slope, e.prior.Slope, 4)
		near("max_num_seqs", float64(p.MaxNumSeqs), float64(e.prior.MaxNumSeqs), 4)
	}
	if mean := math.Exp(sum / n); mean > 1.35 {
		t.Errorf("tokens per second are off by a factor of %.2f on average", mean)
	} else {
		t.Logf("tokens per second are off by a factor of %.2f on average", mean)
	}
}

// TestTables finds lines that cannot be right.
func TestTables(t *testing.T) {
	if _, err := time.Parse(time.DateOnly, catalogueDate); err != nil {
		t.Error(err)
	}
	if n := len(gpus()); n < 25 {
		t.Errorf("%d GPUs", n)
	}
	names := map[string]bool{}
	for _, r := range readTable(gpuSheet) {
		if u, err := url.Parse(r.text("source")); err != nil || u.Scheme != "https" || u.Host == "" {
			t.Errorf("%s: source %q", r.text("gpu"), r.text("source"))
		}
		if l := r.text("link"); l != "nvlink" && l != "pcie" {
			t.Errorf("%s: link %q", r.text("gpu"), l)
		}
	}
	for _, g := range gpus() {
		if names[g.Name] {
			t.Errorf("%s is there twice", g.Name)
		}
		names[g.Name] = true
		if found, ok := FindGPU(g.Name); !ok || found.Name != g.Name {
			t.Errorf("%s is taken for %q", g.Name, found.Name)
		}
		if !within(g.VRAM, 8e9, 400e9) || !within(g.Bandwidth, 2e11, 1e13) || !within(g.FLOPS, 4e13, 3e15) || g.Family == "" {
			t.Errorf("%+v", g)
		}
	}
	for _, e := range entries() {
		if u, err := url.Parse(e.source); e.source != "middle of what was usual at RunPod" && (err != nil || u.Scheme != "https") {
			t.Errorf("%s on %s: source %q", e.name, e.gpu.Name, e.source)
		}
		if e.asOf == "" || !within(e.prior.ITLSeconds, 1.0/1000, 1) || e.count < 1 || e.model.Active > e.model.Total {
			t.Errorf("%+v", e)
		}
		m, ok := ParseModel(e.name)
		if !ok || !within(m.Total/e.model.Total, 0.85, 1.15) || !within(m.Active/e.model.Active, 0.85, 1.15) {
			t.Errorf("%s reads as %s, the table says %s", e.name, m.describe(), e.model.describe())
		}
	}
	for _, f := range families {
		if m, ok := ParseModel(f.name); !ok || m.Total != f.total*1e9 {
			t.Errorf("%s is taken for a model of %s, not %gB", f.name, m.describe(), f.total)
		}
	}
}

// TestExpectIsWhatWasMeasured asks for each line's very GPU and model.
func TestExpectIsWhatWasMeasured(t *testing.T) {
	for _, e := range entries() {
		p := expect(&e.gpu, e.count, e.model)
		if math.Abs(p.ITLSeconds/e.prior.ITLSeconds-1) > 1e-9 {
			t.Errorf("%d x %s, %s: %g tok/s, measured %g; %s", e.count, e.gpu.Name, e.model.describe(), 1/p.ITLSeconds, 1/e.prior.ITLSeconds, p.Source)
		}
		if s := e.prior.MaxNumSeqs; s > 0 && p.MaxNumSeqs != s {
			t.Errorf("%d x %s, %s: %d sequences, the table has %d", e.count, e.gpu.Name, e.model.describe(), p.MaxNumSeqs, s)
		}
	}
}

// TestEstimateIsSane asks for every GPU, size and count: more hardware is never slower at one stream of a large model, and
// all figures can be calculated with.
func TestEstimateIsSane(t *testing.T) {
	for _, g := range gpus() {
		for _, billions := range []float64{0.1, 0.6, 1.5, 4, 8, 14, 32, 70, 123, 405, 1000} {
			for _, count := range []int{-1, 0, 1, 2, 4, 8} {
				m := Model{Total: billions * 1e9, Active: billions * 1e9}
				p := expect(&g, count, m)
				if p != p.withDefaultsFor(p.Source) {
					t.Errorf("%d x %s, %s: %+v", count, g.Name, m.describe(), p)
				}
				if tps := 1 / p.ITLSeconds; !within(tps, 0.05, 1000) || !within(p.Slope, 1e-5, 2) || p.MaxNumSeqs < minSequences || p.MaxNumSeqs > mostSequences {
					t.Errorf("%d x %s, %s: %g tok/s, slope %g, %d sequences", count, g.Name, m.describe(), tps, p.Slope, p.MaxNumSeqs)
				}
			}
		}
	}
}

func (p Prior) withDefaultsFor(source string) Prior {
	p.Source = source
	return p.withDefaults()
}
