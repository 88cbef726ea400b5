package capacity

import (
	_ "embed"
	"encoding/csv"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"

	"headrace/router/endpoint"
)

// catalogueDate is when catalogue.csv and gpus.csv were last looked through.
const catalogueDate = "2026-11-27"

//go:embed catalogue.csv
var catalogueSheet string

// entry is a line of catalogue.csv: what one engine was measured to do.
type entry struct {
	gpu    GPU
	count  int
	name   string // of the model
	model  Model
	prior  Prior // zero where the line says nothing
	source string
	asOf   string
}

//nolint:gochecknoglobals // a table, read once
var entries = sync.OnceValue(func() []entry {
	var es []entry
	for _, r := range readTable(catalogueSheet) {
		e := entry{
			count: int(r.number("count")), name: r.text("model"), source: r.text("source"), asOf: r.text("as_of"),
			model: Model{Total: r.number("total_b") * 1e9, Active: r.number("active_b") * 1e9, Stated: true},
			prior: Prior{
				ITLSeconds: 1 / r.number("tps"), Slope: r.number("slope"), TTFTSeconds: r.number("ttft_s"),
				PrefillTokensPerSecond: r.number("prefill_tps"), MaxNumSeqs: int(r.number("max_num_seqs")),
			},
		}
		for e.model.Quant.String() != r.text("quant") {
			if e.model.Quant == INT4 {
				panic("BUG: catalogue.csv: quant " + r.text("quant"))
			}
			e.model.Quant++
		}
		known := false
		for _, g := range gpus() {
			if g.Name == r.text("gpu") {
				e.gpu, known = g, true
			}
		}
		if !known {
			panic("BUG: catalogue.csv: a GPU that gpus.csv does not have: " + r.text("gpu"))
		}
		if parsed, ok := ParseModel(e.name); ok {
			e.model.KV = parsed.KV
		}
		es = append(es, e)
	}
	return es
})

// Expectations of an API that bills by the token: whatever runs there, one caller's streams hardly slow each other.
const (
	apiTPS     = 50
	apiSlope   = 1e-4
	apiTTFT    = 0.45
	apiPrefill = 8000
	apiSeqs    = 1024
)

// Lookup returns what to expect of an endpoint by its hardware and model: what was measured of the same or a similar pair,
// else an estimate, else a default. Source says which.
func Lookup(ep *endpoint.Endpoint) Prior {
	p := lookup(ep)
	if ep.MaxNumSeqs > 0 {
		p.MaxNumSeqs = ep.MaxNumSeqs
	}
	return p
}

func lookup(ep *endpoint.Endpoint) Prior {
	if ep.Tenure == endpoint.TenurePerToken || ep.Price.Basis == endpoint.PerToken {
		p := Prior{
			ITLSeconds: 1.0 / apiTPS, Slope: apiSlope, TTFTSeconds: apiTTFT, PrefillTokensPerSecond: apiPrefill, MaxNumSeqs: apiSeqs,
			Source: "an API that bills by the token, as usual",
		}
		if ep.Limits.Concurrent > 0 {
			p.MaxNumSeqs = ep.Limits.Concurrent
		}
		return p
	}
	g, known := FindGPU(ep.Hardware.GPU)
	if !known {
		return Prior{Source: "default: GPU " + orUnknown(ep.Hardware.GPU)}
	}
	for i := range ep.Served {
		if m, ok := ParseModel(ep.Served[i].Name); ok {
			return expect(&g, ep.Hardware.GPUCount, m)
		}
	}
	if len(ep.Served) == 0 {
		return Prior{Source: "default: model unknown"}
	}
	return Prior{Source: "default: size unknown of model " + ep.Served[0].Name}
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s + " not in the catalogue"
}

// How far in size a measured line may be from the model asked for, and up to where it counts as the same.
const (
	maxSizeRatio = 2.0
	sameSize     = 1.15
)

// expect is Estimate, corrected by the nearest line of the catalogue: by as much as that was measured to differ from the
// estimate made for it. For a line's very GPU and model this is what was measured.
func expect(g *GPU, count int, m Model) Prior {
	count = max(1, count)
	m = m.fitted(g.VRAM * float64(count))
	e, ratio := nearest(g, count, &m)
	same := e != nil && ratio < sameSize && e.gpu.Name == g.Name
	if same { // "70B" in a name may be 69 or 70.6
		m = e.model
	}
	p := Estimate(g, count, m)
	if e == nil {
		p.Source = fmt.Sprintf("estimated %s from the data sheet: %d x %s, %s", catalogueDate, count, g.Name, m.describe())
		return p
	}
	was, how := Estimate(&e.gpu, e.count, e.model), "after"
	if same {
		how = "as"
		if e.prior.MaxNumSeqs > 0 {
			p.MaxNumSeqs = e.prior.MaxNumSeqs
		}
	}
	p.ITLSeconds *= e.prior.ITLSeconds / was.ITLSeconds
	if e.prior.Slope > 0 {
		p.Slope *= e.prior.Slope / was.Slope
	}
	if e.prior.PrefillTokensPerSecond > 0 {
		p.PrefillTokensPerSecond *= e.prior.PrefillTokensPerSecond / was.PrefillTokensPerSecond
	}
	if e.prior.TTFTSeconds > 0 {
		p.TTFTSeconds = e.prior.TTFTSeconds
	}
	p.Source = fmt.Sprintf("%s measured %s: %d x %s, %s %s (%s)", how, e.asOf, e.count, e.gpu.Name, e.name, e.model.Quant, e.source)
	return p
}

// nearest returns the line that is most like what is asked for, nil when none is near enough, and how far off it is in size.
func nearest(g *GPU, count int, m *Model) (best *entry, ratio float64) {
	es := entries()
	distance := math.Inf(1)
	for i := range es {
		e := &es[i]
		if e.gpu.Family != g.Family || e.count != count || e.model.Quant != m.Quant || e.model.experts() != m.experts() {
			continue
		}
		active, total := math.Abs(math.Log(e.model.Active/m.Active)), math.Abs(math.Log(e.model.Total/m.Total))
		far := max(active, total)
		if far > math.Log(maxSizeRatio) {
			continue
		}
		if e.gpu.Name != g.Name {
			active += 0.1
		}
		if d := active + total; d < distance {
			distance, best, ratio = d, e, math.Exp(far)
		}
	}
	return best, ratio
}

// describe names size and quantisation.
func (m *Model) describe() string {
	size := strconv.FormatFloat(m.Total/1e9, 'g', 3, 64) + "B"
	if m.experts() {
		size += " of which " + strconv.FormatFloat(m.Active/1e9, 'g', 3, 64) + "B active"
	}
	return size + " " + m.Quant.String()
}

// line is one of a table, by column.
type line struct {
	columns, cells []string
}

func (l line) text(column string) string {
	for i, c := range l.columns {
		if c == column {
			return l.cells[i]
		}
	}
	panic("BUG: no column " + column)
}

// number reads a cell; 0 for an empty one.
func (l line) number(column string) float64 {
	s := l.text(column)
	if s == "" {
		return 0
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		panic("BUG: column " + column + ": " + err.Error())
	}
	return v
}

// readTable reads a table that is part of the program, with comment lines and a head.
func readTable(sheet string) []line {
	r := csv.NewReader(strings.NewReader(sheet))
	r.Comment = '#'
	rows, err := r.ReadAll()
	if err != nil {
		panic("BUG: " + err.Error())
	}
	var out []line
	for _, cells := range rows[1:] {
		out = append(out, line{rows[0], cells})
	}
	return out
}
