package listen

import (
	"errors"
	"os"
	"time"
)

// deadlines keeps what the server asks for apart from what the kernel's poller was told. A server
// sets three deadlines a request, 300 ns each, and nearly none of them ever matters: most reads find
// their bytes waiting. So the poller is told only before a read or write that may wait, and not even
// then when a deadline is in force that ends a little earlier; what that ends too early goes on.
type deadlines struct {
	read, write       time.Time // asked for; zero for none
	readSet, writeSet time.Time // told
}

// slack is how much earlier than asked a read or write may be looked at again.
const slack = 4 * time.Second

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	c.dl.read = t
	return c.SetWriteDeadline(t)
}

// SetReadDeadline sets the deadline of reads that begin after it.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.dl.read = t
	return nil
}

// SetWriteDeadline sets the deadline of writes that begin after it; to have none any more waits until what is kept is sent. Whoever closes
// an idle connection may do so beside the owner's Read, which sends what is kept; then that goes on as it began.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if k := &c.kept; k.mu.TryLock() {
		if k.endless = t.IsZero() && k.buf != nil; !k.endless {
			c.dl.write = t
		}
		k.mu.Unlock()
	}
	return nil
}

// inForce tells whether set will do for asked.
func inForce(set, asked time.Time) bool {
	if asked.IsZero() || set.IsZero() {
		return asked.IsZero() == set.IsZero()
	}
	d := asked.Sub(set)
	return d >= 0 && d <= slack
}

// armRead tells the poller of the read deadline.
func (c *Conn) armRead() {
	if !inForce(c.dl.readSet, c.dl.read) {
		c.dl.readSet = c.dl.read
		_ = c.TCPConn.SetReadDeadline(c.dl.read) // fails on a closed connection only, as the read will
	}
}

// armWrite tells the poller of the write deadline.
func (c *Conn) armWrite() {
	if !inForce(c.dl.writeSet, c.dl.write) {
		c.dl.writeSet = c.dl.write
		_ = c.TCPConn.SetWriteDeadline(c.dl.write) // fails on a closed connection only, as the write will
	}
}

// tooSoon tells whether err is a deadline that nobody asked for yet.
func tooSoon(err error, asked, set time.Time) bool {
	return err != nil && errors.Is(err, os.ErrDeadlineExceeded) && !set.Equal(asked) && (asked.IsZero() || time.Now().Before(asked))
}

// tooEarly tells whether err is a read deadline that nobody asked for yet, and corrects it.
func (c *Conn) tooEarly(err error) bool {
	if !tooSoon(err, c.dl.read, c.dl.readSet) {
		return false
	}
	c.dl.readSet = c.dl.read
	_ = c.TCPConn.SetReadDeadline(c.dl.read)
	return true
}

// send writes p to the client.
func (c *Conn) send(p []byte) (int, error) {
	c.armWrite()
	n, err := c.writeTCP(p)
	for tooSoon(err, c.dl.write, c.dl.writeSet) {
		c.dl.writeSet = c.dl.write
		_ = c.TCPConn.SetWriteDeadline(c.dl.write)
		var more int
		more, err = c.writeTCP(p[n:])
		n += more
	}
	return n, err
}

func (c *Conn) writeTCP(p []byte) (int, error) {
	if c.out.Usable() {
		return c.out.Write(p)
	}
	return c.TCPConn.Write(p)
}

// readTCP reads under the deadline asked for.
func (c *Conn) readTCP(p []byte) (int, error) {
	for {
		c.armRead()
		n, err := c.TCPConn.Read(p)
		if n == 0 && c.tooEarly(err) {
			continue
		}
		return n, err
	}
}
