package fakerunpod

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestRelayWorksBothWays: a host may begin its answer before the request's last byte, or its end, was read. The rest must still
// reach it; otherwise the proxy cuts streams whose host was quick.
func TestRelayWorksBothWays(t *testing.T) {
	host := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		flush := http.NewResponseController(w)
		if err := flush.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, "early ")
		_ = flush.Flush()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("the host read %q, then %v", body, err)
		}
		_, _ = w.Write(body)
	}))
	defer host.Close()
	c := &Cloud{client: host.Client()}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		relay{c: c, w: w, r: r, target: host.URL, cut: true, broken: func() { t.Error("the host did not answer") }}.run()
	}))
	defer proxy.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	body, send := io.Pipe()
	go func() { _, _ = io.WriteString(send, "one ") }()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, proxy.URL, body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = int64(len("one two"))
	res, err := proxy.Client().Do(req) // returns with the answer's head
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	go func() {
		_, _ = io.WriteString(send, "two")
		_ = send.Close()
	}()
	if got, err := io.ReadAll(res.Body); string(got) != "early one two" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}
