//go:build !unix

// Package rawio reads and writes non-blocking sockets without telling Go's scheduler, on Linux only.
package rawio

import "net"

// Writer writes to one TCP connection.
type Writer struct{ c *net.TCPConn }

// Init makes w write to c.
func (w *Writer) Init(c *net.TCPConn) { w.c = c }

// Usable tells whether Init found a socket.
func (w *Writer) Usable() bool { return w.c != nil }

// Write writes all of p under the connection's write deadline.
func (w *Writer) Write(p []byte) (int, error) { return w.c.Write(p) }
