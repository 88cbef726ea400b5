//go:build !linux

package forward

// stale cannot be told cheaply here; a request that meets a connection closed while idle is sent
// again over a fresh one.
func stale(*conn) bool { return false }
