//go:build !linux

package forward

// stale tells whether the upstream closed an idle connection, or sent something nobody asked for.
// Under TLS it cannot be told cheaply here; a request that meets a connection closed while idle is
// sent again over a fresh one.
func stale(c *conn) bool { return c.touched() }
