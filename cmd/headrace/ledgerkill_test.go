package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"headrace/gateway/ledger"
	"headrace/gateway/ledger/books"
	"headrace/providers/fakecloud"
)

// heard is what a caller learned of its own request.
type heard struct {
	at             time.Time // it had the whole answer
	prompt, output int64     // by the answer's usage
}

// caller asks for plain answers until it is told to stop, and keeps what it learned by request id.
func askUntil(ctx context.Context, base string, tokens int, note func(id string, a heard)) {
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for i := 0; ctx.Err() == nil; i++ {
		body := fmt.Sprintf(`{"model":"m","max_tokens":%d,"messages":[{"role":"user","content":"question %d %s"}]}`, tokens+i%7, i, strings.Repeat("x", i%50))
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			return
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := client.Do(req)
		if err != nil {
			continue
		}
		b, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		var a struct {
			Usage struct {
				Prompt int64 `json:"prompt_tokens"`
				Output int64 `json:"completion_tokens"`
			} `json:"usage"`
		}
		if err == nil && res.StatusCode == http.StatusOK && json.Unmarshal(b, &a) == nil {
			note(res.Header.Get("X-Request-Id"), heard{time.Now(), a.Usage.Prompt, a.Usage.Output})
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // at once
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().String()
}

// TestLedgerSurvivesKill kills a gateway in the middle of its work, starts it again, and finds every request in the ledger that was
// answered before the last write, each once.
func TestLedgerSurvivesKill(t *testing.T) {
	if underRace {
		t.Skip("the program that is killed has no race detector in it")
	}
	const flush, slack = 200 * time.Millisecond, 400 * time.Millisecond // for a machine that has other things to do
	dir := t.TempDir()
	bin, file, conf := filepath.Join(dir, "headrace"), filepath.Join(dir, "ledger.db"), filepath.Join(dir, "headrace.yaml")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}})
	listen := freePort(t)
	yaml := fmt.Sprintf("listen: %q\nadmin: \"off\"\nlog: {access: false}\nledger: {path: %q, flush: %v}\nproviders:\n  static:\n    - {name: a, base_url: %q, models: [m], price: {usd_per_mtok: {in: 1, out: 2}}}\n",
		listen, file, flush, h.URL()+"/v1")
	if err := os.WriteFile(conf, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // guards all
	all := map[string]heard{}
	// round runs the gateway, has it work for a while, and ends it by a signal.
	round := func(work time.Duration, sig syscall.Signal) (ended time.Time) {
		cmd := exec.Command(bin, "serve", "-c", conf) //nolint:noctx // ended by a signal
		cmd.Env = append(os.Environ(), "HEADRACE_STATE_DIR=off")
		log := newLogBuffer()
		cmd.Stderr = log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		log.await(t, "listening", 1)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				askUntil(ctx, "http://"+listen, 5, func(id string, a heard) {
					mu.Lock()
					defer mu.Unlock()
					all[id] = a
				})
			})
		}
		<-time.After(work)
		if sig != syscall.SIGKILL { // else amid the work
			cancel()
			wg.Wait()
		}
		ended = time.Now()
		_ = cmd.Process.Signal(sig)
		err := cmd.Wait()
		cancel()
		wg.Wait()
		if sig == syscall.SIGTERM && err != nil {
			t.Errorf("ended with %v:\n%s", err, log)
		}
		return ended
	}
	// check compares the file with what callers know, and returns how many are missing.
	check := func(killed time.Time) (missing int) {
		t.Helper()
		seen := map[string]bool{}
		var prompt, output int64
		if err := books.Each(file, func(r *ledger.Record) bool {
			if seen[r.ID] {
				t.Errorf("%s is there twice", r.ID)
			}
			seen[r.ID] = true
			if a, known := all[r.ID]; known && (a.prompt != r.Prompt || a.output != r.Output) {
				t.Errorf("%s: %d and %d tokens, its caller was told %d and %d", r.ID, r.Prompt, r.Output, a.prompt, a.output)
			}
			prompt, output = prompt+max(0, r.Prompt), output+max(0, r.Output)
			return true
		}); err != nil {
			t.Fatal(err)
		}
		for id, a := range all {
			if seen[id] {
				continue
			}
			missing++
			if early := killed.Sub(a.at); killed.IsZero() || early > flush+slack {
				t.Errorf("%s was answered %v before the kill and is not in the ledger", id, early)
			}
		}
		p, err := books.Read(file, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		r := p.Report(nil, nil)
		if n := r.Total.N[books.Requests]; n != int64(len(seen)) || r.Total.N[books.PromptTokens] != prompt || r.Total.N[books.OutputTokens] != output {
			t.Errorf("sums of %d requests, %d and %d tokens; the requests themselves are %d, with %d and %d", n, r.Total.N[books.PromptTokens], r.Total.N[books.OutputTokens], len(seen), prompt, output)
		}
		// Of requests that were cut off with their callers the cost is an estimate.
		if usd := float64(prompt)*1e-6 + float64(output)*2e-6; !nearly(r.Total.Used()-r.Total.F[books.GuessedUSD], usd) {
			t.Errorf("$%v, of which $%v are estimates; the tokens come to $%v", r.Total.Used(), r.Total.F[books.GuessedUSD], usd)
		}
		t.Logf("%d requests answered, %d in the ledger, %d of those answered missing", len(all), len(seen), missing)
		return missing
	}
	first := round(1500*time.Millisecond, syscall.SIGKILL)
	check(first)
	early := maps.Clone(all) // what the first kill lost is lost
	second := round(time.Second, syscall.SIGKILL)
	for id := range early {
		delete(all, id)
	}
	lost := check(second)
	round(time.Second, syscall.SIGTERM)
	if n := check(second); n != lost {
		t.Errorf("%d are missing after an orderly end, %d were before", n, lost)
	}
	if left, _ := filepath.Glob(file + "-*"); len(left) > 0 {
		t.Errorf("left behind: %v", left) // nor by those who read it
	}
}

func nearly(a, b float64) bool { return a-b < 1e-9*(1+b) && b-a < 1e-9*(1+b) }
