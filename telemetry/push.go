package telemetry

import (
	"encoding/binary"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
)

// snapshot returns every figure as OpenTelemetry's exporters take it, with cumulative temporality.
func (m *Metrics) snapshot(res *resource.Resource, scope instrumentation.Scope) *metricdata.ResourceMetrics {
	p := &pile{now: m.opt.Now()}
	m.collect(p)
	sm := metricdata.ScopeMetrics{Scope: scope}
	for i := range table {
		in := &table[i]
		out := metricdata.Metrics{Name: in.Name, Description: in.Doc, Unit: in.Unit}
		switch {
		case len(p.numbers[i]) == 0 && len(p.hists[i]) == 0:
			continue
		case in.Kind == Histogram:
			out.Data = metricdata.Histogram[float64]{DataPoints: p.hists[i], Temporality: metricdata.CumulativeTemporality}
		case in.Kind == Counter, in.Kind == UpDownCounter:
			out.Data = metricdata.Sum[float64]{DataPoints: p.numbers[i], Temporality: metricdata.CumulativeTemporality, IsMonotonic: in.Kind == Counter}
		default:
			out.Data = metricdata.Gauge[float64]{DataPoints: p.numbers[i]}
		}
		sm.Metrics = append(sm.Metrics, out)
	}
	return &metricdata.ResourceMetrics{Resource: res, ScopeMetrics: []metricdata.ScopeMetrics{sm}}
}

// pile gathers series by instrument.
type pile struct {
	since, now time.Time
	numbers    [instruments][]metricdata.DataPoint[float64]
	hists      [instruments][]metricdata.HistogramDataPoint[float64]
}

func attributes(i instrument, values []string) attribute.Set {
	kvs := make([]attribute.KeyValue, 0, len(values))
	for n, v := range values {
		switch key := table[i].Labels[n]; {
		case v == "":
		case key == keyStatus:
			status, _ := strconv.Atoi(v) // it was made of a number
			kvs = append(kvs, attribute.Int(key, status))
		default:
			kvs = append(kvs, attribute.String(key, v))
		}
	}
	return attribute.NewSet(kvs...)
}

func (p *pile) from(since time.Time) { p.since = since }

func (p *pile) number(i instrument, v float64, values ...string) {
	d := metricdata.DataPoint[float64]{Attributes: attributes(i, values), Time: p.now, Value: v}
	if k := table[i].Kind; k == Counter || k == UpDownCounter {
		d.StartTime = p.since
	}
	p.numbers[i] = append(p.numbers[i], d)
}

func (p *pile) hist(i instrument, h *hist, values ...string) {
	if h.n == nil {
		return
	}
	d := metricdata.HistogramDataPoint[float64]{
		Attributes: attributes(i, values), StartTime: p.since, Time: p.now, Bounds: table[i].Buckets, BucketCounts: h.n, Sum: h.sum,
	}
	for _, n := range h.n {
		d.Count += n
	}
	for b := range h.ex {
		if x := &h.ex[b]; !x.at.IsZero() {
			d.Exemplars = append(d.Exemplars, metricdata.Exemplar[float64]{Time: x.at, Value: x.value, TraceID: x.trace[:], SpanID: x.span[:]})
		}
	}
	p.hists[i] = append(p.hists[i], d)
}

// instanceID makes random bits a service.instance.id in the form of a UUID.
func instanceID(a, b uint64) string {
	var u [16]byte
	binary.BigEndian.PutUint64(u[:8], a)
	binary.BigEndian.PutUint64(u[8:], b)
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80 // version 4, RFC 9562's variant
	const digits = "0123456789abcdef"
	out := make([]byte, 0, 36)
	for i, c := range u {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			out = append(out, '-')
		}
		out = append(out, digits[c>>4], digits[c&15])
	}
	return string(out)
}
