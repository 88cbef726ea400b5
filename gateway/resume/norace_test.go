//go:build !race

package resume_test

const underRace = false
