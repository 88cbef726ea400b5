package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"headrace/gateway/config"
	"headrace/gateway/ledger"
	"headrace/gateway/ledger/books"
)

// TestPartFailsWhileRequestsDrain has the admin API fail while a request runs: the gateway ends, and not before the request did, which is in the
// ledger and on its key's account as any other.
func TestPartFailsWhileRequestsDrain(t *testing.T) {
	t.Parallel()
	goOn := make(chan struct{})
	host := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"m","object":"model"}]}`)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, `data: {"choices":[{"index":0,"delta":{"content":"one"}}]}`+"\n\n")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-goOn:
		case <-r.Context().Done():
			return
		}
		_, _ = io.WriteString(w, `data: {"choices":[{"index":0,"delta":{"content":" two"},"finish_reason":"stop"}]}`+"\n\n"+
			`data: {"choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":2000,"total_tokens":3000}}`+"\n\ndata: [DONE]\n\n")
	}))
	defer host.Close()
	dir := t.TempDir()
	file, conf := filepath.Join(dir, "ledger.db"), filepath.Join(dir, "headrace.yaml")
	yaml := fmt.Sprintf("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nstate: {dir: %q}\nledger: {path: %q, flush: 1h}\nkeys: [{name: team, key: good-key-0123456789abcdef, budget: {usd_total: 5}}]\n"+
		"providers: {static: [{name: a, base_url: %q, models: [m], price: {usd_per_mtok: {in: 1, out: 1}}}]}\n", dir, file, host.URL+"/v1")
	if err := os.WriteFile(conf, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(conf, config.Overrides{}, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	a, err := newApp(cfg, newLogBuffer())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- a.run(ctx, nil) }()
	if err := a.waitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+a.listeners[0].Addr().String()+"/v1/chat/completions",
		strings.NewReader(`{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer good-key-0123456789abcdef")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if n, err := res.Body.Read(make([]byte, 1)); n != 1 {
		t.Fatalf("status %d, %v", res.StatusCode, err)
	}
	_ = a.admin.Close()
	eventually(t, "the gateway drains", a.server.Draining)
	close(goOn)
	if rest, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(rest), "[DONE]") {
		t.Errorf("the answer: %v, %s", err, rest)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the gateway ended with %v", err)
	}
	var has []string
	if err := books.Each(file, func(r *ledger.Record) bool {
		has = append(has, fmt.Sprintf("%s %d/%d $%.6f", r.Key, r.Prompt, r.Output, r.USD))
		return true
	}); err != nil || strings.Join(has, ", ") != "team 1000/2000 $0.003000" {
		t.Errorf("the ledger has %q, %v", has, err)
	}
	again, err := newApp(cfg, newLogBuffer())
	if err != nil {
		t.Fatal(err)
	}
	defer again.closeListeners()
	again.startKeys(t.Context())
	if v, err := again.keys.View(t.Context(), "team"); err != nil || fmt.Sprintf("%.6f", v.SpentTotal) != "0.003000" {
		b, _ := json.Marshal(v)
		t.Errorf("the key has spent %s, %v", b, err)
	}
}
