package h1

import (
	"errors"
	"io"
	"net"
	"net/url"
	"testing"
)

// answer gives a Conn whose peer sends raw in pieces of the given size and then closes.
func answer(t *testing.T, raw string, size int) *Conn {
	t.Helper()
	client, server := net.Pipe()
	t.Cleanup(func() { _ = client.Close() })
	go func() {
		for p := []byte(raw); len(p) > 0; {
			k := min(size, len(p))
			if _, err := server.Write(p[:k]); err != nil {
				return
			}
			p = p[k:]
		}
		_ = server.Close()
	}()
	return NewConn(client, 256)
}

func TestReadAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		raw  string
		head Head
		body string
	}{
		"chunked":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed, Head{Status: 200, Length: -1, Chunked: true}, "hello 0123456789"},
		"length":         {"HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\n\r\nabc", Head{Status: 404, Length: 3}, "abc"},
		"length, closed": {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", Head{Status: 200, Close: true}, ""},
		"to the end":     {"HTTP/1.1 200 OK\r\n\r\nabc", Head{Status: 200, Length: -1, Close: true}, "abc"},
		"HTTP/1.0":       {"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", Head{Status: 200, Length: 1, Close: true}, "a"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{1, 7, len(tc.raw)} {
				c := answer(t, tc.raw, size)
				h, err := c.ReadHead()
				if err != nil || h != tc.head {
					t.Fatalf("pieces of %d: head %+v, %v; want %+v", size, h, err, tc.head)
				}
				var body []byte
				if err := c.ReadBody(h, func(p []byte) { body = append(body, p...) }); err != nil || string(body) != tc.body {
					t.Fatalf("pieces of %d: body %q, %v; want %q", size, body, err, tc.body)
				}
			}
		})
	}
}

func TestReadAnswerFails(t *testing.T) {
	for name, tc := range map[string]struct {
		raw  string
		want error // nil: any
	}{
		"no HTTP":              {"SSH-2.0-OpenSSH_9.2\r\n\r\n", nil},
		"no status":            {"HTTP/1.1 OK and more\r\n\r\n", nil},
		"cut in the head":      {"HTTP/1.1 200 OK\r\nContent-", io.ErrUnexpectedEOF},
		"cut in the body":      {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", io.ErrUnexpectedEOF},
		"cut in a chunk":       {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", io.ErrUnexpectedEOF},
		"no last chunk":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", io.ErrUnexpectedEOF},
		"two framings":         {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n", nil},
		"negative length":      {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", nil},
		"bytes after the body": {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc", nil},
		"bytes after chunks":   {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nabc", nil},
	} {
		t.Run(name, func(t *testing.T) {
			c := answer(t, tc.raw, len(tc.raw))
			h, err := c.ReadHead()
			if err == nil {
				err = c.ReadBody(h, func([]byte) {})
			}
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func TestLoopbackOnly(t *testing.T) {
	for _, host := range []string{"127.0.0.1:80", "127.8.9.10", "[::1]:8080"} {
		u := &url.URL{Scheme: "http", Host: host}
		if _, err := LoopbackAddr(u); err != nil {
			t.Errorf("%s was refused: %v", host, err)
		}
	}
	for _, host := range []string{"10.0.0.1", "example.org", "localhost:80", "192.168.1.1", "0.0.0.0:80", "[::]:80", "", ":80", "127.0.0.1.nip.io"} {
		u := &url.URL{Scheme: "http", Host: host}
		if addr, err := LoopbackAddr(u); err == nil {
			t.Errorf("%q was taken as %s", host, addr)
		}
		if c, err := Dial(host, 64); err == nil {
			t.Errorf("%q was dialed", host)
			_ = c.Close()
		}
	}
	if _, err := LoopbackAddr(&url.URL{Scheme: "https", Host: "127.0.0.1"}); err == nil {
		t.Error("https was taken")
	}
}
