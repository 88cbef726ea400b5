//go:build race

package books

const underRace = true
