package chaos

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"headrace/gateway/config"
)

func nothing(string) (string, bool) { return "", false }

func TestBuiltinScenarios(t *testing.T) {
	for _, name := range Builtin() {
		s, err := Load(name, nothing)
		if name == "network" && !HasNetwork {
			if err == nil || !strings.Contains(err.Error(), "-tags toxiproxy") {
				t.Errorf("network without toxiproxy: %v", err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s.Name != name || len(s.Hosts) == 0 || len(s.Faults) == 0 || s.Complete != 0.999 {
			t.Errorf("%s: %+v", name, s)
		}
		if name == "all" && (s.LeftOut == "") != HasNetwork {
			t.Errorf("all leaves out %q", s.LeftOut)
		}
	}
	s, err := Load("preempt", nothing)
	if err != nil || s.Streams != 200 || s.Every != 10*time.Second || s.Down != 20*time.Second || s.For != 10*time.Minute || s.Hosts[0].Count != 6 {
		t.Errorf("preempt is not what it promises: %+v, %v", s, err)
	}
}

func TestScenarioMistakes(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"a key nobody knows":   {"hosts: [{name: a}]\nstreems: 3\n", ":2:1: streems"},
		"no hosts":             {"streams: 3\n", "hosts"},
		"hosts twice":          {"hosts:\n  - {name: a}\n  - {name: a}\n", ":3:12: hosts[1].name"},
		"a class nobody knows": {"hosts:\n  - {name: a, class: tpu}\n", ":2:22: hosts[0].class"},
		"a fault for nobody":   {"hosts:\n  - {name: a}\nfaults:\n  - {do: outbid}\n", ":4:5: faults[0]"},
		"an engine fault":      {"hosts:\n  - {name: a}\nfaults:\n  - {do: engine, engine: [\"stahl\"]}\n", "unknown kind \"stahl\""},
		"engine of kill":       {"hosts:\n  - {name: a}\nfaults:\n  - {do: kill, engine: [\"stall\"]}\n", "is for engine only"},
		"no toxics":            {"hosts:\n  - {name: a}\nfaults:\n  - {do: network}\n", "needs toxics"},
		"native instances":     {"hosts:\n  - {name: a, kind: vast, native: true}\n", "is for runpod only"},
		"a range backwards":    {"hosts:\n  - {name: a}\ntraffic: {tokens: [9, 3]}\n", "is no range"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "own.yaml")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Load(path, nothing)
			if _, ok := errors.AsType[*config.Problems](err); !ok || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q in it", err, tc.want)
			}
		})
	}
	if _, err := Load("preemt", nothing); err == nil || !strings.Contains(err.Error(), "preempt") {
		t.Errorf("a scenario that there is not: %v", err)
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	for i := range 1000 {
		h.add(time.Duration(i+1) * time.Millisecond)
	}
	s := h.spans()
	if s.N != 1000 || s.Max != 1 || s.P50 < 0.5 || s.P50 > 0.53 || s.P99 < 0.98 || s.P99 > 1 {
		t.Errorf("%+v", s)
	}
	if (&histogram{}).spans() != (Spans{}) {
		t.Error("figures of nothing")
	}
}
