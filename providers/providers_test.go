package providers_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"headrace/providers"
	"headrace/router/endpoint"
)

// feed is a Discoverer that sends what the test tells it to.
type feed struct {
	sets chan []endpoint.Endpoint
	fail chan error
}

func newFeed() feed { return feed{make(chan []endpoint.Endpoint), make(chan error)} }

func (f feed) Run(ctx context.Context, out chan<- []endpoint.Endpoint) error {
	for {
		select {
		case s := <-f.sets:
			select {
			case out <- s:
			case <-ctx.Done():
				return ctx.Err()
			}
		case err := <-f.fail:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func TestRunMerges(t *testing.T) {
	a, b := newFeed(), newFeed()
	updates := make(chan []endpoint.Endpoint)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- providers.Run(ctx, []providers.Source{{Name: "a", Discoverer: a}, {Name: "b", Discoverer: b}}, func(eps []endpoint.Endpoint) { updates <- eps })
	}()
	expect := func(want ...endpoint.ID) {
		t.Helper()
		var got []endpoint.ID
		for _, ep := range <-updates {
			got = append(got, ep.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("fleet %v, want %v", got, want)
		}
	}
	b.sets <- []endpoint.Endpoint{{ID: "b:1"}}
	expect("b:1")
	a.sets <- []endpoint.Endpoint{{ID: "a:1"}, {ID: "a:2"}}
	expect("a:1", "a:2", "b:1")
	a.sets <- []endpoint.Endpoint{{ID: "a:2"}}
	expect("a:2", "b:1")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("after cancel: %v", err)
	}
}

func TestRunReportsTheSourceThatFailed(t *testing.T) {
	a, b := newFeed(), newFeed()
	boom := errors.New("boom")
	done := make(chan error)
	go func() {
		done <- providers.Run(t.Context(), []providers.Source{{Name: "a", Discoverer: a}, {Name: "b", Discoverer: b}}, func([]endpoint.Endpoint) {})
	}()
	b.fail <- boom
	if err := <-done; !errors.Is(err, boom) || err.Error() != "discover b: boom" {
		t.Errorf("got %v", err)
	}
}

// TestKnownStays keeps what a source found before until it reports.
func TestKnownStays(t *testing.T) {
	fast, slow := newFeed(), newFeed()
	fleets := make(chan []endpoint.Endpoint)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- providers.Run(ctx, []providers.Source{
			{Name: "fast", Discoverer: fast},
			{Name: "slow", Discoverer: slow, Known: []endpoint.Endpoint{{ID: "slow:old"}}},
		}, func(eps []endpoint.Endpoint) { fleets <- eps })
	}()
	fast.sets <- []endpoint.Endpoint{{ID: "fast:1"}}
	if eps := <-fleets; len(eps) != 2 || eps[1].ID != "slow:old" {
		t.Errorf("before the slow source reports: %v", eps)
	}
	slow.sets <- nil
	if eps := <-fleets; len(eps) != 1 || eps[0].ID != "fast:1" {
		t.Errorf("after it reported nothing: %v", eps)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
