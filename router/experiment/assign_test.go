package experiment

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"headrace/router/endpoint"
)

func threeArms() *Spec {
	s := &Spec{
		Name: "e", Model: "m", Units: []Unit{{Kind: ByUser}}, MinTime: time.Minute, MinUnits: 100, MaxTime: 24 * time.Hour,
		Arms:  []Arm{{Name: "control"}, {Name: "a", Share: 1}, {Name: "b", Share: 3}},
		Steps: []float64{0.05, 0.25, 0.5, 1},
	}
	s.Ready()
	return s
}

// stepped are the shares of a step.
func stepped(s *Spec, step int, dropped ...bool) []float64 {
	d := Doc{Steps: s.Steps}
	d.reset(s)
	copy(d.Dropped, dropped)
	return d.stepShares(s, step)
}

// TestShares gives each arm the units that its share promises.
func TestShares(t *testing.T) {
	s := threeArms()
	const n = 200_000
	for _, step := range []int{0, 1, 2, 3} {
		shares := stepped(s, step)
		a := NewAssigner(s, 1, shares, true)
		got := map[string]int{}
		for i := range n {
			arm, _ := a.Assign(strconv.AppendInt(nil, int64(i), 10))
			got[arm.Name]++
		}
		for i := range s.Arms {
			want := shares[i] * n
			if sigma := math.Sqrt(n * shares[i] * (1 - shares[i])); math.Abs(float64(got[s.Arms[i].Name])-want) > 4*sigma {
				t.Errorf("step %v: %s has %d of %d units, want %.0f", s.Steps[step], s.Arms[i].Name, got[s.Arms[i].Name], n, want)
			}
		}
	}
}

// TestMonotone lets shares grow at random, arms be dropped, and the winner take all: no unit leaves an arm but for the winner's sake, or
// because its own arm was dropped.
func TestMonotone(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	for round := range 200 {
		s := &Spec{Name: "e" + strconv.Itoa(round), Model: "m", Arms: []Arm{{Name: "control"}}}
		for i := range 1 + rng.IntN(5) {
			s.Arms = append(s.Arms, Arm{Name: strconv.Itoa(i), Share: 0.01 + rng.Float64()})
		}
		for range 1 + rng.IntN(5) {
			s.Steps = append(s.Steps, 0.01+0.98*rng.Float64())
		}
		slices.Sort(s.Steps)
		s.Ready()
		units := make([][]byte, 300)
		was := make([]*Arm, len(units))
		for i := range units {
			units[i] = []byte(fmt.Sprint("user ", rng.Uint64()))
			was[i] = s.Control()
		}
		dropped := make([]bool, len(s.Arms))
		for step := range s.Steps {
			if step > 0 && rng.IntN(3) == 0 {
				dropped[1+rng.IntN(len(s.Arms)-1)] = true
			}
			a := NewAssigner(s, 1, stepped(s, step, dropped...), true)
			for i, u := range units {
				arm, _ := a.Assign(u)
				_, index := s.Arm(was[i].Name)
				if arm != was[i] && was[i] != s.Control() && !dropped[index] {
					t.Fatalf("seed %d, round %d: %s moved from %s to %s", seed, round, u, was[i].Name, arm.Name)
				}
				was[i] = arm
			}
		}
		winner := 1 + rng.IntN(len(s.Arms)-1)
		shares := make([]float64, len(s.Arms))
		shares[winner] = 1
		a := NewAssigner(s, 1, shares, true)
		for _, u := range units {
			if arm, _ := a.Assign(u); arm != &s.Arms[winner] {
				t.Fatalf("seed %d, round %d: %s is in %s although %s was promoted", seed, round, u, arm.Name, s.Arms[winner].Name)
			}
		}
	}
}

// TestLayer gives experiments of one layer units of their own.
func TestLayer(t *testing.T) {
	var as []*Assigner
	for i, share := range [][2]float64{{0, 0.3}, {0.3, 0.9}} {
		s := &Spec{Name: strconv.Itoa(i), Model: "m", Layer: "l", From: share[0], To: share[1], Arms: []Arm{{Name: "control"}, {Name: "a", Share: 0.5}}}
		s.Ready()
		as = append(as, NewAssigner(s, 1, []float64{0.5, 0.5}, true))
	}
	const n = 50_000
	var in [2]int
	both := 0
	for i := range n {
		u := strconv.AppendInt(nil, int64(i), 10)
		first, second := as[0].Takes(u), as[1].Takes(u)
		if first {
			in[0]++
		}
		if second {
			in[1]++
		}
		if first && second {
			both++
		}
	}
	if both != 0 || math.Abs(float64(in[0])/n-0.3) > 0.01 || math.Abs(float64(in[1])/n-0.6) > 0.01 {
		t.Errorf("units of the first %d, of the second %d, of both %d, of %d", in[0], in[1], both, n)
	}
}

// TestStable holds positions to those that units have had: replicas of two versions must agree.
func TestStable(t *testing.T) {
	s := threeArms()
	a := NewAssigner(s, 1, []float64{1, 0, 0}, true)
	again := NewAssigner(s, 2, []float64{1, 0, 0}, true)
	long := []byte(fmt.Sprintf("%0200d", 7))
	for _, tc := range []struct {
		a    *Assigner
		unit string
		want Key
	}{
		{a, "alice", 0xd13f6166de0eafc6}, {a, "bob", 0x474929b08b7e710b}, {again, "alice", 0xe58cda1a7175fcb7}, {a, string(long), 0x6e6d82f6eef893ab},
	} {
		if got := tc.a.Key([]byte(tc.unit)); got != tc.want {
			t.Errorf("%q: key %#x, want %#x", tc.unit, uint64(got), uint64(tc.want))
		}
	}
}

func TestSelector(t *testing.T) {
	ep := endpoint.Endpoint{
		ID: "vast:4711", Provider: "vast", Region: "EU-DE-1", Hardware: endpoint.Hardware{GPU: "NVIDIA GeForce RTX 4090"}, Tenure: endpoint.Interruptible,
		Price: endpoint.Price{Basis: endpoint.PerHour}, Labels: map[string]string{"team": "search"},
	}
	for name, tc := range map[string]struct {
		s    *Selector
		want bool
	}{
		"none":                  {nil, true},
		"empty":                 {&Selector{}, true},
		"all of it":             {&Selector{Host: []string{"vast:*"}, Provider: []string{"Vast"}, Served: []string{"org/*-awq"}, GPU: []string{"rtx 4090"}, Region: []string{"eu-*"}, Price: []string{"per_hour"}, Tenure: []string{"interruptible"}, Labels: map[string]string{"team": "s*"}}, true},
		"one of two":            {&Selector{Served: []string{"x", "*awq"}}, true},
		"one of two is not met": {&Selector{Served: []string{"*-awq"}, Provider: []string{"runpod"}}, false},
		"a label it lacks":      {&Selector{Labels: map[string]string{"tier": "*"}}, false},
		"another label":         {&Selector{Labels: map[string]string{"team": "ads"}}, false},
		"case of a model":       {&Selector{Served: []string{"*-AWQ"}}, false},
		"another GPU":           {&Selector{GPU: []string{"A100 80GB"}}, false},
		"a family of GPUs":      {&Selector{GPU: []string{"*rtx*"}}, true},
		"stars in the middle":   {&Selector{Served: []string{"o*g/*70b*q"}}, true},
		"stars that overlap":    {&Selector{Served: []string{"org/llama-70b-awq*awq"}}, false},
	} {
		if got := tc.s.Holds(&ep, "org/llama-70b-awq"); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestUnits(t *testing.T) {
	for word, want := range map[string]bool{
		"request": true, "session": true, "user": true, "key": true, "header:X-User-Id": true, "header:": false, "header:a b": false, "users": false, "": false,
	} {
		u, ok := ParseUnit(word)
		if ok != want {
			t.Errorf("%q: %v, want %v", word, ok, want)
		}
		if again, _ := ParseUnit(u.String()); ok && again != u {
			t.Errorf("%q: %v is written as %q", word, u, u)
		}
	}
}

func TestAssignAllocates(t *testing.T) {
	a := NewAssigner(threeArms(), 1, []float64{0.5, 0.125, 0.375}, true)
	unit := []byte("user-0123456789")
	if n := testing.AllocsPerRun(100, func() { a.Assign(unit); a.Takes(unit) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

// TestPlace hashes a unit with its experiment's name once, as docs/experiments.md has it, and one that is very long before that.
func TestPlace(t *testing.T) {
	a := NewAssigner(threeArms(), 1, nil, true)
	for _, n := range []int{1, 30, 70, 100, 255, 400, 1000} {
		unit := []byte(strings.Repeat("u", n))
		hashed := unit
		if n > 495 {
			sum := sha256.Sum256(unit)
			hashed = sum[:]
		}
		sum := sha256.Sum256(append([]byte(a.Spec.Name+"\x00"), hashed...))
		if want := Key(binary.BigEndian.Uint64(sum[:])); a.Key(unit) != want {
			t.Errorf("a unit of %d bytes is at %d, want %d", n, a.Key(unit), want)
		}
	}
}

func BenchmarkAssign(b *testing.B) {
	a := NewAssigner(threeArms(), 1, []float64{0.5, 0.125, 0.375}, true)
	for _, unit := range []string{"user-0123456789", "req_2vjvuxn2hcd6wq3a2vjvuxn2hc", strings.Repeat("u", 100), strings.Repeat("u", 200)} {
		b.Run(strconv.Itoa(len(unit)), func(b *testing.B) {
			b.ReportAllocs()
			u := []byte(unit)
			for b.Loop() {
				a.Assign(u)
			}
		})
	}
}

// TestLot keeps run and weights of a draw in two bytes, and tells neighbouring runs apart.
func TestLot(t *testing.T) {
	for _, run := range []int{1, 2, 1023, 1024, 1025, 5000} {
		for _, epoch := range []int{0, 1, 32} {
			l := LotOf(run, epoch)
			if l.Epoch() != epoch || !l.Of(run) || l != 0 && (l.Of(run+1) || l.Of(run-1)) {
				t.Errorf("run %d, weights %d: %d, of its run %v, of the next %v", run, epoch, l.Epoch(), l.Of(run), l.Of(run+1))
			}
		}
	}
	if l := Lot(0); !l.Of(7) || l.Epoch() != 0 {
		t.Error("the zero Lot tells something")
	}
}
