package load

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"headrace/cmd/loadgen/internal/h1"
	"headrace/cmd/loadgen/internal/mock"
)

const controlTimeout = 5 * time.Second

// Configure gives the mock at base (http://127.0.0.1:PORT) its settings for the next run and returns
// its process id.
func Configure(base string, s mock.Settings) (pid int, err error) {
	u, err := url.Parse(base)
	if err != nil {
		return 0, err
	}
	addr, err := h1.LoopbackAddr(u)
	if err != nil {
		return 0, fmt.Errorf("mock: %w", err)
	}
	c, err := h1.Dial(addr, 4096)
	if err != nil {
		return 0, fmt.Errorf("mock: %w", err)
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(controlTimeout)); err != nil {
		return 0, err
	}
	if err := c.Write(fmt.Appendf(nil, "POST /control?%s HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n\r\n", s.Query(), u.Host)); err != nil {
		return 0, fmt.Errorf("mock: %w", err)
	}
	h, err := c.ReadHead()
	if err != nil {
		return 0, fmt.Errorf("mock: %w", err)
	}
	var body []byte
	if err := c.ReadBody(h, func(p []byte) { body = append(body, p...) }); err != nil {
		return 0, fmt.Errorf("mock: %w", err)
	}
	if h.Status != http.StatusOK {
		return 0, fmt.Errorf("mock refused the settings: %s", body)
	}
	return strconv.Atoi(string(body))
}
