package experiments

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"headrace/gateway/state"
	"headrace/router/experiment"
)

// readOnly is a store that may be read and not written, as a Redis is that has become a replica of another one or has no memory left.
type readOnly struct {
	state.Store
	is atomic.Bool
}

func (r *readOnly) Put(ctx context.Context, kind, name string, old state.Version, body []byte) (state.Version, error) {
	if r.is.Load() {
		return 0, errDown
	}
	return r.Store.Put(ctx, kind, name, old, body)
}

// TestLastingTrouble: what goes wrong for long is said when it begins, and again when it is over, and not at every round in between.
func TestLastingTrouble(t *testing.T) {
	for name, tc := range map[string]struct {
		begin, end func(t *testing.T, store *readOnly, r *replica)
		says, over string
	}{
		"the store is read-only": {
			func(_ *testing.T, s *readOnly, _ *replica) { s.is.Store(true) },
			func(_ *testing.T, s *readOnly, _ *replica) { s.is.Store(false) },
			"cannot be reached", "can be reached again",
		},
		"it is, and something was decided here": {
			func(t *testing.T, s *readOnly, r *replica) {
				t.Helper()
				s.is.Store(true)
				if v, err := r.Apply(t.Context(), "e", experiment.Abort, ""); err != nil || v.State != experiment.Aborted {
					t.Errorf("aborted: %s, %v", v.State, err)
				}
			},
			func(_ *testing.T, s *readOnly, _ *replica) { s.is.Store(false) },
			"cannot be reached", "can be reached again",
		},
		"the document is not understood": {
			func(t *testing.T, s *readOnly, _ *replica) { t.Helper(); put(t, s, kindDocs, "e", []byte("{}")) }, nil, "is not understood", "",
		},
		"another replica is of another version": {
			func(t *testing.T, s *readOnly, r *replica) {
				t.Helper()
				r.mu.Lock()
				head, err := json.Marshal(heading{r.trials[0].doc.Digest, r.trials[0].run, 1})
				r.mu.Unlock()
				if err != nil {
					t.Fatal(err)
				}
				put(t, s, statsKind(1), "e", append(head, "\nwhat nobody knows"...))
				h, err := json.Marshal(held{By: "another", At: time.Now().Add(time.Hour), Spoken: 1})
				if err != nil {
					t.Fatal(err)
				}
				put(t, s, kindReplica, slotName(1), h)
			}, nil, "is not counted", "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &readOnly{Store: state.NewMemory()}
				var log bytes.Buffer
				r := startWith(t, Options{Store: store, Log: slog.New(slog.NewTextHandler(&log, nil))}, trialOf())
				pass(5 * time.Second)
				tc.begin(t, store, r)
				pass(5 * time.Minute)
				if tc.end != nil {
					tc.end(t, store, r)
					pass(5 * time.Second)
				}
				r.stop()
				if n := strings.Count(log.String(), tc.says); n != 1 {
					t.Errorf("%q is said %d times", tc.says, n)
				}
				if n := strings.Count(log.String(), tc.over); tc.over != "" && n != 1 {
					t.Errorf("%q is said %d times", tc.over, n)
				}
				if n := strings.Count(log.String(), "\n"); n > 8 {
					t.Errorf("the log has %d lines, from its end:\n%s", n, log.String()[max(0, log.Len()-2000):])
				}
			})
		})
	}
}

// put writes a document whatever it was.
func put(t *testing.T, s state.Store, kind, name string, body []byte) {
	t.Helper()
	docs, err := s.Load(t.Context(), kind)
	if err == nil {
		_, err = s.Put(t.Context(), kind, name, docs[name].Version, body)
	}
	if err != nil {
		t.Fatal(err)
	}
}
