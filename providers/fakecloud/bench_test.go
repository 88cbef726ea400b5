package fakecloud_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"headrace/providers/fakecloud"
)

// BenchmarkStream is what a host costs by itself: a stream of 200 tokens that waits for nothing.
func BenchmarkStream(b *testing.B) {
	h, err := fakecloud.StartHost(b.Context(), fakecloud.HostConfig{Models: []string{model}})
	if err != nil {
		b.Fatal(err)
	}
	defer h.Stop()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	body := chatBody(prompt, `,"stream":true,"max_tokens":200`)
	b.ReportAllocs()
	for b.Loop() {
		resp, err := client.Post(h.URL()+"/v1/chat/completions", "application/json", strings.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
	}
	b.ReportMetric(float64(b.N*200)/b.Elapsed().Seconds(), "tokens/s")
}
