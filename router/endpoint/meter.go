package endpoint

import (
	"sync"
	"time"
)

// Meter is what an endpoint's workers are billed for, as its provider finds out: by looks, by what their jobs tell, by its lists. The
// provider writes it, whoever books what endpoints cost reads it. It outlives the Endpoint that it is told with.
type Meter struct {
	mu sync.Mutex // guards r
	r  Reading
}

// Reading is a meter as it stood at some time. All of it counts from the provider's first look at the endpoint.
type Reading struct {
	At      time.Time // of the last look; zero before the first
	Up      int       // workers that were billed then
	Seconds float64   // of workers, billed by then. What is found out later corrects it, also to less
	Ahead   float64   // of Seconds: since At, which no look has confirmed
	Starts  int64     // workers that came up
	Cold    float64   // of Seconds: until they could work
	Doubt   float64   // of Seconds: what looks leave open
}

// Set puts a reading in the place of the last one.
func (m *Meter) Set(r Reading) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.r = r
}

// Read tells what the meter shows at now: workers that were up at the last look are taken to be up since.
func (m *Meter) Read(now time.Time) Reading {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.r
	if d := now.Sub(r.At); d > 0 && !r.At.IsZero() {
		r.Ahead = float64(r.Up) * d.Seconds()
		r.Seconds += r.Ahead
	}
	return r
}
