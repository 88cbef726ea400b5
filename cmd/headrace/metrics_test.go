package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/providers/fakecloud"
)

// TestEnginesAreAsked fills a host behind the gateway's back: its engine's queue tells the gateway how many it really takes.
func TestEnginesAreAsked(t *testing.T) {
	t.Parallel()
	h := startHost(t, fakecloud.HostConfig{Models: []string{"m"}, MaxNumSeqs: 2, TPS: 10, TimeScale: 1})
	yaml := strings.Replace(fmt.Sprintf(appYAML, h.URL()+"/v1"), "price:", "models: [m], max_num_seqs: 8, price:", 1)
	r := startApp(t, t.TempDir(), yaml, nil)
	limit := func() float64 {
		_, body := get(t, "http://"+r.app.admin.Addr().String()+"/admin/v1/hosts")
		var answer struct {
			Hosts []struct {
				Limit float64 `json:"limit_concurrency"`
			} `json:"hosts"`
		}
		if err := json.Unmarshal([]byte(body), &answer); err != nil || len(answer.Hosts) != 1 {
			t.Fatalf("%v in %s", err, body)
		}
		return answer.Hosts[0].Limit
	}
	if l := limit(); l != 8 {
		t.Fatalf("limit %g at first", l)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	defer load.Wait()
	defer cancel()
	for range 5 {
		load.Go(func() {
			body := strings.NewReader(`{"model":"m","stream":true,"max_tokens":100000,"messages":[{"role":"user","content":"hello"}]}`)
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL()+"/v1/chat/completions", body)
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Content-Type", "application/json")
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			defer func() { _ = res.Body.Close() }()
			_, _ = io.Copy(io.Discard, res.Body)
		})
	}
	tick := time.NewTicker(100 * time.Millisecond) // nothing tells when an engine was asked
	defer tick.Stop()
	deadline := time.After(patience)
	for limit() > 3 {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("limit %g while two run and three wait", limit())
		}
	}
}
