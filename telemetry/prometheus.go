package telemetry

import (
	"encoding/hex"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// scrapeWithin is how long one scrape may take, and scrapesAtOnce how many there may be.
const (
	scrapeWithin  = 10 * time.Second
	scrapesAtOnce = 4
)

// Handler serves the figures to Prometheus, with exemplars to one that asks for OpenMetrics. What Go and the operating system
// tell of the process is there too.
func (m *Metrics) Handler() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(&exposition{m: m, descs: descs()}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{EnableOpenMetrics: true, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeWithin})
}

// exposition is Metrics as Prometheus collects them.
type exposition struct {
	m     *Metrics
	descs [instruments]*prometheus.Desc
}

func descs() (all [instruments]*prometheus.Desc) {
	for i := range table {
		in := &table[i]
		labels := make([]string, len(in.Labels))
		for j, l := range in.Labels {
			labels[j] = PrometheusLabel(l)
		}
		all[i] = prometheus.NewDesc(in.Prometheus(), in.Doc, labels, nil)
	}
	return all
}

// Describe names every instrument.
func (e *exposition) Describe(out chan<- *prometheus.Desc) {
	for i, d := range e.descs {
		if e.m.opt.Names.has(table[i].Set) {
			out <- d
		}
	}
}

// Collect tells every series.
func (e *exposition) Collect(out chan<- prometheus.Metric) {
	e.m.collect(&scrape{e, out})
}

type scrape struct {
	*exposition
	out chan<- prometheus.Metric
}

func (s *scrape) from(time.Time) {} // a counter that is lower than before is known to have begun anew

func (s *scrape) number(i instrument, v float64, values ...string) {
	kind := prometheus.GaugeValue
	if table[i].Kind == Counter {
		kind = prometheus.CounterValue
	}
	s.send(i)(prometheus.NewConstMetric(s.descs[i], kind, v, values...))
}

func (s *scrape) hist(i instrument, h *hist, values ...string) {
	if h.n == nil {
		return
	}
	bounds := table[i].Buckets
	buckets, total := make(map[float64]uint64, len(bounds)), uint64(0)
	for b, n := range h.n {
		if total += n; b < len(bounds) {
			buckets[bounds[b]] = total
		}
	}
	metric, err := prometheus.NewConstHistogram(s.descs[i], total, h.sum, buckets, values...)
	var exs []prometheus.Exemplar
	for b := range h.ex {
		if x := &h.ex[b]; !x.at.IsZero() {
			exs = append(exs, prometheus.Exemplar{
				Value: x.value, Timestamp: x.at,
				Labels: prometheus.Labels{"trace_id": hex.EncodeToString(x.trace[:]), "span_id": hex.EncodeToString(x.span[:])},
			})
		}
	}
	if err == nil && len(exs) > 0 {
		metric, err = prometheus.NewMetricWithExemplars(metric, exs...)
	}
	s.send(i)(metric, err)
}

// send hands a series over; one that is wrong is told to whoever scrapes, and ends nothing.
func (s *scrape) send(i instrument) func(prometheus.Metric, error) {
	return func(m prometheus.Metric, err error) {
		if err != nil {
			m = prometheus.NewInvalidMetric(s.descs[i], err)
		}
		s.out <- m
	}
}
