// Package providers brings together what the single providers discover: one fleet of endpoints,
// rebuilt after every change.
package providers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"headrace/router/endpoint"
)

// Discoverer reports what one provider offers. Run sends the full set at once, then again after
// every change, until ctx is done; a failed poll sends nothing, so that the last good set stays in
// use. The receiver owns each slice it gets. Run never closes out.
type Discoverer interface {
	Run(ctx context.Context, out chan<- []endpoint.Endpoint) error
}

// Source is a Discoverer with the name its endpoints are merged under.
type Source struct {
	Name string
	Discoverer
	// Known is what it found before, as far as anybody knows: it stays in use until the source reports.
	Known []endpoint.Endpoint
}

// Run runs every source until ctx is done and calls update with the whole fleet after each change,
// one call at a time. It returns the first error of a source that ended by itself.
func Run(ctx context.Context, sources []Source, update func([]endpoint.Endpoint)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type report struct {
		from int
		eps  []endpoint.Endpoint
	}
	reports := make(chan report)
	failed := make(chan error, len(sources))
	var wg sync.WaitGroup
	defer wg.Wait()
	for i, src := range sources {
		out := make(chan []endpoint.Endpoint)
		wg.Go(func() {
			if err := src.Run(ctx, out); err != nil && !errors.Is(err, context.Canceled) {
				failed <- fmt.Errorf("discover %s: %w", src.Name, err)
			}
		})
		wg.Go(func() {
			for {
				select {
				case eps := <-out:
					select {
					case reports <- report{i, eps}:
					case <-ctx.Done():
						return
					}
				case <-ctx.Done():
					return
				}
			}
		})
	}
	sets := make([][]endpoint.Endpoint, len(sources))
	for i := range sources {
		sets[i] = sources[i].Known
	}
	for {
		select {
		case r := <-reports:
			sets[r.from] = r.eps
			update(slices.Concat(sets...))
		case err := <-failed:
			cancel()
			return err
		case <-ctx.Done():
			return nil
		}
	}
}
