package fakecloud_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"headrace/providers/fakecloud"
)

const model = "llama"

// start starts a host that the test's end stops. It serves "llama" unless told otherwise.
func start(t *testing.T, cfg fakecloud.HostConfig) *fakecloud.Host {
	t.Helper()
	if cfg.Models == nil {
		cfg.Models = []string{model}
	}
	h, err := fakecloud.StartHost(context.Background(), cfg) //nolint:usetesting // Cleanup stops it; the test's context ends before
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Stop)
	return h
}

// wait waits for the books of h.
func wait(t *testing.T, h *fakecloud.Host, done func(fakecloud.Stats) bool) fakecloud.Stats {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := h.Wait(ctx, done); err != nil {
		t.Fatal(err)
	}
	return h.Stats()
}

// balanced checks that every generation has one outcome or is under way.
func balanced(t *testing.T, s fakecloud.Stats) {
	t.Helper()
	if s.Generations != s.Waiting+s.Running+s.Completed+s.Aborted+s.Failed || s.Waiting < 0 || s.Running < 0 {
		t.Errorf("the books do not add up: %+v", s)
	}
}

// do sends a request and returns the status, the body and the head.
func do(t *testing.T, h *fakecloud.Host, method, path, body string, header ...string) (int, []byte, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, h.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, b, resp.Header
}

// ask posts body and decodes a 200 answer into v.
func ask(t *testing.T, h *fakecloud.Host, path, body string, v any) {
	t.Helper()
	status, b, _ := do(t, h, http.MethodPost, path, body)
	if status != http.StatusOK {
		t.Fatalf("POST %s %s: %d %s", path, body, status, b)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
}

// event is one server-sent event.
type event struct{ name, data string }

// events reads a stream of plain events.
func events(t *testing.T, body []byte) (all []event) {
	t.Helper()
	var e event
	s := bufio.NewScanner(bytes.NewReader(body))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		switch line := s.Text(); {
		case line == "":
			all = append(all, e)
			e = event{}
		case strings.HasPrefix(line, "event: "):
			e.name = line[7:]
		case strings.HasPrefix(line, "data: "):
			e.data += line[6:]
		default:
			t.Fatalf("line %q", line)
		}
	}
	return all
}

// chunk is what tests read of a chat chunk.
type chunk struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Model   string `json:"model"`
	Choices []struct {
		Index int `json:"index"`
		Delta struct {
			Role      *string `json:"role"`
			Content   *string `json:"content"`
			Reasoning *string `json:"reasoning_content"`
		} `json:"delta"`
		Finish *string `json:"finish_reason"`
	} `json:"choices"`
	Usage *struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
		Total      int `json:"total_tokens"`
	} `json:"usage"`
}

// chunks decodes a chat stream and checks that it ends in [DONE].
func chunks(t *testing.T, body []byte) (all []chunk) {
	t.Helper()
	es := events(t, body)
	if len(es) == 0 || es[len(es)-1].data != "[DONE]" {
		t.Fatalf("no [DONE] at the end of %q", body)
	}
	for _, e := range es[:len(es)-1] {
		var c chunk
		if err := json.Unmarshal([]byte(e.data), &c); err != nil {
			t.Fatalf("%v in %q", err, e.data)
		}
		all = append(all, c)
	}
	return all
}

func chatBody(prompt, more string) string {
	b, err := json.Marshal(prompt)
	if err != nil {
		panic(err)
	}
	return `{"model":"` + model + `","messages":[{"role":"user","content":` + string(b) + `}]` + more + `}`
}

// noLeak fails when goroutines are left over from f.
func noLeak(t *testing.T, f func()) {
	t.Helper()
	before := runtime.NumGoroutine()
	f()
	limit := time.NewTimer(5 * time.Second)
	defer limit.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for runtime.NumGoroutine() > before {
		select {
		case <-tick.C:
		case <-limit.C:
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}
