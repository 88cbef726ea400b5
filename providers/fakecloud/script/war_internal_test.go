package script

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestStrikesAreExponential looks at mean, spread and memory of the times between two strikes.
func TestStrikesAreExponential(t *testing.T) {
	const n, every = 20_000, Duration(6 * time.Hour)
	rng := rand.New(rand.NewPCG(1, 2))
	var sum, squares float64
	spared, sparedOn := 0, 0 // for an hour, and for another hour
	for range n {
		h := time.Duration(strike(rng, every)).Hours()
		sum += h
		squares += h * h
		if h > 1 {
			spared++
			if h > 2 {
				sparedOn++
			}
		}
	}
	mean := sum / n
	if sd := math.Sqrt(squares/n - mean*mean); math.Abs(mean-6) > 0.2 || math.Abs(sd-6) > 0.3 {
		t.Errorf("mean %.2f h, standard deviation %.2f h, want 6 of both", mean, sd)
	}
	first, second := float64(spared)/n, float64(sparedOn)/float64(spared)
	if want := math.Exp(-1.0 / 6); math.Abs(first-want) > 0.02 || math.Abs(second-want) > 0.02 {
		t.Errorf("%.3f are spared for an hour and %.3f of those for another, want %.3f of both", first, second, want)
	}
}

// TestBidWar plays a war in fast motion: each instance that was bid for goes, more than once, and comes back at another port.
func TestBidWar(t *testing.T) {
	scale := 3.6e5 // an hour takes 10 ms
	off := 1e6
	s := &Script{
		Seed: 1, TimeScale: &scale, EngineScale: &off,
		Vast: &Vast{
			BidWar:    &BidWar{Every: Duration(6 * time.Hour), Away: Duration(10 * time.Minute)},
			Instances: []Instance{{Name: "a", Bid: 0.4}, {Name: "b", Bid: 0.5}, {Name: "c", Price: 1}},
		},
	}
	clouds, err := s.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer clouds.Stop()
	names := map[string]string{}
	ports := map[string]string{}
	for _, h := range clouds.hosts {
		names[h.id], ports[h.id] = h.name, h.instance.URL()
		if args := h.instance.Config().Args; !slices.Equal(args, []string{"--max-num-seqs", "48"}) { // of the default class
			t.Errorf("%s was started with %q: it does not tell how many sequences its engine runs at once", h.name, args)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	away, back := map[string]int{}, map[string]int{}
	clouds.Run(ctx, func(n News) {
		switch {
		case n.What != "outbid":
		case n.Undo:
			back[names[n.ID]]++
		default:
			away[names[n.ID]]++
		}
		if back["a"] >= 2 && back["b"] >= 2 {
			cancel()
		}
	})
	if back["a"] < 2 || back["b"] < 2 || away["a"] < back["a"] || away["b"] < back["b"] {
		t.Errorf("outbid %v, back %v: want both twice", away, back)
	}
	if away["c"] != 0 {
		t.Errorf("one that is rented on demand was outbid: %v", away)
	}
	for _, h := range clouds.hosts {
		if moved := h.instance.URL() != ports[h.id]; moved != (h.name != "c") {
			t.Errorf("%s moved: %v", h.name, moved)
		}
	}
}
