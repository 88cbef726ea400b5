//go:build race

package vast

const raceEnabled = true // what is measured is the race detector's cost then
