package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// envReader takes what the command prints, and tells when all variables are there.
type envReader struct {
	buf  bytes.Buffer
	done chan struct{}
}

func (e *envReader) Write(p []byte) (int, error) {
	n, err := e.buf.Write(p)
	close(e.done) // it is printed at once
	return n, err
}

// cloudsEnv runs the command until it has printed where the clouds are.
func cloudsEnv(t *testing.T, args ...string) (env map[string]string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out := &envReader{done: make(chan struct{})}
	c := root()
	c.SetArgs(args)
	c.SetOut(out)
	c.SetErr(io.Discard)
	ended := make(chan error, 1)
	go func() { ended <- c.ExecuteContext(ctx) }()
	select {
	case <-out.done:
	case err := <-ended:
		cancel()
		t.Fatalf("%q ended: %v", args, err)
	}
	env = map[string]string{}
	for line := range strings.Lines(out.buf.String()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		env[name] = value
	}
	return env, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%q ended with %v", args, err)
		}
	}
}

// listed asks an API for a list and returns how long it is.
func listed(t *testing.T, url, key, member string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var body map[string]json.RawMessage
	var list []json.RawMessage
	if err := json.NewDecoder(res.Body).Decode(&body); err != nil || res.StatusCode != http.StatusOK || json.Unmarshal(body[member], &list) != nil {
		t.Fatalf("%s: status %d, %v, %s", url, res.StatusCode, err, body)
	}
	return len(list)
}

func TestClouds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	if err := os.WriteFile(file, []byte(example), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"small fleet":         {"--runpod", "--vast", "--seed", "1"},
		"script of the help":  {"--script", file},
		"vast alone, quicker": {"--vast", "--time-scale", "100"},
	} {
		t.Run(name, func(t *testing.T) {
			env, stop := cloudsEnv(t, args...)
			defer stop()
			if n := listed(t, env["VAST_CONSOLE_URL"]+"/api/v1/instances/", env["VAST_API_KEY"], "instances"); n == 0 {
				t.Error("no instance")
			}
			if args[0] == "--vast" {
				if env["RUNPOD_API_KEY"] != "" {
					t.Error("there is a RunPod nobody asked for")
				}
				return
			}
			if n := listed(t, env["RUNPOD_MANAGEMENT_URL"]+"/serverless", env["RUNPOD_API_KEY"], "endpoints"); n == 0 {
				t.Error("no endpoint")
			}
		})
	}
}

func TestBadClouds(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("vast:\n  instances:\n    - {name: a, colour: red}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"--runpod", "--script", bad}, "leave --runpod and --vast out"},
		{[]string{"--vast", "--hosts", "3"}, "--hosts is for plain hosts"},
		{[]string{"--vast", "--time-scale", "0"}, "want more than 0"},
		{[]string{"--script", bad}, bad + ":3"},
		{[]string{"--script", bad + ".none"}, "no such file"},
	} {
		c := root()
		c.SetArgs(tc.args)
		c.SetOut(io.Discard)
		c.SetErr(io.Discard)
		if err := c.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: got %v, want %q", tc.args, err, tc.want)
		}
	}
}
