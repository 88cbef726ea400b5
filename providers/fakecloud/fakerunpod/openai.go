package fakerunpod

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// openAI answers /v2/ID/openai/…: the request becomes a job, and its yields the answer.
func (q *call) openAI() {
	route := "/" + q.id
	var input []byte
	switch q.r.Method {
	case http.MethodGet:
		goOn, _ := q.platformFault()
		if !goOn {
			return
		}
		input = encode(map[string]string{"openai_route": route})
	case http.MethodPost:
		b, ok := q.body(maxRunSync)
		if !ok {
			return
		}
		goOn, lose := q.platformFault()
		if !goOn {
			return
		}
		if lose {
			defer reset(q.r)
		}
		if !json.Valid(b) {
			envelope(q.w, http.StatusBadRequest, "malformed request")
			return
		}
		input = append([]byte(`{"openai_route":`), encode(route)...)
		input = append(append(append(input, `,"openai_input":`...), b...), '}')
		if lose {
			q.e.mu.Lock()
			q.e.submit("sync-", input, policy{}, q.c.cfg.SyncRetention)
			q.e.mu.Unlock()
			return
		}
	default:
		envelope(q.w, http.StatusMethodNotAllowed, "method not allowed")
		return
	}
	q.e.mu.Lock()
	j := q.e.submit("sync-", input, policy{}, q.c.cfg.SyncRetention)
	q.e.mu.Unlock()
	var in struct {
		Body struct {
			Stream bool `json:"stream"`
		} `json:"openai_input"`
	}
	_ = json.Unmarshal(input, &in)
	q.relay(j, in.Body.Stream)
}

// relay sends a job's yields to the client as they come.
func (q *call) relay(j *job, stream bool) {
	edge := time.NewTimer(q.c.limit(q.c.cfg.EdgeFirstByte))
	defer edge.Stop()
	var cut <-chan time.Time
	if d := q.c.cfg.StreamCutAfter; d > 0 && stream {
		t := time.NewTimer(q.c.limit(d))
		defer t.Stop()
		cut = t.C
	}
	began := false
	flush := http.NewResponseController(q.w)
	for {
		q.e.mu.Lock()
		got, status, errText, changed := j.drain(), j.status, j.errText, j.changed.wait()
		_, known := q.e.jobs[j.id]
		q.e.mu.Unlock()
		for _, y := range got {
			text := asText(y)
			if !began {
				began = true
				edge.Stop()
				q.head(stream, y)
			}
			if _, err := q.w.Write(text); err != nil || flush.Flush() != nil {
				q.left(j)
			}
		}
		switch {
		case len(got) > 0:
			continue // a last status may have come with them
		case !terminal(status) && known:
		case !began && status == completed:
			q.head(stream, []byte("{}"))
			return
		case !began && q.c.cfg.QuoteError && errText != "":
			writeJSON(q.w, http.StatusInternalServerError, map[string]string{"error": errText})
			return
		case !began:
			envelope(q.w, http.StatusInternalServerError, "internal server error")
			return
		case status != completed && q.c.cfg.AbruptEnd:
			panic(http.ErrAbortHandler)
		default:
			return
		}
		select {
		case <-changed:
		case <-edge.C:
			if !began {
				timeout(q.w) // the job goes on
				return
			}
		case <-cut:
			if !began {
				timeout(q.w)
			}
			return
		case <-q.r.Context().Done():
			q.left(j)
		}
	}
}

// left ends a request whose client has left.
func (q *call) left(j *job) {
	if q.c.cfg.CancelOnDisconnect {
		q.e.mu.Lock()
		if !terminal(j.status) {
			j.stop()
			j.end(cancelled, "")
			q.e.move()
		}
		q.e.mu.Unlock()
	}
	panic(http.ErrAbortHandler)
}

func (q *call) head(stream bool, first json.RawMessage) {
	contentType := "application/json"
	if stream && len(first) > 0 && first[0] == '"' {
		contentType = "text/event-stream"
	}
	q.w.Header().Set("Content-Type", contentType)
	q.w.WriteHeader(http.StatusOK)
}

// asText is a yield on the wire: strings as they are, all else as JSON.
func asText(y json.RawMessage) []byte {
	var s string
	if strings.HasPrefix(string(y), `"`) && json.Unmarshal(y, &s) == nil {
		return []byte(s)
	}
	return y
}
