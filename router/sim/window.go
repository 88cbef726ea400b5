package sim

import (
	"math"
	"slices"
)

// Window is the scenario cut to some hours of its time, beginning from hours after its start: the same time of day, and of
// the events what falls into it. A trace of requests begins with the window all the same.
func (s Scenario) Window(from, hours float64) Scenario { //nolint:gocritic // a value, so that the scenario stays as it is
	s.Hours, s.Load.From = hours, math.Mod(s.Load.From+from, day)
	start, end := from*3600, (from+hours)*3600
	events := s.Events
	s.Events = nil
	for _, e := range events {
		switch {
		case e.At >= end, e.At+e.For < start && e.What != PriceTimes:
			continue
		case e.At < start:
			e.For = max(0, e.At+e.For-start)
			e.At = 0
		default:
			e.At -= start
		}
		s.Events = append(s.Events, e)
	}
	s.Hosts = slices.Clone(s.Hosts)
	return s
}

// Busiest is the scenario cut to the hours around noon, when its day's load is highest; whole when it is no longer than that.
func (s Scenario) Busiest(hours float64) Scenario { //nolint:gocritic // likewise
	if hours >= s.Hours {
		s.Hours = hours
		return s
	}
	from := math.Mod(day/2-hours/2-s.Load.From+2*day, day)
	return s.Window(min(from, s.Hours-hours), hours)
}
