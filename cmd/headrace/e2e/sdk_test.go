// Package e2e_test runs the official OpenAI SDKs for Go, Node and Python as clients of a headrace process in front of fake
// GPU hosts. Each SDK is put through the same checks; what it must be told comes from the hosts' oracle. It also runs the
// clients of RunPod and Vast.ai at the fake clouds (vendors_test.go).
//
//	make e2e                                    all of them, required
//	go test ./cmd/headrace/e2e -run SDKs/go/chat one check of one SDK
//	go test ./cmd/headrace/e2e -run Vendors/vast one vendor's client
//	HEADRACE_E2E_BINARY=/usr/local/bin/headrace  tests that binary instead of one built from the tree
package e2e_test

import (
	"slices"
	"strings"
	"testing"
)

func TestSDKs(t *testing.T) {
	path := headrace(t)
	f := startFleet(t)
	g := serve(t, path, f.config)
	// What the hosts see of each client that left early, behind its check.
	after := func(t *testing.T, check string) {
		t.Helper()
		if check == "stream_abort" {
			f.waitIdle(t)
		}
	}
	sdk := newGoSDK(newPlan(g.url, "go"))
	var names []string
	for _, c := range sdk.checks() {
		names = append(names, c.name)
	}
	t.Run("go", func(t *testing.T) {
		for _, c := range sdk.checks() {
			t.Run(c.name, func(t *testing.T) {
				c.run(t)
				after(t, c.name)
			})
		}
	})
	for _, s := range scripts {
		t.Run(s.language, func(t *testing.T) { s.run(t, newPlan(g.url, s.language), names, after) })
	}
	t.Run("abort_latency", func(t *testing.T) { abortLatency(t, f, sdk) })
	for language, h := range f.heirs {
		if s := h.Stats(); s.Generations > 0 && (s.Continued == 0 || s.BadSeams > 0) {
			t.Errorf("%s: the host that was to go on with an answer did so %d times, %d of them not where it ended", language, s.Continued, s.BadSeams)
		}
	}
	t.Run("keys_stay_apart", func(t *testing.T) {
		seen := 0
		for _, h := range f.hosts {
			for _, r := range h.Requests() {
				seen++
				for name, values := range r.Header {
					if strings.Contains(strings.Join(values, "\n"), callerKey) {
						t.Errorf("host %s got the caller's key in %s", h.Name(), name)
					}
				}
				if got := r.Header["Authorization"]; !slices.Equal(got, []string{"Bearer " + hostKey}) {
					t.Errorf("host %s was asked for %s with the credentials %q", h.Name(), r.Path, got)
				}
			}
		}
		if seen == 0 {
			t.Error("no host kept a request: nothing was looked at")
		}
	})
}
