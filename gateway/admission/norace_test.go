//go:build !race

package admission

const raceOn = false
