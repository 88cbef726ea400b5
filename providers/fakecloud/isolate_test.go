package fakecloud_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"headrace/providers/fakecloud"
)

func oneHost(t *testing.T, cfg fakecloud.HostConfig) *fakecloud.Host {
	t.Helper()
	h, err := fakecloud.StartHost(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Stop)
	return h
}

func TestMove(t *testing.T) {
	h := oneHost(t, fakecloud.HostConfig{})
	old := h.URL()
	c, err := net.Dial("tcp", strings.TrimPrefix(old, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := h.Wait(t.Context(), func(s fakecloud.Stats) bool { return s.Connections == 1 }); err != nil {
		t.Fatal(err)
	}
	if err := h.Move("127.0.0.2:0"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection to the old address: %v", err)
	}
	if !strings.HasPrefix(h.URL(), "http://127.0.0.2:") {
		t.Errorf("moved to %s", h.URL())
	}
	if status, _, _ := do(t, h, http.MethodGet, "/health", ""); status != 200 {
		t.Errorf("at the new address: %d", status)
	}
	if l, err := net.Listen("tcp", strings.TrimPrefix(old, "http://")); err != nil {
		t.Errorf("the old address is not free: %v", err)
	} else {
		l.Close()
	}
	if s := h.Stats(); s.Accepted < 2 {
		t.Errorf("the books were not kept: %+v", s)
	}
	h.Kill()
	if err := h.Move("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial("tcp", strings.TrimPrefix(h.URL(), "http://")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a host that is down moved and answers: %v", err)
	}
	if err := h.Revive(); err != nil {
		t.Fatal(err)
	}
	if status, _, _ := do(t, h, http.MethodGet, "/health", ""); status != 200 {
		t.Errorf("revived: %d", status)
	}
	h.Stop()
	if h.Move("127.0.0.1:0") == nil || h.Isolate(true) == nil {
		t.Error("a host that was stopped moves")
	}
}

// quiet is how long nothing has to come for it to count as silence.
const quiet = 150 * time.Millisecond

func TestIsolate(t *testing.T) {
	for name, secure := range map[string]bool{"http": false, "https": true} {
		t.Run(name, func(t *testing.T) {
			h := oneHost(t, fakecloud.HostConfig{TLS: secure, Models: []string{model}, TimeScale: 1, TPS: 200, TTFT: time.Millisecond, KeepAlive: 50 * time.Millisecond})
			_, addr, _ := strings.Cut(h.URL(), "://")
			dial := func() net.Conn {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				if secure {
					return tls.Client(c, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // a host of our own
				}
				return c
			}
			c := dial()
			defer c.Close()
			body := chatBody("x", `,"stream":true,"max_tokens":100,"ignore_eos":true`)
			if _, err := io.WriteString(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(c)
			for line := ""; !strings.HasPrefix(line, "data: "); {
				var err error
				if line, err = r.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
			if err := h.Isolate(true); err != nil {
				t.Fatal(err)
			}
			var before []byte
			for { // what is on its way arrives; then nothing does, and it is neither FIN nor RST
				_ = c.SetReadDeadline(time.Now().Add(quiet))
				b, err := r.ReadByte()
				before = append(before, b)
				if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
					break
				}
				if err != nil {
					t.Fatalf("the connection ended: %v", err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), quiet)
			defer cancel()
			d, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			switch {
			case err == nil && runtime.GOOS == "linux":
				t.Error("a new connection was made")
			case err == nil:
				d.Close()
			default:
				if e, ok := errors.AsType[net.Error](err); !ok || !e.Timeout() {
					t.Errorf("a new connection: %v, want a timeout", err)
				}
			}
			if strings.Contains(string(before), "[DONE]") {
				t.Fatalf("the stream ended before the host was cut off: %q", before)
			}
			if err := h.Isolate(false); err != nil {
				t.Fatal(err)
			}
			if !secure { // a TLS connection is unusable after a timeout of the client's
				_ = c.SetReadDeadline(time.Time{})
				rest, err := io.ReadAll(r)
				if err != nil || !strings.Contains(string(rest), "[DONE]") {
					t.Errorf("the stream did not go on to its end: %v, …%q", err, rest[max(0, len(rest)-80):])
				}
			}
			n := dial()
			defer n.Close()
			if _, err := io.WriteString(n, "GET /health HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(n).ReadString('\n'); !strings.Contains(line, " 200 ") {
				t.Errorf("after it: %q %v", line, err)
			}
		})
	}
	t.Run("killed meanwhile", func(t *testing.T) {
		h := oneHost(t, fakecloud.HostConfig{})
		if err := h.Isolate(true); err != nil {
			t.Fatal(err)
		}
		h.Kill()
		if err := h.Revive(); err != nil {
			t.Fatal(err)
		}
		if err := h.Isolate(false); err != nil {
			t.Fatal(err)
		}
		if status, _, _ := do(t, h, http.MethodGet, "/health", ""); status != 200 {
			t.Errorf("status %d", status)
		}
	})
	t.Run("stopped meanwhile", func(t *testing.T) {
		h := oneHost(t, fakecloud.HostConfig{})
		if err := h.Isolate(true); err != nil {
			t.Fatal(err)
		}
		h.Stop()
		if _, err := net.Dial("tcp", strings.TrimPrefix(h.URL(), "http://")); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v", err)
		}
	})
}

func TestWrapAndRedirect(t *testing.T) {
	h := oneHost(t, fakecloud.HostConfig{TLS: true, RedirectPlain: true, Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.TLS == nil {
				w.Header().Set("Location", "https://"+r.Host+r.RequestURI)
				w.WriteHeader(http.StatusPermanentRedirect)
				return
			}
			next.ServeHTTP(w, r)
		})
	}})
	client := &http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, //nolint:gosec // a host of our own
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	defer client.CloseIdleConnections()
	plain := strings.Replace(h.URL(), "https:", "http:", 1)
	for url, want := range map[string]int{h.URL() + "/health": 200, plain + "/health": 308} {
		resp, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", url, resp.StatusCode, want)
		}
		if want == 308 && resp.Header.Get("Location") != h.URL()+"/health" {
			t.Errorf("sent to %s", resp.Header.Get("Location"))
		}
	}
	if s := h.Stats(); s.Requests != 1 {
		t.Errorf("what the wrapper answers is in the books: %+v", s)
	}
	silent, err := net.Dial("tcp", strings.TrimPrefix(plain, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	h.Kill() // must not wait for one that never spoke
}
