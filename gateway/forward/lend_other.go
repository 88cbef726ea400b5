//go:build !unix

package forward

// lend does nothing here: a waiting connection holds its buffer.
func (c *conn) lend() {}

// touched cannot tell here.
func (c *conn) touched() bool { return false }
