package vast

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"headrace/router/endpoint"
)

// An address says nothing of who answers there: it may be another tenant's tomorrow. Before any prompt goes to a host, and again
// whenever that may have changed, its GET /v1/models is asked, first with a key made up for the occasion. A server that
// refuses it and takes the instance's key is the instance's own; one that answers anybody is taken for it, marked as open,
// unless it was started with a key or has asked for one before. An instance's keys are shown to no server that did not refuse
// the made-up one with 401 or 403. Over plain HTTP a stranger who refuses it as well gets to see the key: that much cannot be
// closed without TLS, and is why an instance's own keys, good for that instance alone, are better than one for all.

// question is what a check needs to know of an instance.
type question struct {
	addrs     []address
	keys      []bearer
	models    []string // ids to offer, nil for all
	pin       string   // of the certificate it showed before, "" when it showed none
	mustAsk   bool     // it has asked for its key before
	contested string   // another instance that claims the same address: keys are then those that it does not share
}

// finding is what a check found.
type finding struct {
	ok     bool
	reason string // why it is not, in plain words
	// certain says that what answered is not ready or not ours, so that no second look is needed to take the host out.
	certain bool

	addr   address
	base   string // where it answered, without /v1
	tls    endpoint.TLS
	key    endpoint.Secret
	keyed  bool // it refused a wrong key and took this one
	served []endpoint.Served
}

func no(certain bool, format string, args ...any) finding {
	return finding{certain: certain, reason: fmt.Sprintf(format, args...)}
}

// checker asks instances who they are.
type checker struct {
	pattern string
	mode    TLSMode
	timeout time.Duration
	root    func(context.Context) (string, error) // Vast.ai's root certificate, as PEM
}

// check asks each address in turn until one answers as the instance's model server. Otherwise the first one's failure is
// what is told: it is the likeliest place.
func (c *checker) check(ctx context.Context, q *question) finding {
	var first finding
	for i, a := range q.addrs {
		f := c.ask(ctx, q, a)
		if f.ok {
			return f
		}
		if i == 0 || first.reason == "" {
			first = f
		}
	}
	if n := len(q.addrs); n > 1 {
		first.reason += fmt.Sprintf(" (and %d more mapped ports are no model server either)", n-1)
	}
	return first
}

// ask asks one address, with TLS as the mode says.
func (c *checker) ask(ctx context.Context, q *question, a address) finding {
	base := a.url(c.pattern)
	switch c.mode {
	case TLSPlain:
		return c.askAs(ctx, q, a, base, endpoint.TLS{})
	case TLSSystem:
		return c.askAs(ctx, q, a, secure(base), endpoint.TLS{})
	case TLSInsecure:
		return c.askAs(ctx, q, a, secure(base), endpoint.TLS{InsecureSkipVerify: true})
	case TLSVast:
		return c.askVast(ctx, q, a, base)
	case TLSPin:
		pin := q.pin
		if pin == "" {
			var err error
			if pin, err = c.leaf(ctx, secure(base)); err != nil {
				return no(false, "%s", c.plainly(a, err))
			}
		}
		return c.askAs(ctx, q, a, secure(base), endpoint.TLS{Pin: pin})
	case TLSAuto:
	}
	if strings.HasPrefix(base, "https://") {
		return c.askVast(ctx, q, a, base)
	}
	f := c.askAs(ctx, q, a, base, endpoint.TLS{})
	if f.reason == wantsTLS {
		return c.askVast(ctx, q, a, base)
	}
	return f
}

func (c *checker) askVast(ctx context.Context, q *question, a address, base string) finding {
	root, err := c.root(ctx)
	if err != nil {
		return no(false, "Vast.ai's root certificate could not be fetched")
	}
	return c.askAs(ctx, q, a, secure(base), endpoint.TLS{Roots: root, AnyName: true})
}

func secure(base string) string {
	if rest, ok := strings.CutPrefix(base, "http://"); ok {
		return "https://" + rest
	}
	return base
}

const wantsTLS = "it speaks TLS"

// askAs asks who answers at base: once with a key that nobody has, then with the instance's.
func (c *checker) askAs(ctx context.Context, q *question, a address, base string, t endpoint.TLS) finding {
	u, err := url.Parse(base)
	if err != nil {
		return no(true, "its address is none: %s", base)
	}
	cfg, err := t.Config(u.Hostname())
	if err != nil {
		return no(false, "the certificates to trust cannot be used: %v", err)
	}
	tr := &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10}
	client := &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	made := rand.Text()
	f := c.models(ctx, client, a, base, endpoint.Secret(made))
	f.addr, f.base, f.tls = a, base, t
	if f.ok {
		switch {
		case q.contested != "":
			return no(true, "%s claims the same address, and what answers there asks for no key that would tell them apart", q.contested)
		case q.mustAsk:
			return no(true, "what answers at %s asks for no key, which this instance's server does: it is another", a.key())
		case slices.ContainsFunc(q.keys, func(b bearer) bool { return b.told }):
			return no(true, "what answers at %s asks for no key, but the instance was started with one: it is another", a.key())
		}
		return f.offer(q)
	}
	if f.reason != denied {
		return f
	}
	if len(q.keys) == 0 && q.contested != "" {
		return no(true, "%s claims the same address, and no key tells them apart", q.contested)
	}
	if len(q.keys) == 0 {
		return no(true, "its server at %s asks for a key that neither the config nor the instance's settings name", a.key())
	}
	for _, b := range q.keys {
		f = c.models(ctx, client, a, base, b.key)
		f.addr, f.base, f.tls, f.key, f.keyed = a, base, t, b.key, true
		if f.ok {
			return f.offer(q)
		}
		if f.reason != denied {
			return f
		}
	}
	if q.contested != "" {
		return no(true, "%s claims the same address, and what answers there takes no key that is this instance's alone", q.contested)
	}
	return no(true, "its server at %s refuses the keys that the config and the instance's settings name", a.key())
}

// offer keeps the models that are to be offered.
func (f finding) offer(q *question) finding {
	if len(q.models) == 0 {
		return f
	}
	all := f.served
	f.served = slices.DeleteFunc(slices.Clone(all), func(s endpoint.Served) bool { return !slices.Contains(q.models, s.Name) })
	if len(f.served) == 0 {
		names := make([]string, 0, len(all))
		for _, s := range all {
			names = append(names, s.Name)
		}
		return no(true, "it serves %s, none of which is to be offered", clip(strings.Join(names, ", "), 120))
	}
	return f
}

const denied = "it refuses the key"

const (
	maxModelsBytes = 1 << 20 // of a list of models; it comes from a stranger's machine
	maxModels      = 256
	maxName        = 256 // bytes of a model's id
)

// models asks GET /v1/models (https://platform.openai.com/docs/api-reference/models/list).
func (c *checker) models(ctx context.Context, client *http.Client, a address, base string, key endpoint.Secret) finding {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v1/models", nil)
	if err != nil {
		return no(true, "its address is none: %s", base)
	}
	req.Header.Set("Authorization", "Bearer "+key.Reveal())
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Accept-Encoding", "identity") // Caddy in Vast.ai's images compresses unless told not to
	req.Header.Set("User-Agent", "headrace")
	res, err := client.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		if c.mode == TLSAuto && req.URL.Scheme == "http" && speaksTLS(ctx, req.URL.Host, err) {
			return no(true, wantsTLS)
		}
		return no(false, "%s", c.plainly(a, err))
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxModelsBytes+1))
	if err != nil {
		return no(false, "its server at %s breaks its answer off", a.key())
	}
	return read(a, res, body)
}

// read judges an answer to GET /v1/models; the first line that fits counts.
func read(a address, res *http.Response, body []byte) finding {
	html := strings.HasPrefix(res.Header.Get("Content-Type"), "text/html")
	switch s := res.StatusCode; {
	case res.Header.Get("X-Portal-Placeholder") != "": // with 502, or 200 through a Cloudflare tunnel
		return no(true, "the portal at %s says that the model server behind it is not up", a.key())
	case s >= 300 && s < 400 && strings.HasPrefix(res.Header.Get("Location"), "https://"):
		return no(true, wantsTLS) // Caddy with ENABLE_HTTPS
	case s == http.StatusBadRequest && strings.Contains(strings.ToLower(string(body)), "https"): // "… sent an HTTP request to an HTTPS server"
		return no(true, wantsTLS)
	case s == http.StatusUnauthorized || s == http.StatusForbidden:
		return no(true, denied)
	case s == http.StatusTooManyRequests || s >= 500:
		return no(false, "its server at %s answers %d: not up, or in trouble", a.key(), s)
	case s != http.StatusOK:
		return no(true, "what answers at %s is no OpenAI server: GET /v1/models gives %d", a.key(), s)
	case html:
		return no(true, "what answers at %s is no OpenAI server: GET /v1/models gives a web page", a.key())
	case len(body) > maxModelsBytes:
		return no(true, "what answers at %s is no OpenAI server: its list of models is larger than 1 MiB", a.key())
	}
	served, ok := parseModels(body)
	switch {
	case !ok:
		return no(true, "what answers at %s is no OpenAI server: GET /v1/models gives no list of models", a.key())
	case len(served) == 0:
		return no(true, "its server at %s has no model yet", a.key())
	}
	return finding{ok: true, served: served}
}

// parseModels reads a list of models; ok is false when it is none.
func parseModels(body []byte) (served []endpoint.Served, ok bool) {
	var list struct {
		Data *[]json.RawMessage `json:"data"`
	}
	if json.Unmarshal(body, &list) != nil || list.Data == nil {
		return nil, false
	}
	for _, card := range *list.Data {
		var m struct {
			ID     string `json:"id"`
			MaxLen number `json:"max_model_len"`
		}
		if json.Unmarshal(card, &m) != nil || m.ID == "" || len(m.ID) > maxName || len(served) == maxModels {
			continue // one odd entry does not hide the others
		}
		s := endpoint.Served{Name: m.ID, Card: steady(card)}
		if m.MaxLen.v > 0 && m.MaxLen.v < 1<<31 {
			s.MaxContext = int(m.MaxLen.v)
		}
		served = append(served, s)
	}
	if len(served) == 0 && len(*list.Data) > 0 {
		return nil, false
	}
	slices.SortFunc(served, func(a, b endpoint.Served) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(served, func(a, b endpoint.Served) bool { return a.Name == b.Name }), true
}

// steady drops from a model's card what vLLM makes anew for every answer, so that the same model gives the same card.
func steady(card json.RawMessage) json.RawMessage {
	var m map[string]json.RawMessage
	if json.Unmarshal(card, &m) != nil {
		return nil
	}
	delete(m, "created")
	delete(m, "permission")
	b, err := json.Marshal(m)
	if err != nil {
		return nil
	}
	return b
}

// leaf returns the SHA-256 of the certificate that a server shows, whoever signed it.
func (c *checker) leaf(ctx context.Context, base string) (string, error) {
	u, err := url.Parse(base)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}} //nolint:gosec // it is only looked at; what is sent goes over a pinned connection
	conn, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	tc, ok := conn.(*tls.Conn)
	if !ok || len(tc.ConnectionState().PeerCertificates) == 0 {
		return "", errors.New("no certificate was shown")
	}
	sum := sha256.Sum256(tc.ConnectionState().PeerCertificates[0].Raw)
	return hex.EncodeToString(sum[:]), nil
}

// speaksTLS finds out whether a port that gave no HTTP answer, but could be connected to, speaks TLS.
func speaksTLS(ctx context.Context, host string, err error) bool {
	if _, dial := errors.AsType[*net.OpError](err); dial && !errors.Is(err, syscall.ECONNRESET) || ctx.Err() != nil {
		return false
	}
	d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}} //nolint:gosec // nothing is sent
	conn, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// plainly says why no answer came, in words for an operator, in one line.
func (c *checker) plainly(a address, err error) string {
	at := a.key().String()
	var ne net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens at " + at + " (connection refused)"
	case errors.Is(err, endpoint.ErrPin):
		return "the server at " + at + " shows another certificate than the one it is known by"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return at + " does not answer within " + strconv.FormatFloat(c.timeout.Seconds(), 'g', 3, 64) + " s"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the server at " + at + " closes the connection without an answer"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return at + " cannot be reached from here"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok || strings.Contains(err.Error(), "certificate") {
		return "the certificate shown at " + at + " is not trusted: " + clip(err.Error(), 120)
	}
	return "asking " + at + " fails: " + clip(err.Error(), 120)
}
