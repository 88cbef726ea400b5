package fakerunpod_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakerunpod"
)

const model = "llama"

// start starts a cloud that the test's end stops.
func start(t *testing.T, cfg fakerunpod.Config) *fakerunpod.Cloud {
	t.Helper()
	c, err := fakerunpod.Start(context.Background(), cfg) //nolint:usetesting // Cleanup stops it; the test's context ends before
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	return c
}

// one starts a cloud with one endpoint that serves "llama" unless told otherwise.
func one(t *testing.T, cfg fakerunpod.Config, ec fakerunpod.EndpointConfig) (*fakerunpod.Cloud, *fakerunpod.Endpoint) {
	t.Helper()
	if ec.Models == nil && ec.Env == nil {
		ec.Models = []string{model}
	}
	c := start(t, cfg)
	return c, c.AddEndpoint(ec)
}

type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // the body broke off
}

// send sends a request with the account's key, unless header sets another.
func send(t *testing.T, c *fakerunpod.Cloud, method, url, body string, header ...string) (answer, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.Key())
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	a.body, a.err = io.ReadAll(resp.Body)
	return a, nil
}

func do(t *testing.T, c *fakerunpod.Cloud, method, url, body string, header ...string) answer {
	t.Helper()
	a, err := send(t, c, method, url, body, header...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return a
}

// is checks a whole answer.
func (a answer) is(t *testing.T, status int, body string) {
	t.Helper()
	if a.status != status || string(a.body) != body {
		t.Errorf("got %d %s, want %d %s", a.status, a.body, status, body)
	}
}

// job is what the queue API tells of one.
type job struct {
	ID        string `json:"id"`
	Status    string `json:"status"`
	Worker    string `json:"workerId"`
	Delay     *int64 `json:"delayTime"`
	Execution *int64 `json:"executionTime"`
	Retries   int    `json:"retries"`
	Error     string `json:"error"`
	Output    any    `json:"output"`
	Stream    []struct {
		Output json.RawMessage `json:"output"`
	} `json:"stream"`
}

func (a answer) job(t *testing.T) (j job) {
	t.Helper()
	if err := json.Unmarshal(a.body, &j); err != nil || a.status != http.StatusOK {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	return j
}

// api calls the queue API of e.
func api(t *testing.T, c *fakerunpod.Cloud, e *fakerunpod.Endpoint, method, op, body string) answer {
	t.Helper()
	return do(t, c, method, c.QueueURL()+"/"+e.ID()+"/"+op, body)
}

func chat(stream bool, tokens int) string {
	b, _ := json.Marshal(map[string]any{ //nolint:errchkjson // nothing that could fail
		"model": model, "stream": stream, "max_tokens": tokens, "messages": []map[string]string{{"role": "user", "content": "tell me"}},
	})
	return string(b)
}

func openAIJob(body string) string {
	return `{"input":{"openai_route":"/v1/chat/completions","openai_input":` + body + `}}`
}

// run sends a job and returns its id.
func run(t *testing.T, c *fakerunpod.Cloud, e *fakerunpod.Endpoint, body string) string {
	t.Helper()
	j := api(t, c, e, "POST", "run", body).job(t)
	if j.Status != "IN_QUEUE" || !strings.HasSuffix(j.ID, "-u1") {
		t.Fatalf("run answered %+v", j)
	}
	return j.ID
}

// follow reads a job's stream until it is terminal and empty.
func follow(t *testing.T, c *fakerunpod.Cloud, e *fakerunpod.Endpoint, id string) (yields []json.RawMessage, last string) {
	t.Helper()
	for {
		j := api(t, c, e, "GET", "stream/"+id, "").job(t)
		for _, s := range j.Stream {
			yields = append(yields, s.Output)
		}
		if len(j.Stream) == 0 && j.Status != "IN_QUEUE" && j.Status != "IN_PROGRESS" {
			return yields, j.Status
		}
	}
}

// end waits for a job's end and returns it.
func end(t *testing.T, c *fakerunpod.Cloud, e *fakerunpod.Endpoint, id string) job {
	t.Helper()
	for range 100 {
		if j := api(t, c, e, "GET", "status-sync/"+id, "").job(t); j.Status != "IN_QUEUE" && j.Status != "IN_PROGRESS" {
			return j
		}
	}
	t.Fatalf("job %s does not end", id)
	return job{}
}

// wait waits for an endpoint's books.
func wait(t *testing.T, e *fakerunpod.Endpoint, done func(fakerunpod.Stats) bool) fakerunpod.Stats {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := e.Wait(ctx, done); err != nil {
		t.Fatal(err)
	}
	return e.Stats()
}

// joined is what a list of string yields makes together.
func joined(t *testing.T, yields []json.RawMessage) string {
	t.Helper()
	var b strings.Builder
	for _, y := range yields {
		var s string
		if err := json.Unmarshal(y, &s); err != nil {
			t.Fatalf("yield %s is no string", y)
		}
		b.WriteString(s)
	}
	return b.String()
}

// content is the text of a stream of chat chunks, whose JSON may span several data lines.
func content(t *testing.T, sse string) string {
	t.Helper()
	var b strings.Builder
	for event := range strings.SplitSeq(sse, "\n\n") {
		var data []string
		for line := range strings.SplitSeq(event, "\n") {
			if d, ok := strings.CutPrefix(line, "data: "); ok {
				data = append(data, d)
			}
		}
		if len(data) == 0 || data[0] == "[DONE]" {
			continue
		}
		b.WriteString(deltas(t, []byte(strings.Join(data, "\n"))))
	}
	return b.String()
}

func deltas(t *testing.T, chunk []byte) (s string) {
	t.Helper()
	var c struct {
		Choices []struct {
			Delta struct {
				Content string `json:"content"`
			} `json:"delta"`
		} `json:"choices"`
	}
	if err := json.Unmarshal(chunk, &c); err != nil {
		t.Fatalf("%v in %s", err, chunk)
	}
	for _, ch := range c.Choices {
		s += ch.Delta.Content
	}
	return s
}

func said(tokens int) string { return fakecloud.Answer(model, "tell me", tokens) }

func decoded(t *testing.T, b []byte) (m map[string]any) {
	t.Helper()
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&m); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return m
}

// health is /health of e.
type health struct {
	Jobs    struct{ Completed, Failed, InProgress, InQueue, Retried int }
	Workers struct{ Idle, Initializing, Ready, Running, Throttled, Unhealthy int }
}

func healthOf(t *testing.T, c *fakerunpod.Cloud, e *fakerunpod.Endpoint) (h health) {
	t.Helper()
	if err := json.Unmarshal(api(t, c, e, "GET", "health", "").body, &h); err != nil {
		t.Fatal(err)
	}
	return h
}
