package main

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestCheckReady asks admin listeners in every state, as a container's health check does, and finds their address where it may stand.
func TestCheckReady(t *testing.T) {
	answer := func(status int, body string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/readyz" {
				t.Errorf("asked for %s", r.URL.Path)
			}
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}))
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	if healthWithin >= 3*time.Second {
		t.Errorf("it may take %v; container engines give a health check 3 s", healthWithin)
	}
	ready := answer(http.StatusOK, `{"status":"ready","models":1}`)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // connects, and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("provider: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(dir, "good.yaml")
	if err := os.WriteFile(good, []byte("admin: \""+ready+"\"\nproviders: {static: [{name: a, base_url: \"http://127.0.0.1:1\"}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args []string
		env  string
		code int
		want string
	}{
		"ready":                          {args: []string{"--admin", ready}, want: "ready"},
		"draining":                       {args: []string{"--admin", answer(http.StatusServiceUnavailable, `{"status":"draining"}`)}, code: 1, want: "not ready: draining"},
		"not a gateway":                  {args: []string{"--admin", answer(http.StatusNotFound, "<html>")}, code: 1, want: "not ready"},
		"silent":                         {args: []string{"--admin", silent.Addr().String()}, code: 1, want: "nothing answers"},
		"address in the config":          {args: []string{"-c", good}, want: "ready"},
		"address in the environment":     {env: ready, want: "ready"},
		"after a bad change to the file": {args: []string{"-c", bad}, env: ready, want: "ready"},
		"off":                            {args: []string{"-c", bad}, env: "off", code: 2, want: "admin: off"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("HEADRACE_ADMIN", tc.env)
			var out bytes.Buffer
			c := root()
			c.SetOut(&out)
			c.SetErr(&out)
			c.SetArgs(append([]string{"check", "--ready"}, tc.args...))
			err := c.ExecuteContext(t.Context())
			code, text := 0, out.String()
			if err != nil {
				code, text = 1, err.Error()
				if ee, ok := errors.AsType[*exitError](err); ok {
					code = ee.code
				}
			}
			if code != tc.code || !strings.Contains(text, tc.want) {
				t.Errorf("code %d, %q; want %d, %q", code, text, tc.code, tc.want)
			}
		})
	}
}
