package fakecloud_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"headrace/providers/fakecloud"
)

func TestFaultsAreScripted(t *testing.T) {
	h := start(t, fakecloud.HostConfig{Seed: 11, AllowHeaderFaults: true})
	statuses := func(n int, path string, header ...string) (all []int) {
		for range n {
			s, _, _ := do(t, h, http.MethodPost, path, chatBody("x", `,"max_tokens":1`), header...)
			all = append(all, s)
		}
		return all
	}
	set := func(fs ...fakecloud.Fault) {
		if err := h.SetFaults(fs...); err != nil {
			t.Fatal(err)
		}
	}
	const chat = "/v1/chat/completions"
	set(fakecloud.Fault{Kind: fakecloud.Error500, Times: 2}, fakecloud.Fault{Kind: fakecloud.Unavailable, Times: 3})
	if got := fmt.Sprint(statuses(5, chat)); got != "[500 500 503 200 200]" && got != "[500 500 503 503 503]" {
		t.Errorf("two 500 before 503: %s", got)
	}
	set(fakecloud.Fault{Kind: fakecloud.Error500, Path: "/v1/embeddings"})
	if got := fmt.Sprint(statuses(1, chat), statuses(1, "/v1/embeddings")); got != "[200] [500]" {
		t.Errorf("by path: %s", got)
	}
	set(fakecloud.Fault{Kind: fakecloud.Error500, Path: "/"})
	if s, _, _ := do(t, h, http.MethodGet, "/health", ""); s != 500 {
		t.Errorf("any method by a path: status %d", s)
	}
	set(fakecloud.Fault{Kind: fakecloud.Error500, P: 0.3})
	failed := 0
	for _, s := range statuses(200, chat) {
		if s == 500 {
			failed++
		}
	}
	if failed < 35 || failed > 85 {
		t.Errorf("%d of 200 failed with p=0.3, seed 11", failed)
	}
	set()
	if got := fmt.Sprint(statuses(1, chat, "X-Fake-Fault", "throttle,delay=3s"), statuses(1, chat)); got != "[429] [200]" {
		t.Errorf("by header: %s", got)
	}
	if got := statuses(1, chat, "X-Fake-Fault", "sneeze"); got[0] != 400 {
		t.Errorf("unknown kind in the header: %v", got)
	}
	deaf := start(t, fakecloud.HostConfig{})
	if s, _, _ := do(t, deaf, http.MethodPost, chat, chatBody("x", ""), "X-Fake-Fault", "error_500"); s != 200 {
		t.Errorf("a host that allows no faults by header: status %d", s)
	}
}

func TestSameSeedSameFaults(t *testing.T) {
	var first string
	for range 2 {
		h := start(t, fakecloud.HostConfig{Seed: 3})
		if err := h.SetFaults(fakecloud.Fault{Kind: fakecloud.Error500, P: 0.5}); err != nil {
			t.Fatal(err)
		}
		var got string
		for range 40 {
			s, _, _ := do(t, h, http.MethodPost, "/v1/chat/completions", chatBody("x", `,"max_tokens":1`))
			got += fmt.Sprint(s/100, " ")
		}
		if first == "" {
			first = got
		} else if got != first {
			t.Errorf("seed 3 gave %s, then %s", first, got)
		}
	}
}

func TestShapesGoTogether(t *testing.T) {
	h := start(t, fakecloud.HostConfig{Chunking: fakecloud.Chunking{Ragged: true}})
	if err := h.SetFaults(fakecloud.Fault{Kind: fakecloud.Comments}, fakecloud.Fault{Kind: fakecloud.CRLF}, fakecloud.Fault{Kind: fakecloud.EOFStream, After: 3}); err != nil {
		t.Fatal(err)
	}
	answer, _, _ := raw(t, h, chatBody(prompt, `,"max_tokens":20,"stream":true`), nil)
	_, body, err := split(t, answer)
	if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.Contains(body, []byte(": still here\r\n\r\n")) || said(bytes.ReplaceAll(body, []byte("\r\n"), []byte("\n"))) != fakecloud.Answer(model, prompt, 3) {
		t.Errorf("%q, %v", body, err)
	}
}

func TestRefuseLetsStreamsFinish(t *testing.T) {
	h := start(t, fakecloud.HostConfig{TimeScale: 1, TPS: 200, TTFT: time.Millisecond})
	finished := open(t.Context(), t, h, chatBody("x", `,"stream":true,"max_tokens":40`))
	wait(t, h, func(s fakecloud.Stats) bool { return s.OutputTokens > 1 })
	if err := h.SetFaults(fakecloud.Fault{Kind: fakecloud.Refuse}); err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial("tcp", strings.TrimPrefix(h.URL(), "http://")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial: %v", err)
	}
	if err := <-finished; err != nil {
		t.Errorf("the stream under way ended with %v", err)
	}
}

func TestParseFault(t *testing.T) {
	for _, bad := range []string{"", "none", "sneeze", "stall,after", "stall,after=-1", "stall,p=2", "stall,p=NaN", "stall,delay=3", "stall,colour=red", "stall,times=x"} {
		if f, err := fakecloud.ParseFault(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, f)
		}
	}
	f, err := fakecloud.ParseFault("stall, after=5, delay=2s, times=3, p=0.25, path=/v1/chat")
	if want := (fakecloud.Fault{Kind: fakecloud.Stall, After: 5, Delay: 2 * time.Second, Times: 3, P: 0.25, Path: "/v1/chat"}); err != nil || f != want {
		t.Errorf("%+v, %v", f, err)
	}
}
