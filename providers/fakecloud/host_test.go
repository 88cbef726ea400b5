package fakecloud_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"headrace/providers/fakecloud"
	"headrace/router/endpoint"
)

// slow is a host with about 3 s to the first token and 40 tokens a second.
func slow() fakecloud.HostConfig {
	return fakecloud.HostConfig{TimeScale: 1, TPS: 40, TTFT: 3 * time.Second}
}

// running is a host that makes its first token soon, and goes on for minutes.
func running() fakecloud.HostConfig {
	return fakecloud.HostConfig{TimeScale: 1, TPS: 40, TTFT: time.Millisecond}
}

// open sends a request in the background that ctx ends.
func open(ctx context.Context, t *testing.T, h *fakecloud.Host, body string) (finished <-chan error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL()+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan error, 1)
	go func() {
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			err = errors.Join(err, resp.Body.Close())
		}
		out <- err
	}()
	return out
}

// TestAbortIsNoticedAtOnce measures from the client's leaving to the free place in the batch.
func TestAbortIsNoticedAtOnce(t *testing.T) {
	const limit = 50 * time.Millisecond
	for name, tc := range map[string]struct {
		cfg   fakecloud.HostConfig
		more  string
		ready func(fakecloud.Stats) bool
		fault fakecloud.Kind
	}{
		"before the first token":       {slow(), `,"stream":true,"max_tokens":4000`, func(s fakecloud.Stats) bool { return s.Running == 1 }, 0},
		"in the stream":                {running(), `,"stream":true,"max_tokens":4000`, func(s fakecloud.Stats) bool { return s.OutputTokens > 2 }, 0},
		"without a stream":             {running(), `,"max_tokens":4000`, func(s fakecloud.Stats) bool { return s.OutputTokens > 2 }, 0},
		"while the stream stands":      {running(), `,"stream":true,"max_tokens":4000`, func(s fakecloud.Stats) bool { return s.OutputTokens == 5 }, fakecloud.Stall},
		"on a connection of the fault": {running(), `,"stream":true,"max_tokens":4000`, func(s fakecloud.Stats) bool { return s.OutputTokens > 2 }, fakecloud.Interim},
	} {
		t.Run(name, func(t *testing.T) {
			h := start(t, tc.cfg)
			if tc.fault != 0 {
				if err := h.SetFaults(fakecloud.Fault{Kind: tc.fault, After: 5}); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			finished := open(ctx, t, h, chatBody("x", tc.more))
			wait(t, h, tc.ready)
			left := time.Now()
			cancel()
			s := wait(t, h, func(s fakecloud.Stats) bool { return s.Aborted == 1 })
			if err := <-finished; !errors.Is(err, context.Canceled) {
				t.Errorf("the client ended with %v", err)
			}
			balanced(t, s)
			a := s.Aborts[0]
			if d := a.Freed.Sub(left); d > limit || s.Running != 0 || a.Freed.Before(a.Seen) || a.Path != "/v1/chat/completions" {
				t.Errorf("free %v after the client left: %+v", d, a)
			}
			if a.Tokens != s.OutputTokens {
				t.Errorf("%d tokens in vain, %d made", a.Tokens, s.OutputTokens)
			}
			t.Logf("seen after %v, free after %v", a.Seen.Sub(left), a.Freed.Sub(left))
		})
	}
}

func TestAbortWhileWaiting(t *testing.T) {
	cfg := slow()
	cfg.MaxNumSeqs = 1
	h := start(t, cfg)
	first, leaveFirst := context.WithCancel(t.Context())
	second, leaveSecond := context.WithCancel(t.Context())
	one := open(first, t, h, chatBody("x", ""))
	wait(t, h, func(s fakecloud.Stats) bool { return s.Running == 1 })
	two := open(second, t, h, chatBody("x", ""))
	wait(t, h, func(s fakecloud.Stats) bool { return s.Waiting == 1 })
	leaveSecond()
	s := wait(t, h, func(s fakecloud.Stats) bool { return s.Aborted == 1 })
	if s.Waiting != 0 || s.Running != 1 {
		t.Errorf("books %+v", s)
	}
	leaveFirst()
	balanced(t, wait(t, h, func(s fakecloud.Stats) bool { return s.Aborted == 2 && s.Running == 0 }))
	<-one
	<-two
}

// TestSpeed runs a host at fifty times its speed and compares what a client sees with the engine's law.
func TestSpeed(t *testing.T) {
	const scale, tokens = 50, 400
	h := start(t, fakecloud.HostConfig{TimeScale: scale, TPS: 40, TTFT: 500 * time.Millisecond})
	began := time.Now()
	status, _, _ := do(t, h, http.MethodPost, "/v1/chat/completions", chatBody("x", `,"stream":true,"max_tokens":400`))
	took := time.Since(began)
	want := (500*time.Millisecond + (tokens-1)*time.Second/40) / scale
	if status != 200 || took < want || took > scale*want {
		t.Errorf("status %d after %v, want 200 after %v", status, took, want)
	}
}

func TestKillAndRevive(t *testing.T) {
	noLeak(t, func() {
		h := start(t, running())
		url := h.URL()
		finished := open(t.Context(), t, h, chatBody("x", `,"stream":true,"max_tokens":4000`))
		wait(t, h, func(s fakecloud.Stats) bool { return s.OutputTokens > 1 })
		h.Kill()
		if err := <-finished; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the stream of a killed host ended with %v, want a reset", err)
		}
		s := h.Stats()
		balanced(t, s)
		if s.Failed != 1 || s.Aborted != 0 || s.Running != 0 || s.Connections != 0 {
			t.Errorf("books after the kill: %+v", s)
		}
		if c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://")); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial a killed host: %v, %v", c, err)
		}
		for range 3 {
			if err := h.Revive(); err != nil {
				t.Fatal(err)
			}
			if status, _, _ := do(t, h, http.MethodGet, "/health", ""); status != 200 || h.URL() != url {
				t.Errorf("after the revival: status %d at %s", status, h.URL())
			}
			h.Kill()
		}
		h.Stop()
		if err := h.Revive(); err == nil {
			t.Error("a stopped host came back")
		}
	})
}

// TestExit ends a stream by FIN, without its last chunk, over plain HTTP and over TLS.
func TestExit(t *testing.T) {
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			cfg := running()
			cfg.TLS = secure
			h := start(t, cfg)
			tr := &http.Transport{DisableKeepAlives: true}
			if secure {
				pool := x509.NewCertPool()
				pool.AppendCertsFromPEM(h.CAPEM())
				tr.TLSClientConfig = &tls.Config{RootCAs: pool}
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.URL()+"/v1/chat/completions", strings.NewReader(chatBody("x", `,"stream":true,"max_tokens":4000`)))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			wait(t, h, func(s fakecloud.Stats) bool { return s.OutputTokens > 1 })
			h.Exit()
			if _, err := io.Copy(io.Discard, resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("the stream of a host that exited ended with %v, want an unexpected end", err)
			}
			s := h.Stats()
			balanced(t, s)
			if s.Failed != 1 || s.Connections != 0 {
				t.Errorf("books after the exit: %+v", s)
			}
			if err := h.Revive(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPortIsKeptWhileDown(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	h.Kill()
	for range 200 { // would meet the port sooner or later if it were free; mostly it makes sure that nothing breaks
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if "http://"+l.Addr().String() == h.URL() {
			t.Error("the port of a killed host was given away")
		}
		l.Close()
	}
	if err := h.Revive(); err != nil {
		t.Error(err)
	}
}

func TestStopLetsRequestsFinish(t *testing.T) {
	var took time.Duration
	for range 3 { // a machine may stand still meanwhile
		if took = stopWhileBusy(t); took <= 4500*time.Millisecond {
			return
		}
	}
	t.Errorf("it took %v", took) // net/http waits for 5 s where connections are left to it
}

// stopWhileBusy stops a host with a stream under way and a connection that has not been used, and returns how long that takes.
func stopWhileBusy(t *testing.T) (took time.Duration) {
	t.Helper()
	noLeak(t, func() {
		h := start(t, fakecloud.HostConfig{TimeScale: 1, TPS: 200, TTFT: time.Millisecond})
		idle, err := net.Dial("tcp", strings.TrimPrefix(h.URL(), "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer idle.Close()
		finished := open(t.Context(), t, h, chatBody("x", `,"stream":true,"max_tokens":60`))
		wait(t, h, func(s fakecloud.Stats) bool { return s.OutputTokens > 1 && s.Connections == 2 })
		began := time.Now()
		h.Stop()
		took = time.Since(began)
		if err := <-finished; err != nil {
			t.Errorf("the stream ended with %v", err)
		}
		if s := h.Stats(); s.Completed != 1 || s.OutputTokens != 60 || s.Connections != 0 {
			t.Errorf("books %+v", s)
		}
		h.Stop()
		h.Kill()
	})
	return took
}

func TestContextEndsTheHost(t *testing.T) {
	noLeak(t, func() {
		ctx, cancel := context.WithCancel(t.Context())
		cfg := running()
		cfg.Models = []string{model}
		h, err := fakecloud.StartHost(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		finished := open(t.Context(), t, h, chatBody("x", `,"stream":true,"max_tokens":4000`))
		wait(t, h, func(s fakecloud.Stats) bool { return s.OutputTokens > 1 })
		cancel()
		if err := <-finished; err == nil {
			t.Error("the stream ended well")
		}
		h.Stop()
		if s := h.Stats(); s.Failed != 1 || s.Running != 0 {
			t.Errorf("books %+v", s)
		}
	})
}

func TestIdleConnectionIsClosed(t *testing.T) {
	h := start(t, fakecloud.HostConfig{KeepAlive: 200 * time.Millisecond})
	c, err := net.Dial("tcp", strings.TrimPrefix(h.URL(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2 { // kept alive for a second request
		if _, err := io.WriteString(c, "GET /ping HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1000)
		if n, err := c.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 200 OK") {
			t.Fatalf("%q, %v", buf[:n], err)
		}
	}
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if rest, err := io.ReadAll(c); err != nil {
		t.Errorf("idle connection: %q, %v", rest, err)
	}
}

func TestTLS(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ca.pem")
	h := start(t, fakecloud.HostConfig{TLS: true, CAFile: file})
	pem, err := os.ReadFile(file)
	if err != nil || string(pem) != string(h.CAPEM()) {
		t.Fatalf("CA file: %v", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate in the CA file")
	}
	get := func(roots *x509.CertPool) error {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true, ForceAttemptHTTP2: true}
		resp, err := (&http.Client{Transport: tr}).Post(h.URL()+"/v1/chat/completions", "application/json", strings.NewReader(chatBody("x", "")))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.Proto != "HTTP/1.1" {
			t.Errorf("protocol %s", resp.Proto)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := get(pool); err != nil {
		t.Error(err)
	}
	if err := get(x509.NewCertPool()); err == nil {
		t.Error("trusted without the CA")
	}
	if err := h.SetFaults(fakecloud.Fault{Kind: fakecloud.ResetStream, After: 3}); err != nil {
		t.Fatal(err)
	}
	if err := get(pool); err == nil {
		t.Error("a reset went unnoticed")
	}
}

// TestManyClients lets some finish, some leave and some be cut off, and checks the books against what was done.
func TestManyClients(t *testing.T) {
	noLeak(t, func() {
		h := start(t, fakecloud.HostConfig{TimeScale: 50, MaxNumSeqs: 8, AllowHeaderFaults: true})
		const each = 20
		var wg sync.WaitGroup
		for range each {
			wg.Go(func() {
				do(t, h, http.MethodPost, "/v1/chat/completions", chatBody("x", `,"stream":true,"max_tokens":50`))
			})
			wg.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL()+"/v1/chat/completions", strings.NewReader(chatBody("x", `,"stream":true,"max_tokens":50000`)))
				if err != nil {
					t.Error(err)
				}
				resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
				if err == nil {
					defer resp.Body.Close()
				}
				cancel()
			})
			wg.Go(func() {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.URL()+"/v1/chat/completions", strings.NewReader(chatBody("x", `,"stream":true,"max_tokens":50`)))
				if err != nil {
					t.Error(err)
				}
				req.Header.Set("X-Fake-Fault", "reset_stream,after=4")
				resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if _, err := io.Copy(io.Discard, resp.Body); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("cut stream: %v", err)
				}
			})
		}
		wg.Wait()
		s := wait(t, h, func(s fakecloud.Stats) bool { return s.Completed+s.Aborted+s.Failed == 3*each })
		balanced(t, s)
		lost := 0
		for _, a := range s.Aborts {
			lost += a.Tokens
		}
		if s.Completed != each || s.Aborted != each || s.Failed != each || s.Faults != each || s.OutputTokens != 54*each+lost || s.Waiting != 0 || s.Running != 0 {
			t.Errorf("books %+v", s)
		}
		h.Stop()
	})
}

func TestEndpointAndClasses(t *testing.T) {
	h := start(t, fakecloud.HostConfig{Name: "lab", Provider: "vast", APIKey: "k", Class: fakecloud.Classes[3], Seed: 5})
	e := h.Endpoint()
	if e.ID != "static:lab" || e.BaseURL != h.URL()+"/v1" || e.APIKey.Reveal() != "k" || e.Tenure != endpoint.Interruptible || e.MaxNumSeqs != 64 ||
		e.Hardware.GPU != "H100 80GB" || e.Served[0].Name != model || e.Price.USDPerHour < 1.5 || e.Price.USDPerHour > 2.5 {
		t.Errorf("endpoint %+v", e)
	}
	c := h.Config()
	if c.TPS < 40 || c.TPS > 65 || c.TTFT < 180*time.Millisecond || c.TTFT > 300*time.Millisecond {
		t.Errorf("drawn outside the class: %v tokens/s, %v", c.TPS, c.TTFT)
	}
	for _, c := range fakecloud.Classes {
		if got, ok := fakecloud.ClassNamed(c.Name); !ok || got != c {
			t.Errorf("class %s is not found", c.Name)
		}
		for _, o := range []fakecloud.Offer{c.RunPod, c.Vast} {
			for _, r := range []fakecloud.Range{o.TPS, o.TTFT, o.USDPerHour} {
				if r.Low <= 0 || r.High <= r.Low {
					t.Errorf("class %s: range %v", c.Name, r)
				}
			}
		}
	}
}
