// Package x is for cmd/headrace alone.
package x
