//go:build race

package admission

const raceOn = true
