package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"headrace/gateway/config"
	"headrace/providers/fakecloud"
)

// logBuffer collects a log and tells when a line has come.
type logBuffer struct {
	mu   sync.Mutex // guards buf
	buf  bytes.Buffer
	news chan struct{}
}

func newLogBuffer() *logBuffer { return &logBuffer{news: make(chan struct{}, 1)} }

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.news <- struct{}{}:
	default:
	}
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// await waits until the log holds text, n times.
func (l *logBuffer) await(t *testing.T, text string, n int) {
	t.Helper()
	deadline := time.After(patience)
	for strings.Count(l.String(), text) < n {
		select {
		case <-l.news:
		case <-deadline:
			t.Fatalf("log does not say %q %d times:\n%s", text, n, l)
		}
	}
}

func noEnv(string) (string, bool) { return "", false }

// startHost starts a fake host that answers at once.
func startHost(t *testing.T, cfg fakecloud.HostConfig) *fakecloud.Host {
	t.Helper()
	h, err := fakecloud.StartHost(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Stop)
	return h
}

// running is a gateway of a config file.
type running struct {
	app  *app
	file string
	log  *logBuffer
	base string
	stop func() error
}

func startApp(t *testing.T, dir, yaml string, hup <-chan os.Signal, given ...net.Listener) *running {
	t.Helper()
	r := &running{file: filepath.Join(dir, "headrace.yaml"), log: newLogBuffer()}
	r.write(t, yaml)
	read := func() (*config.Config, error) { return config.Load(r.file, config.Overrides{}, noEnv) }
	cfg, err := read()
	if err != nil {
		t.Fatal(err)
	}
	if r.app, err = newApp(cfg, r.log, given...); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- r.app.run(ctx, reloadOn(ctx, hup, cfg, read)) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	r.base = "http://" + r.app.listeners[0].Addr().String()
	if err := r.app.waitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *running) write(t *testing.T, yaml string) {
	t.Helper()
	tmp := r.file + ".new"
	if err := os.WriteFile(tmp, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, r.file); err != nil { // as editors do
		t.Fatal(err)
	}
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	res, err := http.Get(url) //nolint:gosec,noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func ask(t *testing.T, client *http.Client, base, model, prompt string, tokens int) (status int, text string) {
	t.Helper()
	body := fmt.Sprintf(`{"model":%q,"max_tokens":%d,"messages":[{"role":"user","content":%q}]}`, model, tokens, prompt)
	res, err := client.Post(base+"/v1/chat/completions", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var out struct {
		Choices []struct {
			Message struct {
				Content string `json:"content"`
			} `json:"message"`
		} `json:"choices"`
		Error struct {
			Code string `json:"code"`
		} `json:"error"`
	}
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
		t.Fatal(err)
	}
	if len(out.Choices) > 0 {
		return res.StatusCode, out.Choices[0].Message.Content
	}
	return res.StatusCode, out.Error.Code
}

const appYAML = `
listen: "127.0.0.1:0"
admin: "127.0.0.1:0"
providers:
  static:
    - {name: a, base_url: %q, price: {usd_per_hour: 1.8}}
`

func TestReload(t *testing.T) {
	t.Parallel()
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}})
	hup := make(chan os.Signal)
	yaml := fmt.Sprintf(appYAML, h.URL()+"/v1")
	r := startApp(t, t.TempDir(), yaml, hup)
	admin := "http://" + r.app.admin.Addr().String()

	// Requests run all the time: none may be dropped by what follows.
	var failures, requests atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				if status, _ := ask(t, http.DefaultClient, r.base, "m", "hello", 5); status != 200 {
					failures.Add(1)
				}
				requests.Add(1)
			}
		})
	}

	r.write(t, yaml+"log: {level: info}\nmodels: {m: {serves: [m]}, alias: {serves: [m]}}\n")
	r.log.await(t, "config reloaded", 1)
	if status, text := ask(t, http.DefaultClient, r.base, "alias", "hello", 5); status != 200 || text != fakecloud.Answer("m", "hello", 5) {
		t.Errorf("alias after the reload: %d %q", status, text)
	}

	r.write(t, yaml+"modles: {}\n")
	r.log.await(t, "config not reloaded", 1)
	if status, _ := ask(t, http.DefaultClient, r.base, "alias", "hello", 5); status != 200 {
		t.Errorf("a bad file changed what is served: %d", status)
	}
	if _, body := get(t, admin+"/admin/v1/status"); !strings.Contains(body, `"ok":false`) || !strings.Contains(body, `did you mean`) {
		t.Errorf("status does not show the failed reload: %s", body)
	}

	ca := filepath.Join(filepath.Dir(r.file), "ca.pem")
	if err := os.WriteFile(ca, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.write(t, yaml+"    - {name: b, base_url: \"https://127.0.0.1:1/v1\", tls: {ca: ca.pem}}\n")
	r.log.await(t, "config not reloaded", 2)

	r.write(t, yaml)
	r.log.await(t, "config reloaded", 2)
	hup <- syscall.SIGHUP
	r.log.await(t, "config reloaded", 3)
	if status, code := ask(t, http.DefaultClient, r.base, "alias", "hello", 5); status != 404 || code != "model_not_found" {
		t.Errorf("alias after it was taken out: %d %s", status, code)
	}
	cancel()
	load.Wait()
	if failures.Load() != 0 || requests.Load() == 0 {
		t.Errorf("%d of %d requests failed during reloads", failures.Load(), requests.Load())
	}
}

// A file that moves to loopback and names no keys any more is fine for the next start: until then the addresses that everybody can reach
// stay in use, and so do the keys.
func TestReloadOpensNothing(t *testing.T) {
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}})
	const keys = "keys: [{name: k, key: 0123456789-0123456789, admin: true}]\n"
	hosts := fmt.Sprintf("providers: {static: [{name: a, base_url: %q}]}\n", h.URL()+"/v1")
	r := startApp(t, t.TempDir(), "listen: 0.0.0.0:0\nadmin: 0.0.0.0:0\n"+keys+hosts, nil)
	closed := func(when string) {
		t.Helper()
		for _, url := range []string{
			"http://" + reachable(r.app.listeners[0].Addr()) + "/v1/models", "http://" + reachable(r.app.admin.Addr()) + "/admin/v1/status",
		} {
			if status, body := get(t, url); status != 401 {
				t.Errorf("%s: %s without a key: %d %s", when, url, status, body)
			}
		}
	}
	closed("before")
	failed := 0
	for _, tc := range []struct{ yaml, want string }{
		{"listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\n", "listen: leaves"},
		{"listen: 127.0.0.1:0\nadmin: \"off\"\nrequire_key: true\n", "admin: leaves"},
	} {
		r.write(t, tc.yaml+hosts)
		failed++
		r.log.await(t, "config not reloaded", failed)
		closed("after")
		if s := r.app.reloadStatus(); s.OK || !strings.Contains(s.Error, tc.want) || !strings.Contains(s.Error, "headrace.yaml:") {
			t.Errorf("want %q, got %q", tc.want, s.Error)
		}
	}
	r.write(t, "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nallow_unauthenticated: true\n"+hosts)
	r.log.await(t, "config reloaded", 1)
}

func TestAdmin(t *testing.T) {
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}, APIKey: "sk-upstream-secret"})
	yaml := strings.Replace(fmt.Sprintf(appYAML, h.URL()+"/v1"), "name: a,", `name: a, api_key: "sk-upstream-secret",`, 1)
	r := startApp(t, t.TempDir(), yaml, nil)
	admin := "http://" + r.app.admin.Addr().String()
	if status, _ := ask(t, http.DefaultClient, r.base, "m", "hello", 5); status != 200 {
		t.Fatalf("status %d", status)
	}
	for path, want := range map[string]string{
		"/livez":                          `"alive"`,
		"/readyz":                         `"ready"`,
		"/admin/v1/hosts":                 `"static:a"`,
		"/admin/v1/requests?n=1&model=m":  `"output_tokens":5`,
		"/admin/v1/requests?model=nosuch": `"requests":[]`,
		"/admin/v1/status":                `"requests_total"`,
	} {
		status, body := get(t, admin+path)
		if status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d, want %s in %s", path, status, want, body)
		}
		if strings.Contains(body, "upstream-secret") {
			t.Errorf("%s shows the host's key", path)
		}
	}
	if status, body := get(t, admin+"/admin/v1/requests?n=zero"); status != 400 || !strings.Contains(body, "invalid_n") {
		t.Errorf("bad n: %d %s", status, body)
	}
	if status, body := get(t, admin+"/nosuch"); status != 404 || !strings.Contains(body, "unknown_url") {
		t.Errorf("unknown path: %d %s", status, body)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if strings.Contains(r.log.String(), "upstream-secret") {
		t.Error("the log shows the host's key")
	}
}

func TestCertificateReload(t *testing.T) {
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}})
	dir := t.TempDir()
	cert := func(n int64) {
		c, k := selfSigned(t, n)
		for name, b := range map[string][]byte{"key.pem": k, "cert.pem": c} {
			if err := os.WriteFile(filepath.Join(dir, name+".new"), b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(dir, name+".new"), filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	cert(1)
	hup := make(chan os.Signal)
	r := startApp(t, dir, strings.Replace(fmt.Sprintf(appYAML, h.URL()+"/v1"),
		`listen: "127.0.0.1:0"`, `listen: {address: "127.0.0.1:0", tls: {cert: cert.pem, key: key.pem}}`, 1), hup)
	serial := func() int64 {
		c, err := tls.Dial("tcp", r.app.listeners[0].Addr().String(), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the serial is what is looked at
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if got := serial(); got != 1 {
		t.Fatalf("serial %d, want 1", got)
	}
	cert(2)
	hup <- syscall.SIGHUP
	r.log.await(t, "config reloaded", 1)
	if got := serial(); got != 2 {
		t.Errorf("serial %d after the reload, want 2", got)
	}
}

// TestBinary runs the program as a person does.
func TestBinary(t *testing.T) {
	t.Parallel()
	bin := filepath.Join(t.TempDir(), "headrace")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	run := func(args ...string) (code int, out string) {
		cmd := exec.CommandContext(t.Context(), bin, args...)
		cmd.Dir = t.TempDir()
		b, err := cmd.CombinedOutput()
		if _, isExit := err.(*exec.ExitError); err != nil && !isExit { //nolint:errorlint // as it comes from CombinedOutput
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), string(b)
	}
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("providers:\n  static:\n    - {name: a, bas_url: x}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	redis := filepath.Join(t.TempDir(), "redis.yaml")
	if err := os.WriteFile(redis, []byte("state: {redis: \"redis:/s3cret\"}\nproviders: {static: [{name: a, base_url: \"http://127.0.0.1:1/v1\"}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args []string
		code int
		want []string
	}{
		"no redis":         {[]string{"check", "-c", redis}, 2, []string{"state.redis is no address", "redis+sentinel://"}},
		"help":             {[]string{"--help"}, 0, []string{"serve", "demo", "check", "OpenAI base URL"}},
		"version":          {[]string{"version", "-o", "json"}, 0, []string{`"version"`, `"go":"go`}},
		"bad config":       {[]string{"check", "-c", bad}, 2, []string{`bad.yaml:3:17`, `did you mean "base_url"`}},
		"bad config serve": {[]string{"serve", "-c", bad}, 2, []string{`did you mean "base_url"`}},
		"no config":        {[]string{"serve"}, 2, []string{"no host is configured", "base_url:"}},
		"no file":          {[]string{"serve", "-c", "nosuch.yaml"}, 2, []string{"nosuch.yaml", "cannot be read"}},
		"not ready":        {[]string{"check", "--ready", "--admin", "127.0.0.1:1"}, 1, []string{"not ready"}},
		"unknown command":  {[]string{"serv"}, 1, []string{"Did you mean", "serve"}},
		"schema":           {[]string{"schema"}, 0, []string{`"$schema"`, "usd_per_hour"}},
		"demo":             {[]string{"demo", "--for", "4s", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"}, 0, []string{"first token after", "vast:20000001", "curl -N", "Stopped after"}},
		"completion":       {[]string{"completion", "bash"}, 0, []string{"headrace"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, out := run(tc.args...)
			if code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			for _, w := range tc.want {
				if !strings.Contains(out, w) {
					t.Errorf("output lacks %q:\n%s", w, out)
				}
			}
		})
	}
}
