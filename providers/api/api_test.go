package api_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/providers/api"
)

// A provider that quotes the key may have it cut where long texts are: what is left of it is no less secret.
func TestErrorsHoldNoPartOfTheKey(t *testing.T) {
	const key = "rpa_ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	for name, body := range map[string]string{
		"in words": `{"detail":"%s is no valid key"}`, "as text": "%s is no valid key", "as a code": `{"error":"%s"}`,
	} {
		t.Run(name, func(t *testing.T) {
			for cut := range 12 {
				s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.WriteHeader(401)
					_, _ = fmt.Fprintf(w, body, strings.Repeat("x", 280+2*cut)+key)
				}))
				_, err := api.New(api.Options{Provider: "test", Key: key}).Do(t.Context(), api.Call{Name: "GET /", URL: s.URL})
				s.Close()
				if err == nil || strings.Contains(err.Error(), key[:6]) {
					t.Errorf("the error shows a part of the key: %v", err)
				}
			}
		})
	}
}

// A server counts the time between calls from when they reach it: an answer that takes long must not bring the next
// call closer.
func TestMinInterval(t *testing.T) {
	const least = 30 * time.Millisecond
	var (
		mu   sync.Mutex
		came []time.Time
	)
	slow := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		came = append(came, time.Now())
		first := len(came) == 1
		mu.Unlock()
		if first {
			<-slow
		}
		_, _ = w.Write([]byte("{}"))
	}))
	defer s.Close()
	c := api.New(api.Options{Provider: "test"})
	call := api.Call{Name: "GET /", URL: s.URL, MinInterval: least}

	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := c.Do(t.Context(), call); err != nil {
				t.Error(err)
			}
		})
	}
	// One that gives up leaves the others their turn.
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := c.Do(ctx, call); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call that may wait 1 ms, behind one that hangs: %v", err)
	}
	close(slow)
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	for i := 1; i < len(came); i++ {
		if d := came[i].Sub(came[i-1]); d < least {
			t.Errorf("call %d came %v after the one before it, not %v", i, d, least)
		}
	}
	if len(came) < 4 {
		t.Errorf("%d calls came", len(came))
	}
}
