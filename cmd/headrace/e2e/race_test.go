//go:build race

package e2e_test

// raceFlag builds the gateway with the race detector when the tests have it too.
const raceFlag = "-race=true"
