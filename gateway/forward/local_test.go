package forward

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// translated returns a host that h stands for.
func translated(t *testing.T, h http.HandlerFunc) (*Client, *Host) {
	t.Helper()
	c := New(Options{Translate: func(ep *endpoint.Endpoint) http.Handler {
		if ep.Dialect == endpoint.RunPodJobs {
			return h
		}
		return nil
	}})
	if err := c.Update([]endpoint.Endpoint{{ID: "x:y", BaseURL: "https://api.example.com/v2/y/openai/v1", APIKey: "sk-1", Dialect: endpoint.RunPodJobs}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, c.Host("x:y")
}

func TestTranslated(t *testing.T) {
	big := strings.Repeat("x", 3<<20)
	_, h := translated(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if r.URL.Path != "/v1/chat/completions" || r.Header.Get("Authorization") != "" || string(body) != big {
			t.Errorf("the translator got %s with %d bytes and key %q", r.URL.Path, len(body), r.Header.Get("Authorization"))
		}
		endpoint.ReportTo(r.Context()).Put(endpoint.WorkerReport{Worker: "w1", Executed: 3 * time.Second})
		fmt.Fprint(w, "all is well")
	})
	for range 3 {
		var a Attempt
		var g Guard
		if err := a.Start(h, &g, &Request{Method: "POST", Path: "/chat/completions", Body: [][]byte{[]byte(big)}, Size: len(big)}, time.Now()); err != nil {
			t.Fatal(err)
		}
		by := time.Now().Add(patience)
		if err := a.AwaitHead(by); err != nil || a.Status != 200 {
			t.Fatalf("status %d, %v", a.Status, err)
		}
		for !a.Ended() {
			if err := a.More(by, 0); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
		if got := string(a.Unread()); got != "all is well" {
			t.Errorf("body %q", got)
		}
		rep, ok := a.Report()
		if _, again := a.Report(); !ok || again || rep.Worker != "w1" || rep.Executed != 3*time.Second {
			t.Errorf("report %+v, %v, and again %v", rep, ok, again)
		}
		a.Finish()
	}
}

// TestTranslatedLeaving ends the translator's request when the caller leaves, before and after the first byte.
func TestTranslatedLeaving(t *testing.T) {
	for _, begun := range []bool{false, true} {
		t.Run(fmt.Sprint("begun=", begun), func(t *testing.T) {
			there, left := make(chan struct{}), make(chan struct{})
			_, h := translated(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				if begun {
					fmt.Fprint(w, "data: {}\n\n")
					_ = http.NewResponseController(w).Flush()
				}
				close(there)
				<-r.Context().Done()
				close(left)
			})
			var a Attempt
			var g Guard
			if err := a.Start(h, &g, &Request{Method: "POST", Path: "/x", Body: [][]byte{[]byte("{}")}, Size: 2}, time.Now()); err != nil {
				t.Fatal(err)
			}
			head := make(chan error, 1)
			go func() { head <- a.AwaitHead(time.Now().Add(patience)) }()
			if begun {
				if err := <-head; err != nil {
					t.Fatal(err)
				}
			}
			<-there
			at := time.Now()
			g.Abort()
			select {
			case <-left:
			case <-time.After(patience):
				t.Fatal("the translator was not told")
			}
			if d := time.Since(at); d > patience/2 { // the gateway's own tests hold it to 50 ms
				t.Errorf("told after %s", d)
			}
			if !begun {
				err := <-head
				if oe, ok := errors.AsType[*outcome.Error](err); !ok || oe.Class != outcome.ClientGone {
					t.Errorf("the attempt ended with %v", err)
				}
			}
			a.Finish()
		})
	}
}

// TestTranslatedAbort cuts an answer: it must not look complete.
func TestTranslatedAbort(t *testing.T) {
	_, h := translated(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "data: {}\n\n")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	r := do(h, &Request{Method: "POST", Path: "/x"})
	if !errors.Is(r.err, io.ErrUnexpectedEOF) || r.body != "data: {}\n\n" {
		t.Errorf("body %q, %v", r.body, r.err)
	}
}

func TestTranslatedClose(t *testing.T) {
	there := make(chan struct{})
	c, h := translated(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		close(there)
		<-r.Context().Done()
	})
	done := make(chan result, 1)
	go func() { done <- do(h, &Request{Method: "POST", Path: "/x"}) }()
	<-there
	c.Close()
	if r := <-done; r.err == nil {
		t.Error("an attempt outlived the forwarder")
	}
	if r := do(h, &Request{Method: "POST", Path: "/x"}); r.err == nil {
		t.Error("a closed forwarder served")
	}
}

func TestNobodySpeaks(t *testing.T) {
	err := New(Options{}).Update([]endpoint.Endpoint{{ID: "x:y", BaseURL: "https://a", Dialect: endpoint.VastRoute}})
	if err == nil || !strings.Contains(err.Error(), "nobody here speaks vast_route") {
		t.Errorf("got %v", err)
	}
}
