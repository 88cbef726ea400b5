package fakevast

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// runRoutes serves the serverless engine.
func (c *Cloud) runRoutes() http.Handler {
	mux := http.NewServeMux()
	handle := func(method, path string, f func(w http.ResponseWriter, r *http.Request, body []byte)) {
		name := method + " run" + path
		mux.HandleFunc(method+" "+path+"{$}", func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			n := &noted{ResponseWriter: w}
			defer func() {
				c.books.add(Request{
					At: time.Now(), Call: name, Method: method, Path: r.URL.Path, Query: r.URL.RawQuery, Header: r.Header, Body: body, Status: n.status,
				})
			}()
			if t, ok := c.trouble(name); ok {
				c.strike(t, n, r, func(w http.ResponseWriter) { f(w, r, body) })
				return
			}
			f(n, r, body)
		})
	}
	handle(http.MethodPost, "/route/", c.route)
	handle(http.MethodPost, "/get_endpoint_workers/", c.endpointWorkers)
	handle(http.MethodGet, "/pubkey/", func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		der, err := x509.MarshalPKIXPublicKey(&c.signer().PublicKey)
		if err != nil {
			panic("BUG: " + err.Error())
		}
		w.Header().Set("Content-Type", "text/plain")
		_ = pem.Encode(w, &pem.Block{Type: "PUBLIC KEY", Bytes: der})
	})
	return mux
}

func newSigner() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return key
}

// routeBody is what a worker is asked for with.
type routeBody struct {
	Endpoint string      `json:"endpoint"`
	APIKey   string      `json:"api_key"`
	Cost     json.Number `json:"cost"`
	Idx      int64       `json:"request_idx"`
}

// routeReply tells where a request is to go.
type routeReply struct {
	Endpoint  string      `json:"endpoint"`
	Status    string      `json:"status,omitempty"`
	URL       string      `json:"url,omitempty"`
	Cost      json.Number `json:"cost,omitempty"`
	ReqNum    int64       `json:"reqnum,omitempty"`
	Signature string      `json:"signature,omitempty"`
	Idx       int64       `json:"request_idx"`
	RequestID string      `json:"__request_id"`
}

// route is POST /route/.
func (c *Cloud) route(w http.ResponseWriter, r *http.Request, body []byte) {
	var b routeBody
	if err := json.Unmarshal(body, &b); err != nil {
		writeJSON(w, http.StatusBadRequest, map[string]any{"error": "malformed body"})
		return
	}
	if b.APIKey == "" {
		b.APIKey = keyOf(r)
	}
	cost, err := b.Cost.Float64()
	if b.Endpoint == "" || err != nil {
		writeJSON(w, http.StatusBadRequest, map[string]any{"error": "endpoint and cost are required"})
		return
	}
	c.mu.Lock()
	s := c.endpointNamed(b.Endpoint)
	if s == nil || b.APIKey != s.cfg.APIKey {
		c.mu.Unlock()
		c.books.update(func(s *Stats) { s.Denied++ })
		writeJSON(w, http.StatusUnauthorized, map[string]any{"error": "Unauthorized"})
		return
	}
	reply := s.assign(b.Idx, cost, b.Cost)
	old := s.cfg.Old
	c.mu.Unlock()
	if reply.URL != "" {
		reply.Signature = c.sign(reply.message(old))
	}
	writeJSON(w, http.StatusOK, reply)
}

// assign gives a request a worker, or its place in the queue. The caller holds c.mu.
func (s *Serverless) assign(idx int64, cost float64, text json.Number) *routeReply {
	if idx == 0 {
		s.nextIdx++
		idx = s.nextIdx
	}
	if _, queued := s.queue[idx]; !queued {
		s.counted++
		s.queue[idx] = cost
	}
	s.use()
	reply := &routeReply{Endpoint: s.cfg.Name, Idx: idx, RequestID: s.c.hex(32)}
	w := s.best()
	if s.notReady > 0 {
		s.notReady--
		w = nil
	}
	if w == nil || s.cfg.State != "active" {
		s.recruit()
		counts := map[string]int{}
		for _, w := range s.workers {
			counts[w.word()]++
		}
		reply.Status = fmt.Sprintf("total workers: %d, %v", len(s.workers), counts)
		return reply
	}
	delete(s.queue, idx)
	s.routed++
	s.reqnum++
	reply.URL, reply.Cost, reply.ReqNum = w.i.host.URL(), text, s.reqnum
	return reply
}

// best is the idle worker with the least to do.
func (s *Serverless) best() *Worker {
	var best *Worker
	for _, w := range s.workers {
		if w.word() == "idle" && (best == nil || w.load < best.load) {
			best = w
		}
	}
	return best
}

// word is the state of the worker.
func (w *Worker) word() string {
	if w.status == "idle" && (w.i.gone || w.i.v.shown() != "running") {
		return "unavail"
	}
	return w.status
}

// message is the text of a reply that is signed: the url, or with old workers all but the signature.
func (r *routeReply) message(old bool) string {
	if !old {
		return signed([]field{{"url", quote(r.URL)}})
	}
	return signed([]field{
		{"cost", r.Cost.String()}, {"endpoint", quote(r.Endpoint)}, {"reqnum", strconv.FormatInt(r.ReqNum, 10)}, {"url", quote(r.URL)},
	})
}

type field struct{ name, value string }

func quote(s string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // of a string, into memory
	return strings.TrimSuffix(b.String(), "\n")
}

// signed is JSON with an indent of four, as Python writes it.
func signed(fields []field) string {
	lines := make([]string, len(fields))
	for i, f := range fields {
		lines[i] = "    " + quote(f.name) + ": " + f.value
	}
	return "{\n" + strings.Join(lines, ",\n") + "\n}"
}

func (c *Cloud) sign(message string) string {
	sum := sha256.Sum256([]byte(message))
	sig, err := rsa.SignPKCS1v15(nil, c.signer(), crypto.SHA256, sum[:])
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return base64.StdEncoding.EncodeToString(sig)
}

func (c *Cloud) verify(message, signature string) bool {
	sig, err := base64.StdEncoding.DecodeString(signature)
	if err != nil {
		return false
	}
	sum := sha256.Sum256([]byte(message))
	return rsa.VerifyPKCS1v15(&c.signer().PublicKey, crypto.SHA256, sum[:], sig) == nil
}

// endpointWorkers is POST /get_endpoint_workers/. It takes the endpoint's key and the account's.
func (c *Cloud) endpointWorkers(w http.ResponseWriter, r *http.Request, body []byte) {
	var b struct {
		ID     int64  `json:"id"`
		APIKey string `json:"api_key"`
	}
	if json.Unmarshal(body, &b) != nil {
		writeJSON(w, http.StatusBadRequest, map[string]any{"error": "malformed body"})
		return
	}
	if b.APIKey == "" {
		b.APIKey = keyOf(r)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.endpointByID(b.ID)
	if s == nil || s.unlisted || !slices.Contains([]string{s.cfg.APIKey, c.cfg.APIKey}, b.APIKey) {
		writeJSON(w, http.StatusOK, map[string]any{"error_msg": "endpoint not found or not ready"})
		return
	}
	list := []any{}
	for _, x := range s.workers {
		word := x.word()
		if s.cfg.UpperWords {
			word = strings.ToUpper(word)
		}
		measured := x.perf
		if word != "idle" && word != "IDLE" {
			measured = 106.6 // DLPerf stands in for it
		}
		list = append(list, map[string]any{
			"id": x.i.cfg.ID, "status": word, "cur_load": x.load, "new_load": 0, "cur_load_rolling_avg": x.load, "cur_perf": x.perf,
			"perf": measured * x.i.cfg.Reliability, "measured_perf": measured, "dlperf": 106.6, "reliability": x.i.cfg.Reliability,
			"reqs_working": x.working, "disk_usage": 30.0, "loaded_at": x.loaded, "started_at": 0.0,
		})
	}
	writeJSON(w, http.StatusOK, list)
}
