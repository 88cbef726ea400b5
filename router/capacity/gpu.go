package capacity

import (
	_ "embed"
	"strings"
	"sync"
)

// GPU is what a data sheet says of one.
type GPU struct {
	Name      string  // as Headrace calls it
	Family    string  // those for which measured speeds hold, corrected by the figures below
	VRAM      float64 // bytes
	Bandwidth float64 // bytes per second of its memory
	FLOPS     float64 // dense 16-bit tensor operations per second, with 32-bit sums
	FP8       bool    // 8-bit floats run at twice that
	NVLink    bool    // how several in one host talk to each other; PCIe otherwise

	words [][]string // alternatives, all words of one are in its names
}

//go:embed gpus.csv
var gpuSheet string

//nolint:gochecknoglobals // a table, read once
var gpus = sync.OnceValue(func() []GPU {
	var gs []GPU
	for _, r := range readTable(gpuSheet) {
		g := GPU{
			Name: r.text("gpu"), Family: r.text("family"), VRAM: r.number("vram_gb") * 1e9, Bandwidth: r.number("bandwidth_gbps") * 1e9,
			FLOPS: r.number("tflops") * 1e12, FP8: r.number("fp8") > 0, NVLink: r.text("link") == "nvlink",
		}
		for alternative := range strings.SplitSeq(r.text("words"), "|") {
			g.words = append(g.words, strings.Fields(alternative))
		}
		gs = append(gs, g)
	}
	return gs
})

// FindGPU recognises a GPU by any of the names that providers, nvidia-smi and people give it, such as "RTX 4090",
// "NVIDIA GeForce RTX 4090", "NVIDIA A100-SXM4-80GB" or "RTX 6000Ada". RunPod's pools ("ADA_24") stand for their usual type.
// Of several, parted by commas, it returns the one with the slowest memory.
func FindGPU(name string) (g GPU, ok bool) {
	for one := range strings.SplitSeq(name, ",") {
		if found := findGPU(one); found != nil && (!ok || found.Bandwidth < g.Bandwidth) {
			g, ok = *found, true
		}
	}
	return g, ok
}

func findGPU(name string) *GPU {
	var room [16]string
	words := room[:0]
	for w := range strings.FieldsFuncSeq(strings.ToLower(name), func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') }) {
		if short := strings.TrimPrefix(strings.TrimPrefix(w, "rtx"), "gtx"); short != "" {
			w = short
		}
		words = append(words, w)
	}
	gs := gpus()
	for i := range gs {
		for _, alternative := range gs[i].words {
			if containsAll(words, alternative) {
				return &gs[i]
			}
		}
	}
	return nil
}

func containsAll(words, wanted []string) bool {
	for _, w := range wanted {
		found := false
		for _, has := range words {
			found = found || has == w
		}
		if !found {
			return false
		}
	}
	return true
}
