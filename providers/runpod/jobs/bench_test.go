package jobs

import (
	"strings"
	"testing"
)

// BenchmarkEvent is what one relayed event costs, JSON of the poll included, by the number of events in a yield.
func BenchmarkEvent(b *testing.B) {
	for name, batch := range map[string]int{"single": 1, "batch50": 50} {
		b.Run(name, func(b *testing.B) {
			events := strings.Join(chunksOf(strings.Split(strings.Repeat(" token", 48), " "), "\n")[1:49], "")
			one := events[:strings.Index(events, "\n\n")+2]
			if batch > 1 {
				one = strings.Repeat(one, batch)
			}
			poll := []byte(`{"status":"IN_PROGRESS","stream":[{"output":` + string(asciiQuoted(one)) + `}]}`)
			s := &stream{a: chat()}
			b.SetBytes(int64(len(one)))
			b.ReportAllocs()
			for b.Loop() {
				n, err := parseNews(poll)
				if err != nil || s.add(n.Yields[0]) != nil || len(s.take()) != len(one) {
					b.Fatal("not relayed")
				}
				s.drop()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(batch), "ns/event")
		})
	}
}

func BenchmarkUnquote(b *testing.B) {
	raw := asciiQuoted(strings.Repeat("data: {\"a\":\"Größe 🦊\"}\n\n", 40))
	var dst []byte
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		dst = unquote(dst[:0], raw)
	}
}
