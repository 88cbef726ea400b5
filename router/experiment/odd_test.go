package experiment

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"
)

// odd returns v with one thing in it that is not what it was.
func odd(r *rand.Rand, v any) any {
	switch v := v.(type) {
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		switch k := keys[r.IntN(len(keys))]; r.IntN(12) {
		case 0:
			delete(v, k)
		case 1:
			v[k] = nil
		default:
			v[k] = odd(r, v[k])
		}
		return v
	case []any:
		switch n := r.IntN(8); {
		case len(v) == 0 || n == 0:
			return append(v, 0.5)
		case n == 1:
			return v[:r.IntN(len(v))]
		case n == 2:
			return append(v, v[r.IntN(len(v))])
		}
		i := r.IntN(len(v))
		v[i] = odd(r, v[i])
		return v
	case float64:
		return []any{-1.0, 0.0, 0.3, 1.0, 2.0, 7.0, 1e6, -0.5, 1e300, 64.0}[r.IntN(10)]
	case string:
		return []any{"", "promoted", "running", "rolled_back", "paused", "inconclusive", "scheduled", "abort", "2500-01-01T00:00:00Z", "0001-01-01T00:00:00Z"}[r.IntN(10)]
	case bool:
		return !v
	}
	return []any{0.5}
}

// TestOddDocs reads documents that nobody has written so. Those that pass for some are gone by without harm: every command, step and
// config has an answer, and requests find an arm.
func TestOddDocs(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's
	s, other := armsOnSteps(.05, .25, .5, 1), armsOnSteps()
	readings := Readings{Arms: make([]Reading, len(s.Arms))}
	for i := range readings.Arms {
		readings.Arms[i] = Reading{Units: 1e6, Requests: 1e6, Judgement: Pass}
	}
	harmed := Readings{Arms: slices.Clone(readings.Arms)}
	harmed.Arms[1].Judgement = Stop
	good := NewDoc(s, t0)
	good, _ = good.Decide(s, readings, at(100))
	passed := 0
	for range 1500 {
		body, err := json.Marshal(good)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(body, &v); err != nil {
			t.Fatal(err)
		}
		for range 1 + r.IntN(3) {
			v = odd(r, v)
		}
		if body, err = json.Marshal(v); err != nil {
			t.Fatal(err)
		}
		var d Doc
		if json.Unmarshal(body, &d) != nil || d.Check() != nil {
			continue
		}
		passed++
		func() {
			defer func() {
				if p := recover(); p != nil {
					t.Fatalf("seed %d: %v, of %s", seed, p, body)
				}
			}()
			for _, s := range []*Spec{s, other} {
				next := []Doc{d}
				for _, c := range []Command{Start, Pause, Resume, Promote, Abort} {
					if n, err := d.Apply(s, c, "", "operator", at(200)); d.Matches(s) && err == nil {
						next = append(next, n)
					}
				}
				adopted, _ := d.Adopt(s, at(200))
				returned, _ := d.Return(s, at(150), at(200))
				next = append(next, adopted, returned)
				for i := range next {
					n := &next[i]
					if !n.Matches(s) {
						continue
					}
					if m, changed := n.Decide(s, readings, at(300)); changed {
						next = append(next, m)
					}
					if m, changed := n.Guard(s, harmed, at(300)); changed {
						next = append(next, m)
					}
					_ = n.Waits(s, readings, at(300))
				}
				for i := range next {
					n := &next[i]
					_, _ = good.Reconcile(n, true, at(400))
					_, _ = n.Reconcile(&good, true, at(400))
					if n.Matches(s) {
						a := NewAssigner(s, n.Run, n.Shares, n.State.Tries())
						arm, _ := a.Assign([]byte("user"))
						_ = a.Outside().Label() + arm.Label()
					}
					if _, err := json.Marshal(n); err != nil {
						t.Fatalf("%v, of %s", err, body)
					}
				}
			}
		}()
	}
	three := NewDoc(s, t0)
	three.Arms, three.Shares, three.Dropped, three.StepBase, three.StepOut, three.Weights = nil, nil, nil, nil, nil, nil
	if two := armsOnSteps(); three.Matches(two) || three.Matches(s) {
		t.Error("a document without arms is that of a spec")
	}
	if passed < 25 {
		t.Errorf("only %d documents passed for some", passed)
	}
}
