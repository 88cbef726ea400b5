package serverless_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

var signer = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

type rootCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// authority is Vast.ai's root: it lacks the keyCertSign usage, so crypto/x509 alone refuses it.
var authority = sync.OnceValue(func() (a rootCA) {
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Vast.ai Jupyter Root"}, NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: 1, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key)
	if err != nil {
		panic(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	return a
})

// workerCert is a worker's certificate for 0.0.0.0, below the root or, with self, its own.
func workerCert(t *testing.T, self bool) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "pyworker.vast.ai"}, NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(1, 0, 0),
		IPAddresses: []net.IP{net.IPv4zero}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	parent, by := authority().cert, authority().key
	if self {
		parent, by = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// worker is a pyworker: it checks the route, unwraps the payload and hands it to its model.
type worker struct {
	f     *fake
	srv   *httptest.Server
	url   string
	old   bool // signs more, and takes a route once only
	bare  bool // hands on the payload as it is, as SDK workers do; else "input" is wanted
	model http.HandlerFunc

	mu    sync.Mutex // guards all below
	fault func(w http.ResponseWriter, r *http.Request, n int) bool
	got   [][]byte // whole bodies
	seen  map[int64]bool
	busy  int
}

func (f *fake) addWorker(secure bool, model http.HandlerFunc) *worker {
	f.t.Helper()
	if !secure {
		return f.addWorkerWith(nil, model)
	}
	cert := workerCert(f.t, false)
	return f.addWorkerWith(&cert, model)
}

func (f *fake) addWorkerWith(cert *tls.Certificate, model http.HandlerFunc) *worker {
	f.t.Helper()
	k := &worker{f: f, model: model, seen: map[int64]bool{}}
	k.srv = httptest.NewUnstartedServer(http.HandlerFunc(k.serve))
	k.srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	if cert != nil {
		k.srv.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
		k.srv.StartTLS()
	} else {
		k.srv.Start()
	}
	k.url = k.srv.URL
	f.t.Cleanup(k.srv.Close)
	f.set(func() { f.fleet = append(f.fleet, k) })
	return k
}

func (k *worker) set(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change()
}

func (k *worker) calls() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.got)
}

func (k *worker) serve(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if dump := fmt.Sprint(r.Header, r.URL, string(b)); strings.Contains(dump, endpointKey) || strings.Contains(dump, accountKey) {
		k.f.t.Errorf("a worker, who is a stranger, was told a key: %s", dump)
	}
	if e := r.Header.Get("Accept-Encoding"); e != "identity" {
		k.f.t.Errorf("accept-encoding %q", e)
	}
	k.mu.Lock()
	k.got = append(k.got, b)
	n, fault := len(k.got), k.fault
	k.busy++
	k.mu.Unlock()
	defer k.set(func() { k.busy-- })
	if fault != nil && fault(w, r, n) {
		return
	}
	var q struct {
		Auth    map[string]any  `json:"auth_data"`
		Session *string         `json:"session_id"`
		Payload json.RawMessage `json:"payload"`
	}
	if err := json.Unmarshal(b, &q); err != nil || !bytes.Contains(b, []byte(`"session_id":null`)) {
		k.f.t.Errorf("%v in %s", err, b)
	}
	for _, key := range []string{"cost", "endpoint", "reqnum", "request_idx", "signature", "url"} {
		if q.Auth[key] == nil {
			reply(w, 422, map[string]any{"auth_data": map[string]any{key: "missing parameter"}})
			return
		}
	}
	sig, _ := base64.StdEncoding.DecodeString(q.Auth["signature"].(string))
	h := sha256.Sum256(signed(q.Auth, k.old))
	num := int64(q.Auth["reqnum"].(float64))
	k.mu.Lock()
	again := k.seen[num]
	k.seen[num] = true
	k.mu.Unlock()
	if rsa.VerifyPKCS1v15(&signer().PublicKey, crypto.SHA256, h[:], sig) != nil || k.old && again {
		w.WriteHeader(401)
		return
	}
	payload := []byte(q.Payload)
	if !k.bare {
		var in struct {
			Input json.RawMessage `json:"input"`
		}
		if json.Unmarshal(payload, &in) != nil || in.Input == nil {
			reply(w, 422, map[string]any{"payload": map[string]any{"input": "missing parameter"}})
			return
		}
		payload = in.Input
	}
	r2 := r.Clone(r.Context())
	r2.Body = io.NopCloser(bytes.NewReader(payload))
	k.model(w, r2)
}

// chat is a model server: it wants messages and streams, or answers at once.
func chat(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Messages []any `json:"messages"`
		Stream   bool  `json:"stream"`
	}
	b, _ := io.ReadAll(r.Body)
	if err := json.Unmarshal(b, &q); err != nil || q.Messages == nil {
		reply(w, 400, map[string]any{"error": map[string]any{"message": "[{'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required'}]", "type": "BadRequestError", "code": 400}})
		return
	}
	if !q.Stream {
		reply(w, 200, map[string]any{"id": "c1", "object": "chat.completion", "choices": []any{map[string]any{"index": 0, "message": map[string]any{"content": "hello"}, "finish_reason": "stop"}}})
		return
	}
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	for _, p := range strings.SplitAfter(answer, "\n\n") {
		fmt.Fprint(w, p)
		_ = http.NewResponseController(w).Flush()
	}
}

const answer = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hel\"},\"finish_reason\":null}]}\n\n" +
	"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"lo 🦊\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n"

const (
	streaming = `{"messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":64}`
	plain     = `{"messages":[{"role":"user","content":"hi"}]}`
)

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
