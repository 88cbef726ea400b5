package experiments

import (
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"headrace/gateway/ledger"
	"headrace/gateway/state"
	"headrace/router/experiment"
	"headrace/router/experiment/stats"
)

// lines is a log that many write to.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(b))
	return len(b), nil
}

func (l *lines) with(s string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.all {
		if strings.Contains(line, s) {
			found = append(found, line)
		}
	}
	return found
}

// TestDollarsNobodyKnows: an experiment that is to be held to dollars, on hosts of which a provider tells no price, says so once in the log, and
// where it is shown, until there is one. Of what nobody asked for nothing is said.
func TestDollarsNobodyKnows(t *testing.T) {
	for name, tc := range map[string]struct {
		guardrail stats.Guardrail
		says      string
	}{
		"guardrail":         {stats.Guardrail{Metric: stats.USD, Margin: 0.1, Tolerate: 0.1}, "guardrails.usd_per_mtok: of no request of control and of canary"},
		"goal":              {stats.Guardrail{Metric: stats.USD, Goal: true}, "goal: of no request of control and of canary"},
		"nobody has asked":  {stats.Guardrail{Metric: stats.USD, Margin: 0.1, Optional: true}, ""},
		"of something else": {stats.Guardrail{Metric: stats.Missed, Margin: 0.1}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tr := failuresOnly(func(s *experiment.Spec) { s.Steps = []float64{0.5, 1}; s.MaxTime = 0 })
				tr.Guardrails = append(tr.Guardrails, tc.guardrail)
				log := &lines{}
				a := startWith(t, Options{Store: state.NewMemory(), Log: slog.New(slog.NewTextHandler(log, nil))}, tr)
				w := newWorld(t)
				price := false
				feed := func() {
					w.feed(a, 400, func(r *ledger.Record, try *ledger.Attempt, _ string) {
						try.Decision.USDPerMTok = 0
						if r.USDKnown = price; !price {
							r.USD = 0
						}
					})
				}
				problem := func() string {
					v, err := a.Show(t.Context(), "e")
					if err != nil {
						t.Fatal(err)
					}
					return v.Problem
				}
				feed()
				said := log.with("waits for what nobody measures")
				if tc.says == "" {
					if p := problem(); p != "" || len(said) > 0 {
						t.Errorf("problem %q, log %q", p, said)
					}
					a.stop()
					return
				}
				if p := problem(); !strings.Contains(p, tc.says) || !strings.Contains(p, "static:0, static:1, static:2, static:3") {
					t.Errorf("problem %q", p)
				}
				feed()
				if said = log.with("waits for what nobody measures"); len(said) != 1 || !strings.Contains(said[0], tc.says) {
					t.Errorf("the log says it %d times: %q", len(said), said)
				}
				price = true
				feed()
				if p := problem(); p != "" {
					t.Errorf("with a price: %q", p)
				}
				a.stop()
			})
		})
	}
}
