//go:build !race

package runpod

const raceEnabled = false
