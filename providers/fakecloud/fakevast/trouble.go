package fakevast

import (
	"bytes"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"headrace/providers/fakecloud"
)

// TroubleKind is how an answer of the Cloud's own goes wrong.
type TroubleKind uint8

// Kinds of trouble.
const (
	Down             TroubleKind = iota // the connection is reset
	Hang                                // no answer
	Status500                           // 500 with an error body
	HTML502                             // 502 with a page
	EmptyBody                           // 200 without a body
	MalformedJSON                       // 200 with JSON that is cut in the middle
	Status200Failure                    // 200 with success:false
	Deprecated410                       // 410 deprecated_endpoint
	TooMany                             // 429
	AuthError                           // 404 auth_error, whatever the key
	NullList                            // 200 with the list of instances null
	ErrorMsg                            // 200 with {"error_msg":…}
	Slow                                // the right answer, Delay late
)

// Trouble is a kind with when it strikes.
type Trouble struct {
	Kind  TroubleKind
	Call  string        // calls that begin so, as in Stats.Calls; "" for all
	After int           // calls that still pass
	Times int           // calls it strikes; 0 for all until the troubles are set anew
	Delay time.Duration // of the wall clock, for Slow
}

// SetTroubles replaces all troubles; without any the Cloud is well.
func (c *Cloud) SetTroubles(ts ...Trouble) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.troubles = nil
	for _, t := range ts {
		c.troubles = append(c.troubles, &t)
	}
}

// Outage makes all calls of the console end so, or no longer.
func (c *Cloud) Outage(kind TroubleKind, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.troubles = slices.DeleteFunc(c.troubles, func(t *Trouble) bool { return t.Kind == kind && t.Call == "" })
	if on {
		c.troubles = append(c.troubles, &Trouble{Kind: kind})
	}
}

// trouble returns what strikes a call.
func (c *Cloud) trouble(call string) (Trouble, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.troubles {
		_, path, _ := strings.Cut(call, " ")
		if !strings.HasPrefix(call, t.Call) || t.Call == "" && !strings.HasPrefix(path, "/") {
			continue
		}
		if t.After > 0 {
			t.After--
			continue
		}
		if t.Times > 0 {
			if t.Times--; t.Times == 0 {
				t.Times = -1
			}
		} else if t.Times < 0 {
			continue
		}
		return *t, true
	}
	return Trouble{}, false
}

// strike answers as t says; it says whether the right answer is to be given.
func (c *Cloud) strike(t Trouble, w http.ResponseWriter, r *http.Request, next func(http.ResponseWriter)) {
	c.books.update(func(s *Stats) { s.Troubled++ })
	switch t.Kind {
	case Down:
		reset(w)
	case Hang:
		select {
		case <-r.Context().Done():
		case <-c.ctx.Done():
		}
		panic(http.ErrAbortHandler)
	case Status500:
		writeError(w, http.StatusInternalServerError, "server_error", "Internal server error")
	case HTML502:
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusBadGateway)
		_, _ = w.Write([]byte("<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"))
	case EmptyBody:
		w.WriteHeader(http.StatusOK)
	case MalformedJSON:
		whole := &buffered{header: http.Header{}}
		next(whole)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(whole.body.Bytes()[:whole.body.Len()/2])
	case Status200Failure:
		writeError(w, http.StatusOK, "internal_error", "Something went wrong")
	case Deprecated410:
		writeError(w, http.StatusGone, "deprecated_endpoint", r.URL.Path+" is deprecated.")
	case TooMany:
		c.tooSoon(w, time.Second)
	case AuthError:
		writeError(w, http.StatusNotFound, "auth_error", "Invalid user key")
	case NullList:
		writeJSON(w, http.StatusOK, map[string]any{"success": true, "instances": nil, "results": nil, "next_token": nil})
	case ErrorMsg:
		writeJSON(w, http.StatusOK, map[string]any{"error_msg": "not ready"})
	case Slow:
		if fakecloud.Pause(r.Context(), t.Delay) == nil {
			next(w)
		}
	}
}

// reset ends the connection with RST.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if l, ok := conn.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = conn.Close()
}

// buffered keeps an answer.
type buffered struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (b *buffered) Header() http.Header         { return b.header }
func (b *buffered) WriteHeader(status int)      { b.status = status }
func (b *buffered) Write(p []byte) (int, error) { return b.body.Write(p) }

// noted passes an answer on and notes its status.
type noted struct {
	http.ResponseWriter
	status int
}

// Unwrap returns the writer below.
func (n *noted) Unwrap() http.ResponseWriter { return n.ResponseWriter }

// WriteHeader notes the status.
func (n *noted) WriteHeader(status int) {
	if n.status == 0 {
		n.status = status
	}
	n.ResponseWriter.WriteHeader(status)
}

// Write notes a status that nobody named.
func (n *noted) Write(p []byte) (int, error) {
	if n.status == 0 {
		n.status = http.StatusOK
	}
	return n.ResponseWriter.Write(p)
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
