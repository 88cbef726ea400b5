package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"headrace/gateway/config"
	"headrace/providers/fakecloud"
)

// TestProcess builds the binary, asks a host, gives its config to Headrace and interrupts it.
func TestProcess(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "fakecloud")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(bin, "--hosts", "3", "--time-scale", "0", "--seed", "9", "--class", "h100-mixtral,a100-mixtral", "--fault", "2:error_500,times=1") //nolint:noctx // interrupted below
	var info bytes.Buffer
	cmd.Stderr = &info
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := false
	t.Cleanup(func() {
		if !ended {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	var text strings.Builder
	lines := bufio.NewScanner(stdout)
	for hosts := 0; hosts < 3 && lines.Scan(); {
		text.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "labels:") { // the last line of a host
			hosts++
		}
	}
	file := filepath.Join(dir, "headrace.yaml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file, config.Overrides{}, func(string) (string, bool) { return "", false })
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		t.Fatalf("Headrace does not take the config: %v\n%s", err, text.String())
	}
	if len(cfg.Providers.Static) != 3 {
		t.Fatalf("%d hosts in\n%s", len(cfg.Providers.Static), text.String())
	}
	for i, want := range []int{200, 500, 200} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		model := fakecloud.Draw(9, 3, fakecloud.Classes[4], fakecloud.Classes[1])[i].Class.Model
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, cfg.Providers.Static[i].BaseURL+"/chat/completions",
			strings.NewReader(`{"max_tokens":12,"messages":[{"role":"user","content":"hello"}]}`))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var a struct {
			Choices []struct{ Message struct{ Content string } }
		}
		err = json.NewDecoder(resp.Body).Decode(&a)
		resp.Body.Close()
		if resp.StatusCode != want || want == 200 && (err != nil || a.Choices[0].Message.Content != fakecloud.Answer(model, "hello", 12)) {
			t.Errorf("host %d: %s, %+v, %v", i+1, resp.Status, a, err)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, stdout); err != nil {
		t.Error(err)
	}
	err = cmd.Wait()
	ended = true
	if err != nil {
		t.Errorf("it ended with %v\n%s", err, info.String())
	}
	for _, part := range []string{"runpod-h100-mixtral-1", "vast-h100-mixtral-2", "runpod-a100-mixtral-3", "H100 80GB", "seed 9"} {
		if !strings.Contains(info.String(), part) {
			t.Errorf("no %q in the table:\n%s", part, info.String())
		}
	}
}

func TestTLSAndKey(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // start, print and end
	dir := filepath.Join(t.TempDir(), "ca")
	var out, info bytes.Buffer
	if err := run(ctx, &flags{hosts: 1, key: "k", tls: dir, models: []string{"reasoner"}}, &out, &info); err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatalf("%v in\n%s", err, out.String())
	}
	for _, part := range []string{`api_key: "k"`, "https://127.0.0.1:", dir} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("no %s in\n%s", part, out.String())
		}
	}
	if files, err := filepath.Glob(filepath.Join(dir, "*.pem")); err != nil || len(files) != 1 {
		t.Errorf("CA files %v, %v", files, err)
	}
	if !strings.Contains(info.String(), "reasoner") {
		t.Errorf("the model is not in\n%s", info.String())
	}
}

func TestWrongFlags(t *testing.T) {
	for _, args := range [][]string{
		{"--hosts", "0"},
		{"--port", "70000"},
		{"--port", "65535", "--hosts", "2"},
		{"--time-scale", "-1"},
		{"--time-scale", "NaN"},
		{"--class", "toaster"},
		{"--fault", "sneeze"},
		{"--fault", "9:stall"},
		{"extra"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		c := root()
		c.SetArgs(args)
		c.SetOut(io.Discard)
		c.SetErr(io.Discard)
		if err := c.ExecuteContext(ctx); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}

func TestHelpNamesEveryKind(t *testing.T) {
	for _, k := range fakecloud.Kinds() {
		if !strings.Contains(root().Long, k.String()) {
			t.Errorf("no %s", k)
		}
	}
	for line := range strings.SplitSeq(root().Long, "\n") {
		if len(line) > 110 {
			t.Errorf("a line of %d characters", len(line))
		}
	}
}
