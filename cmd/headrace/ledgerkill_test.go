package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
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
	"headrace/gateway/state/redistest"
	"headrace/providers/fakecloud"
	"headrace/router/outcome"
)

// heard is what a caller learned of its own request.
type heard struct {
	prompt, output int64     // by the answer's usage
	settled        time.Time // by then the gateway was through with it; zero where that is not known
}

// askUntil asks for plain answers until it is told to stop, and tells what it learned by request id. All requests go over one connection,
// so that the gateway was through with one when the next one's answer came: then note is called for it once more.
func askUntil(ctx context.Context, base string, tokens int, note func(id string, a heard)) {
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	var before heard
	var beforeID string
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
			if beforeID != "" {
				before.settled = time.Now()
				note(beforeID, before)
			}
			beforeID, before = res.Header.Get("X-Request-Id"), heard{prompt: a.Usage.Prompt, output: a.Usage.Output}
			note(beforeID, before)
		}
	}
}

// TestLedgerSurvivesKill kills a gateway in the middle of its work, starts it again, and finds every request in the ledger that was
// settled before the last write, each once, and sums that are those of the requests.
func TestLedgerSurvivesKill(t *testing.T) {
	if underRace {
		t.Skip("the program that is killed has no race detector in it")
	}
	const flush = 100 * time.Millisecond
	dir := t.TempDir()
	bin, file, conf := filepath.Join(dir, "headrace"), filepath.Join(dir, "ledger.db"), filepath.Join(dir, "headrace.yaml")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}})
	listen := redistest.Address(t)
	yaml := fmt.Sprintf("listen: %q\nadmin: \"off\"\nlog: {access: false}\nledger: {path: %q, flush: %v}\nproviders:\n  static:\n    - {name: a, base_url: %q, models: [m], price: {usd_per_mtok: {in: 1, out: 2}}}\n",
		listen, file, flush, h.URL()+"/v1")
	if err := os.WriteFile(conf, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // guards all
	all := map[string]heard{}
	answers := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(all)
	}
	written := func() (requests int64, at time.Time) {
		p, err := books.Read(file, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
		if err != nil {
			return 0, at // it is not there yet
		}
		for _, r := range p.Runs {
			if r.To.After(at) {
				at = r.To
			}
		}
		return p.Report(nil, nil).Total.N[books.Requests], at
	}
	// round runs the gateway until it has answered and written a good deal, and ends it by a signal.
	round := func(sig syscall.Signal) {
		cmd := exec.Command(bin, "serve", "-c", conf) //nolint:noctx // ended by a signal
		cmd.Env = append(os.Environ(), "HEADRACE_STATE_DIR=off")
		log := newLogBuffer()
		cmd.Stderr = log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		log.await(t, "listening", 1)
		had, began := answers(), time.Now()
		stored, _ := written()
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
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for late := time.After(time.Minute); ; {
			if n, at := written(); n >= stored+200 && at.After(began) && answers() >= had+200 {
				break
			}
			select {
			case <-tick.C:
			case <-late:
				n, at := written()
				_ = cmd.Process.Kill()
				t.Fatalf("after a minute %d answers, %d requests written, the last at %v:\n%s", answers()-had, n-stored, at, log)
			}
		}
		if sig != syscall.SIGKILL { // else amid the work
			cancel()
			wg.Wait()
		}
		_ = cmd.Process.Signal(sig)
		err := cmd.Wait()
		cancel()
		wg.Wait()
		if sig == syscall.SIGTERM && err != nil {
			t.Errorf("ended with %v:\n%s", err, log)
		}
	}
	// check compares the file with what callers know, and returns how many are missing. Last is the last write before the kill.
	check := func(last time.Time) (missing int) {
		t.Helper()
		seen := map[string]bool{}
		var prompt, output, inVainPrompt, inVainOutput int64
		if err := books.Each(file, func(r *ledger.Record) bool {
			if seen[r.ID] {
				t.Errorf("%s is there twice", r.ID)
			}
			seen[r.ID] = true
			if a, known := all[r.ID]; known && (a.prompt != r.Prompt || a.output != r.Output) {
				t.Errorf("%s: %d and %d tokens, its caller was told %d and %d", r.ID, r.Prompt, r.Output, a.prompt, a.output)
			}
			if r.Class == outcome.ClientGone && r.Left != ledger.Streaming { // the caller was cut off before it had what there was
				for i := range r.Attempts {
					inVainPrompt, inVainOutput = inVainPrompt+r.Attempts[i].Prompt, inVainOutput+max(0, r.Attempts[i].Output)
				}
			} else {
				prompt, output = prompt+max(0, r.Prompt), output+max(0, r.Output)
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		for id, a := range all {
			if seen[id] {
				continue
			}
			if missing++; !a.settled.IsZero() && a.settled.Before(last) {
				t.Errorf("%s was settled %v before the last write and is not in the ledger", id, last.Sub(a.settled))
			}
		}
		p, err := books.Read(file, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		sum := p.Report(nil, nil).Total
		n := sum.N
		if got, want := [...]int64{n[books.Requests], n[books.PromptTokens], n[books.OutputTokens], n[books.WastedPrompt], n[books.WastedOutput]},
			[...]int64{int64(len(seen)), prompt, output, inVainPrompt, inVainOutput}; got != want {
			t.Errorf("sums of requests, tokens and tokens in vain are %v; the requests themselves come to %v", got, want)
		}
		// Of requests that were cut off with their callers the cost may be an estimate.
		if usd := float64(prompt+inVainPrompt)*1e-6 + float64(output+inVainOutput)*2e-6; !nearly(sum.Used(), usd) {
			t.Errorf("$%v; the tokens come to $%v", sum.Used(), usd)
		}
		t.Logf("%d requests answered, %d in the ledger, %d of those answered missing, %d tokens in vain", len(all), len(seen), missing, inVainPrompt+inVainOutput)
		return missing
	}
	round(syscall.SIGKILL)
	_, last := written()
	check(last)
	early := maps.Clone(all) // what the first kill lost is lost
	round(syscall.SIGKILL)
	for id := range early {
		delete(all, id)
	}
	_, last = written()
	lost := check(last)
	round(syscall.SIGTERM)
	if n := check(last); n != lost {
		t.Errorf("%d are missing after an orderly end, %d were before", n, lost)
	}
	if left, _ := filepath.Glob(file + "-*"); len(left) > 0 {
		t.Errorf("left behind: %v", left) // nor by those who read it
	}
}

func nearly(a, b float64) bool { return a-b < 1e-9*(1+b) && b-a < 1e-9*(1+b) }
