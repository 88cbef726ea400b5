// Package stray has no room.
package stray
