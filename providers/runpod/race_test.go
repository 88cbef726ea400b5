//go:build race

package runpod

const raceEnabled = true
