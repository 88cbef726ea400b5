package gateway

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"headrace/gateway/admission"
	"headrace/gateway/ledger"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

const (
	teamKey   = "hr_teamteam-0123456789abcdef0123456789"
	otherKey  = "hr_otherkey-0123456789abcdef0123456789"
	strayText = "hr_teamteam-but-with-another-secret-000"
)

// gateOf returns a gate that knows teamKey by the name "team", as the given function has it, and otherKey.
func gateOf(change func(*admission.Key)) *admission.Gate {
	g := admission.New(admission.Options{})
	k := admission.Key{Name: "team", Hash: admission.HashOf(teamKey)}
	if change != nil {
		change(&k)
	}
	g.Configure([]admission.Key{k, {Name: "other", Hash: admission.HashOf(otherKey)}}, false)
	return g
}

// watched is a host that answers well and keeps what it was sent.
type watched struct {
	*upstream
	mu   sync.Mutex // guards seen
	seen []string
}

func newWatched(t *testing.T) *watched {
	t.Helper()
	w := &watched{}
	w.upstream = newUpstream(t, func(c *upConn, r *upRequest) bool {
		var head bytes.Buffer
		_ = r.Header.Write(&head)
		w.mu.Lock()
		w.seen = append(w.seen, r.Method+" "+r.RequestURI+"\n"+head.String()+"\n"+string(r.body))
		w.mu.Unlock()
		return answering(c, r)
	})
	return w
}

func (w *watched) all() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.seen, "\n----\n")
}

func bearer(key string) string { return "Authorization: Bearer " + key }

// Who has no key of ours gets nowhere, whatever else he sends; who has one gets through by any SDK's header, and the host never sees it.
func TestKeyIsAskedFor(t *testing.T) {
	up := newWatched(t)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.keys, o.noTLS = gateOf(nil), true })
	body := `{"model":"m1","messages":[{"role":"user","content":"hi"}]}`
	for name, tc := range map[string]struct {
		request string
		status  int
		says    string
	}{
		"none":                     {chat(false), 401, "invalid_api_key"},
		"bearer":                   {chat(false, bearer(teamKey)), 200, ""},
		"bearer in lower case":     {chat(true, "authorization: bearer "+teamKey), 200, ""},
		"Anthropic's":              {chat(false, "x-api-key: "+teamKey), 200, ""},
		"Azure's":                  {chat(false, "api-key: "+teamKey), 200, ""},
		"the same twice":           {chat(false, bearer(teamKey), "x-api-key: "+teamKey), 200, ""},
		"beside a proxy's":         {chat(false, "Authorization: Basic dTpw", "api-key: "+teamKey), 200, ""},
		"two":                      {chat(false, bearer(teamKey), "x-api-key: "+otherKey), 401, "two different"},
		"two in one field":         {chat(false, bearer(teamKey), bearer(otherKey)), 401, "two different"},
		"a known id":               {chat(false, bearer(strayText)), 401, "invalid_api_key"},
		"a stranger's":             {chat(false, bearer("sk-"+strings.Repeat("x", 40))), 401, "invalid_api_key"},
		"oversized":                {chat(false, bearer(teamKey+strings.Repeat("x", 10<<10))), 401, "invalid_api_key"},
		"its beginning":            {chat(false, bearer(teamKey[:20])), 401, "invalid_api_key"},
		"basic":                    {chat(false, "Authorization: Basic "+teamKey), 401, "didn't provide"},
		"in the query":             {post(chatPath+"?api_key="+teamKey, body), 401, "api_key_in_query"},
		"in the query as well":     {post(chatPath+"?x=1&Access%5FToken="+teamKey, body, bearer(teamKey)), 401, "api_key_in_query"},
		"bad JSON of a stranger":   {post(chatPath, `{`), 401, "invalid_api_key"},
		"bad JSON of one of ours":  {post(chatPath, `{`, bearer(teamKey)), 400, "invalid_json"},
		"models":                   {"GET /v1/models HTTP/1.1\r\nHost: gw\r\n\r\n", 401, "invalid_api_key"},
		"models with a key":        {"GET /v1/models HTTP/1.1\r\nHost: gw\r\n" + bearer(teamKey) + "\r\n\r\n", 200, "m1"},
		"a model":                  {"GET /v1/models/m1 HTTP/1.1\r\nHost: gw\r\n\r\n", 401, "invalid_api_key"},
		"a model that is none":     {"GET /v1/models/mx HTTP/1.1\r\nHost: gw\r\n\r\n", 401, "invalid_api_key"},
		"an upload":                {post("/v1/audio/transcriptions", "--b\r\n", "Content-Type: multipart/form-data; boundary=b"), 401, "invalid_api_key"},
		"Anthropic's error":        {post("/v1/messages", `{}`), 401, "authentication_error"},
		"the admin API":            {"GET /admin/v1/keys HTTP/1.1\r\nHost: gw\r\n" + bearer(teamKey) + "\r\n\r\n", 404, "unknown_url"},
		"the admin API, by a path": {post("/v1/../admin/v1/keys", "{}", bearer(teamKey)), 404, "unknown_url"},
		"a large body":             {post(chatPath, `{"model":"m1","messages":"`+strings.Repeat("x", 1<<20)+`"}`), 401, "invalid_api_key"},
		"a large body of ours":     {post(chatPath, `{"model":"m1","messages":"`+strings.Repeat("x", 1<<20)+`"}`, bearer(teamKey)), 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := g.dial()
			go func() { _, _ = c.Write([]byte(tc.request)) }() // a large one may be refused before all of it was read
			r, got, _ := c.whole()
			if r.StatusCode != tc.status || !strings.Contains(got, tc.says) {
				t.Errorf("%d %s, want %d with %q", r.StatusCode, got, tc.status, tc.says)
			}
			for _, secret := range []string{teamKey, otherKey, strayText, teamKey[:20]} {
				if strings.Contains(got, secret) || strings.Contains(fmt.Sprint(r.Header), secret) {
					t.Errorf("the answer holds a key: %v %s", r.Header, got)
				}
			}
		})
	}
	for _, secret := range []string{teamKey, otherKey, strayText} {
		if seen := up.all(); strings.Contains(seen, secret) {
			t.Errorf("a host was sent a key:\n%s", seen)
		}
		if logs := g.logs.String(); strings.Contains(logs, secret) {
			t.Errorf("the log holds a key:\n%s", logs)
		}
	}
	if seen := up.all(); strings.Count(seen, "Authorization: Bearer upstream-key") != strings.Count(seen, "POST ") {
		t.Errorf("a host was not sent its own key:\n%s", seen)
	}
	if r := g.recordN(0); r.Key != "team" {
		t.Errorf("the record names the key %q", r.Key)
	}
}

// Where there is no key nobody is asked for one; what looks like a credential in the URL goes nowhere all the same.
func TestNoKeysAtAll(t *testing.T) {
	up := newWatched(t)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.keys, o.noTLS = admission.New(admission.Options{}), true })
	if r, b, _ := g.do(chat(false, bearer(strayText))); r.StatusCode != 200 {
		t.Errorf("%d %s", r.StatusCode, b)
	}
	if r, b, _ := g.do(post(chatPath+"?key="+strayText, `{"model":"m1","messages":[]}`)); r.StatusCode != 401 || !strings.Contains(b, "api_key_in_query") {
		t.Errorf("%d %s", r.StatusCode, b)
	}
	if strings.Contains(up.all(), strayText) || strings.Contains(g.logs.String(), strayText) {
		t.Errorf("a host or the log got what the caller sent:\n%s\n%s", up.all(), g.logs.String())
	}
	closed := admission.New(admission.Options{})
	closed.Configure(nil, true)
	g = newRig(t, []string{up.url()}, func(o *rigOptions) { o.keys, o.noTLS = closed, true })
	if r, _, _ := g.do(chat(false, bearer(strayText))); r.StatusCode != 401 {
		t.Errorf("with require_key and no key: %d", r.StatusCode)
	}
}

// A key that is limited to some models reaches no other, however its name is smuggled in, and does not see that there are others.
func TestOtherModelsAreOutOfReach(t *testing.T) {
	up := newWatched(t)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.noTLS = true
		o.keys = gateOf(func(k *admission.Key) { k.Models = []string{"m1", "small-*"} })
		o.edit = func(eps []endpoint.Endpoint) {
			eps[0].Served = []endpoint.Served{{Name: "m1"}, {Name: "small-7b"}, {Name: "secret-70b"}, {Name: "m1x"}}
		}
	})
	form := func(parts ...string) string {
		var b strings.Builder
		for _, p := range parts {
			name, value, _ := strings.Cut(p, "=")
			fmt.Fprintf(&b, "--b\r\nContent-Disposition: form-data; name=%s\r\n\r\n%s\r\n", name, value)
		}
		body := b.String() + "--b--\r\n"
		return fmt.Sprintf("POST /v1/audio/transcriptions HTTP/1.1\r\nHost: gw\r\nContent-Type: multipart/form-data; boundary=b\r\n%s\r\nContent-Length: %d\r\n\r\n%s", bearer(teamKey), len(body), body)
	}
	ask := func(body string) string { return post(chatPath, body, bearer(teamKey)) }
	for name, tc := range map[string]struct {
		request string
		status  int
	}{
		"allowed":                    {ask(`{"model":"m1","messages":[]}`), 200},
		"allowed by pattern":         {ask(`{"model":"small-7b","messages":[]}`), 200},
		"allowed, escaped":           {ask(`{"mod\u0065l":"\u006d1","messages":[]}`), 200},
		"not allowed":                {ask(`{"model":"secret-70b","messages":[]}`), 404},
		"begins alike":               {ask(`{"model":"m1x","messages":[]}`), 404},
		"escaped":                    {ask(`{"model":"secret\u002d70b","messages":[]}`), 404},
		"twice":                      {ask(`{"model":"m1","messages":[],"model":"secret-70b"}`), 400},
		"twice, escaped":             {ask(`{"model":"m1","messages":[],"mode\u006c":"secret-70b"}`), 400},
		"another case":               {ask(`{"model":"m1","messages":[],"Model":"secret-70b"}`), 403},
		"another case, first":        {ask(`{"MODEL":"secret-70b","model":"m1","messages":[]}`), 403},
		"another case, escaped":      {ask(`{"model":"m1","messages":[],"\u004dodel":"secret-70b"}`), 403},
		"a list of models":           {ask(`{"model":"m1","messages":[],"models":["secret-70b"]}`), 403},
		"fallbacks":                  {ask(`{"model":"m1","messages":[],"fallbacks":["secret-70b"]}`), 403},
		"in the query":               {post(chatPath+"?model=secret-70b", `{"model":"m1","messages":[]}`, bearer(teamKey)), 403},
		"in a header":                {post(chatPath, `{"model":"m1","messages":[]}`, bearer(teamKey), "x-headrace-model: secret-70b", "model: secret-70b"), 200},
		"a trailing second document": {ask(`{"model":"m1","messages":[]}{"model":"secret-70b"}`), 400},
		"form, allowed":              {form("model=m1", "file=x"), 200},
		"form, not allowed":          {form("file=x", "model=secret-70b"), 404},
		"form, twice":                {form("model=secret-70b", "model=m1"), 400},
		"form, twice, allowed first": {form("model=m1", "file=x", "model=secret-70b"), 400},
		"form, another case":         {form("Model=secret-70b", "model=m1"), 400},
		"form, a list of models":     {form("model=m1", "models=secret-70b"), 403},
		"show":                       {"GET /v1/models/secret-70b HTTP/1.1\r\nHost: gw\r\n" + bearer(teamKey) + "\r\n\r\n", 404},
		"show an allowed one":        {"GET /v1/models/small%2d7b HTTP/1.1\r\nHost: gw\r\n" + bearer(teamKey) + "\r\n\r\n", 200},
		"list":                       {"GET /v1/models HTTP/1.1\r\nHost: gw\r\n" + bearer(teamKey) + "\r\n\r\n", 200},
	} {
		t.Run(name, func(t *testing.T) {
			r, b, err := g.do(tc.request)
			if r.StatusCode != tc.status || err != nil {
				t.Errorf("%d %s %v, want %d", r.StatusCode, b, err, tc.status)
			}
			if asked := strings.Contains(tc.request, "secret"); strings.Contains(b, "secret-70b") && !asked || strings.Contains(b, "m1x") && name != "begins alike" {
				t.Errorf("the answer tells of models that the key may not see: %s", b)
			}
		})
	}
	if seen := up.all(); strings.Contains(seen, `"model":"secret-70b"`) || strings.Contains(seen, `Model":"secret`) || strings.Contains(seen, "\r\nsecret-70b") {
		t.Errorf("the model came through:\n%s", seen)
	}
	unknown, _, _ := g.do(ask(`{"model":"secret-70b","messages":[]}`))
	missing, _, _ := g.do(ask(`{"model":"nothing-70b","messages":[]}`))
	if unknown.StatusCode != missing.StatusCode || unknown.ContentLength != missing.ContentLength-1 {
		t.Errorf("a model that exists is answered for otherwise than one that does not: %d bytes and %d", unknown.ContentLength, missing.ContentLength)
	}
	if r, b, _ := g.do(post(chatPath, `{"model":"secret-70b","messages":[]}`, bearer(otherKey))); r.StatusCode != 200 {
		t.Errorf("the other key: %d %s", r.StatusCode, b)
	}
}

// Hosts have to be what the key demands, and a header can only ask for more.
func TestKeysDemands(t *testing.T) {
	up := newWatched(t)
	g := newRig(t, []string{up.url(), up.url()}, func(o *rigOptions) {
		o.noTLS, o.set.Passthrough = true, "static:h0"
		o.keys = gateOf(func(k *admission.Key) {
			k.Trust, k.Regions, k.Policies, k.Passthrough = endpoint.TrustVerified, []string{"EU"}, []string{"cost"}, true
		})
		o.edit = func(eps []endpoint.Endpoint) {
			eps[0].Trust, eps[0].Region = endpoint.TrustCommunity, "US"
			eps[1].Trust, eps[1].Region = endpoint.TrustVerified, "DE"
		}
	})
	for name, tc := range map[string]struct {
		key, header string
		status      int
		host        string
	}{
		"the key's":           {teamKey, "X: y", 200, "static:h1"},
		"no key's":            {otherKey, "X: y", 200, "static:h0"},
		"less trust":          {teamKey, "x-headrace-trust: community", 200, "static:h1"},
		"more trust":          {teamKey, "x-headrace-trust: secure", 503, ""},
		"another region":      {teamKey, "x-headrace-region: US", 503, ""},
		"a part of it":        {teamKey, "x-headrace-region: DE", 200, "static:h1"},
		"a policy it has":     {teamKey, "x-headrace-policy: cost", 200, "static:h1"},
		"a policy it has not": {teamKey, "x-headrace-policy: latency", 403, ""},
		"any policy":          {otherKey, "x-headrace-policy: latency", 200, "static:h0"},
	} {
		t.Run(name, func(t *testing.T) {
			r, b, _ := g.do(chat(false, bearer(tc.key), tc.header))
			if got := r.Header.Get("X-Headrace-Endpoint"); r.StatusCode != tc.status || tc.status == 200 && tc.host != "" && got != tc.host && name != "any policy" {
				t.Errorf("%d from %q: %s, want %d from %q", r.StatusCode, got, b, tc.status, tc.host)
			}
		})
	}
	pass := func(key string) int {
		r, _, _ := g.do("PUT /v1/files/x HTTP/1.1\r\nHost: gw\r\n" + bearer(key) + "\r\nContent-Length: 1\r\n\r\nx")
		return r.StatusCode
	}
	if s := pass(teamKey); s != 503 {
		t.Errorf("the passthrough host is not what the key demands, and answers with %d", s)
	}
	if s := pass(otherKey); s != 403 {
		t.Errorf("a key without the right got %d from the passthrough host", s)
	}
}

// Limits are taken when a request comes and put right when it is over, however it ends.
func TestLimitsOfAKey(t *testing.T) {
	release := make(chan struct{})
	up := newUpstream(t, func(c *upConn, r *upRequest) bool {
		if bytes.Contains(r.body, []byte("hold")) {
			c.send(sseHead)
			c.sendChunk(tokenEvent("a"))
			<-release
			c.sendChunk(stopEvent)
			c.sendChunk(doneEvent)
			c.send(lastChunk)
			return true
		}
		if bytes.Contains(r.body, []byte("break")) {
			c.send(jsonAnswer(500, "{}"))
			return true
		}
		c.send(jsonAnswer(200, plainBody, "x-ratelimit-limit-requests: 7", "x-ratelimit-remaining-requests: 1"))
		return true
	})
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.noTLS, o.set.MaxRetries = true, 0
		o.keys = gateOf(func(k *admission.Key) { k.RPM, k.TPM, k.Concurrency = 5, 2000, 2 })
	})
	ask := func(content string, stream bool) string {
		return post(chatPath, fmt.Sprintf(`{"model":"m1","stream":%t,"messages":[{"role":"user","content":%q}]}`, stream, content), bearer(teamKey))
	}
	r, _, _ := g.do(ask("hi", false))
	for field, want := range map[string]string{
		"X-Ratelimit-Limit-Requests": "5", "X-Ratelimit-Remaining-Requests": "4", "X-Ratelimit-Limit-Tokens": "2000",
	} {
		if got := r.Header.Values(field); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", field, got, want)
		}
	}
	if got := r.Header.Get("X-Ratelimit-Reset-Requests"); got != "12s" {
		t.Errorf("a fifth of a minute's requests is there again in %q", got)
	}
	g.recordN(0)
	r, _, _ = g.do(ask("hi", false)) // the first one's 256 or so tokens have become 10
	var left int
	if _, err := fmt.Sscan(r.Header.Get("X-Ratelimit-Remaining-Tokens"), &left); err != nil || left < 2000-10-300 || left > 2000-10-10 {
		t.Errorf("%d tokens are left (%v)", left, err)
	}
	g.recordN(1)
	if r, b, _ := g.do(ask("break", false)); r.StatusCode != 502 {
		t.Fatalf("%d %s", r.StatusCode, b)
	}
	held := []*client{g.dial().send(ask("hold", true)), g.dial().send(ask("hold", true))}
	for _, c := range held {
		if r := c.response(); r.StatusCode != 200 {
			t.Fatalf("%d", r.StatusCode)
		}
	}
	r, b, _ := g.do(ask("hi", false))
	if r.StatusCode != 429 || !strings.Contains(b, "2 requests at once") || r.Header.Get("Retry-After") == "" {
		t.Errorf("the third at once: %d %s", r.StatusCode, b)
	}
	held[0].reset() // a caller that leaves gives its place back
	close(release)
	eventually(t, "both are settled", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.records) >= 6 })
	r, b, _ = g.do(ask("hi", false))
	if r.StatusCode != 429 || !strings.Contains(b, `"type":"requests"`) || !strings.Contains(b, "5 requests per minute") || r.Header.Get("X-Ratelimit-Remaining-Requests") != "0" {
		t.Errorf("the sixth of the minute: %d %s %v", r.StatusCode, b, r.Header)
	}
	var wait int
	if _, err := fmt.Sscan(r.Header.Get("Retry-After"), &wait); err != nil || wait < 1 || wait > 12 {
		t.Errorf("Retry-After is %q", r.Header.Get("Retry-After"))
	}
	if r, b, _ := g.do(ask("hi "+strings.Repeat("x", 9000), false)); r.StatusCode != 429 {
		t.Errorf("more tokens than a minute has: %d %s", r.StatusCode, b)
	}
	if r, b, _ := g.do(chat(false, bearer(otherKey))); r.StatusCode != 200 || r.Header.Get("X-Ratelimit-Limit-Requests") != "" {
		t.Errorf("another key: %d %s %v", r.StatusCode, b, r.Header)
	}
	n := 0
	g.mu.Lock()
	for _, rec := range g.records {
		if rec.Status == 429 {
			n++
			if rec.Class != outcome.CallerFault || rec.Code != "rate_limit_exceeded" || rec.Key != "team" {
				t.Errorf("the record of a refusal: %v %q %q", rec.Class, rec.Code, rec.Key)
			}
		}
	}
	g.mu.Unlock()
	if n != 3 {
		t.Errorf("%d refusals have a record, want 3", n)
	}
}

// A budget is what the key's requests have really cost, and ends them with an error that SDKs do not repeat.
func TestBudgetOfAKey(t *testing.T) {
	up := newUpstream(t, answering)
	logs := &logBuffer{}
	gate := admission.New(admission.Options{Log: slog.New(slog.NewTextHandler(logs, nil))})
	// A request costs (7 in + 3 out) at $1000 and $10,000 per million tokens: $0.037.
	gate.Configure([]admission.Key{{Name: "team", Hash: admission.HashOf(teamKey), Budget: admission.Budget{USDPerDay: 0.15, USDTotal: 5}}}, false)
	var mu sync.Mutex
	spent := 0.0
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.noTLS, o.keys = true, gate
		o.edit = func(eps []endpoint.Endpoint) {
			eps[0].Price = endpoint.Price{Basis: endpoint.PerToken, USDPerMTokIn: 1000, USDPerMTokCached: 1000, USDPerMTokOut: 10000}
		}
		o.settled = func(r *ledger.Record) { mu.Lock(); spent += r.USD; mu.Unlock() }
	})
	ask := func(stream bool) string {
		return post(chatPath, fmt.Sprintf(`{"model":%q,"stream":%t,"max_tokens":3,"messages":[{"role":"user","content":"hi"}]}`, model, stream), bearer(teamKey))
	}
	for i := range 4 {
		r, b, _ := g.do(ask(i%2 == 0))
		if want := fmt.Sprintf("%.6f", 0.15-0.037*float64(i)); r.StatusCode != 200 || r.Header.Get("X-Headrace-Budget-Remaining-Usd") != want {
			t.Fatalf("request %d: %d, %q of the budget is left, want %s: %s", i, r.StatusCode, r.Header.Get("X-Headrace-Budget-Remaining-Usd"), want, b)
		}
		g.recordN(i)
	}
	r, b, _ := g.do(ask(false))
	if r.StatusCode != 429 || !strings.Contains(b, `"code":"insufficient_quota"`) || !strings.Contains(b, `"type":"insufficient_quota"`) || r.Header.Get("X-Should-Retry") != "false" {
		t.Errorf("%d %s %v", r.StatusCode, b, r.Header)
	}
	var wait int
	now := time.Now().UTC()
	midnight := time.Date(now.Year(), now.Month(), now.Day()+1, 0, 0, 0, 0, time.UTC)
	if _, err := fmt.Sscan(r.Header.Get("Retry-After"), &wait); err != nil || time.Duration(wait)*time.Second < midnight.Sub(now)-time.Minute || time.Duration(wait)*time.Second > 25*time.Hour {
		t.Errorf("Retry-After is %q, %s before midnight", r.Header.Get("Retry-After"), midnight.Sub(now))
	}
	mu.Lock()
	defer mu.Unlock()
	if spent > 0.15 || spent < 0.147 {
		t.Errorf("$%.3f were spent of $0.15", spent)
	}
	if n := strings.Count(logs.String(), "most of its budget"); n != 1 || gate.Warned() != 1 {
		t.Errorf("the soft limit was told of %d times:\n%s", n, logs.String())
	}
}

// Refusals for strangers cost no record and no slot.
func TestStrangersLeaveNoRecord(t *testing.T) {
	up := newUpstream(t, answering)
	g := newRig(t, []string{up.url()}, func(o *rigOptions) { o.keys, o.noTLS = gateOf(nil), true })
	c := g.dial()
	for range 50 {
		if r, _, err := c.send(chat(false, bearer(strayText))).whole(); r.StatusCode != http.StatusUnauthorized || err != nil {
			t.Fatal(r.StatusCode, err)
		}
	}
	if _, n := up.counts(); n != 0 || len(g.records) != 0 || g.srv.InFlight() != 0 {
		t.Errorf("%d requests came through, %d records, %d in flight", n, len(g.records), g.srv.InFlight())
	}
	var bad int64
	g.srv.opt.Keys.Refusals(func(reason string, n int64) {
		if reason == "bad_key" {
			bad = n
		}
	})
	if bad != 50 {
		t.Errorf("%d refusals were counted", bad)
	}
}

// What every request pays for keys: to find the one it carries, and what it allows, among a thousand.
func TestEnterAllocatesNothing(t *testing.T) {
	s, ctx := entering()
	now := time.Now()
	n := testing.AllocsPerRun(1000, func() {
		if gr, e := s.enter(ctx, now); e != nil || gr.Name() != "team" {
			t.Fatal(e)
		}
	})
	if n != 0 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkEnter(b *testing.B) {
	s, ctx := entering()
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if _, e := s.enter(ctx, now); e != nil {
			b.Fatal(e)
		}
	}
}

func entering() (*Server, *fasthttp.RequestCtx) {
	keys := []admission.Key{{Name: "team", Hash: admission.HashOf(teamKey)}}
	for i := range 1000 {
		keys = append(keys, admission.Key{Name: fmt.Sprint("k", i), Hash: admission.HashOf(fmt.Sprint(i))})
	}
	g := admission.New(admission.Options{})
	g.Configure(keys, false)
	ctx := &fasthttp.RequestCtx{}
	h := &ctx.Request.Header
	h.SetRequestURI(chatPath)
	for _, f := range []string{"Content-Type: application/json", "Accept: application/json", "User-Agent: OpenAI/Python 2.8.1", "X-Stainless-Lang: python", "X-Stainless-Retry-Count: 0", bearer(teamKey)} {
		k, v, _ := strings.Cut(f, ": ")
		h.Set(k, v)
	}
	return &Server{opt: Options{Keys: g}}, ctx
}

// A key that ends while its request waits gets no host any more.
func TestRevokedWhileWaiting(t *testing.T) {
	up := newCounter(t)
	g := newRig(t, []string{up.url()}, waiting(1, roomy()), func(o *rigOptions) {
		o.noTLS = true
		o.keys = gateOf(nil)
	})
	body := fmt.Sprintf(`{"model":%q,"stream":true,"messages":[]}`, model)
	g.goDo(post(chatPath, body, bearer(otherKey)))
	at := wait(t, up.came, "the first")
	answer := g.goDo(post(chatPath, body, bearer(teamKey)))
	g.standing(1)
	g.srv.opt.Keys.Configure([]admission.Key{{Name: "other", Hash: admission.HashOf(otherKey)}}, true)
	close(at.serve)
	if a := wait(t, answer, "a refusal"); a.StatusCode != 401 {
		t.Errorf("%d with a key that is gone", a.StatusCode)
	}
}

// TestAnthropicLimits has callers of Anthropic's SDK told of their limits in its words, and of nobody else's.
func TestAnthropicLimits(t *testing.T) {
	up := newUpstream(t, func(c *upConn, _ *upRequest) bool {
		c.send(jsonAnswer(200, `{"type":"message","content":[],"usage":{"input_tokens":9,"output_tokens":1}}`, "anthropic-ratelimit-requests-remaining: 77", "anthropic-ratelimit-input-tokens-limit: 1"))
		return true
	})
	g := newRig(t, []string{up.url()}, func(o *rigOptions) {
		o.noTLS = true
		o.keys = gateOf(func(k *admission.Key) { k.RPM, k.TPM = 2, 2000 })
	})
	ask := post("/v1/messages", `{"model":"m1","max_tokens":10,"messages":[{"role":"user","content":"hi"}]}`, "x-api-key: "+teamKey)
	for i, left := range []string{"1", "0", "0"} {
		sent := time.Now()
		r, b, _ := g.do(ask)
		if want := []int{200, 200, 429}[i]; r.StatusCode != want {
			t.Fatalf("%d %s", r.StatusCode, b)
		}
		for field, want := range map[string]string{
			"Anthropic-Ratelimit-Requests-Limit": "2", "Anthropic-Ratelimit-Requests-Remaining": left, "Anthropic-Ratelimit-Tokens-Limit": "2000",
		} {
			if got := r.Header.Values(field); len(got) != 1 || got[0] != want {
				t.Errorf("request %d: %s: %q, want %q", i, field, got, want)
			}
		}
		for name := range r.Header {
			if strings.HasPrefix(name, "X-Ratelimit-") || name == "Anthropic-Ratelimit-Input-Tokens-Limit" {
				t.Errorf("request %d has %s", i, name)
			}
		}
		for field, most := range map[string]time.Duration{"Anthropic-Ratelimit-Requests-Reset": time.Minute, "Anthropic-Ratelimit-Tokens-Reset": time.Minute} {
			at, err := time.Parse(time.RFC3339, r.Header.Get(field))
			if err != nil || at.Before(sent) || at.After(time.Now().Add(most+time.Second)) {
				t.Errorf("request %d at %s: %s: %q (%v)", i, sent.UTC().Format(time.RFC3339), field, r.Header.Get(field), err)
			}
		}
		if i == 2 && (r.Header.Get("Retry-After") == "" || !strings.Contains(b, "rate_limit_error")) {
			t.Errorf("refused: %v %s", r.Header, b)
		}
	}
}

// TestKeysHaveTheirOwnSessions has two keys send the same: neither is taken for the other, though hosts may hold what both have sent.
func TestKeysHaveTheirOwnSessions(t *testing.T) {
	g, _ := newCachingRig(t, 0, func(o *rigOptions) { o.keys = gateOf(nil) })
	for _, header := range []string{"X-Headrace-Session: s-1", "X-Nothing: of the kind"} {
		expected := func(key string) float64 {
			k := talk{g: g, path: chatPath, headers: []string{bearer(key), header}}
			n := g.count()
			k.say(essay(header, 2000))
			return g.recordN(n).Attempts[0].Decision.Cached
		}
		if n := expected(teamKey); n != 0 {
			t.Errorf("%s: the first of all is expected to find %.0f tokens", header, n)
		}
		if n := expected(otherKey); n != 0 {
			t.Errorf("%s: another key is expected to find %.0f tokens of the first one's", header, n)
		}
		if n := expected(teamKey); n < 400 {
			t.Errorf("%s: the same key again is expected to find %.0f tokens", header, n)
		}
	}
}
