package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"headrace/gateway/state/redistest"
	"headrace/providers/fakecloud"
)

// keysCLI runs headrace keys against an admin address.
func keysCLI(t *testing.T, admin string, args ...string) (out string, code int) {
	t.Helper()
	c, b := keysCommand(), new(strings.Builder)
	c.SetArgs(append(args, "--admin", admin))
	c.SetOut(b)
	c.SetErr(io.Discard)
	c.SilenceUsage, c.SilenceErrors = true, true
	err := c.ExecuteContext(t.Context())
	if ee, ok := errors.AsType[*exitError](err); ok {
		code = ee.code
	} else if err != nil {
		code = 1
	}
	if err != nil {
		b.WriteString(err.Error())
	}
	return b.String(), code
}

// made runs keys with -o json and returns the secret.
func made(t *testing.T, admin string, args ...string) string {
	t.Helper()
	out, code := keysCLI(t, admin, append(args, "-o", "json")...)
	var a struct{ Secret string }
	if err := json.Unmarshal([]byte(out), &a); err != nil || code != 0 || a.Secret == "" {
		t.Fatalf("%v: code %d, %s", args, code, out)
	}
	return a.Secret
}

// askAs sends a chat completion with a key, "" for none, and returns the status and the error's code.
func askAs(t *testing.T, base, key, model string) (int, string) {
	t.Helper()
	return ask(t, &http.Client{Transport: withKey(key)}, base, model, "hello", 5)
}

type withKey string

func (k withKey) RoundTrip(r *http.Request) (*http.Response, error) {
	if k != "" {
		r.Header.Set("Authorization", "Bearer "+string(k))
	}
	return http.DefaultTransport.RoundTrip(r)
}

// TestKeysCommand makes, shows, rotates and revokes keys of a running gateway, which starts anew in between.
func TestKeysCommand(t *testing.T) {
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m", "m2"}})
	dir := t.TempDir()
	yaml := fmt.Sprintf(appYAML, h.URL()+"/v1") + "state: {dir: \"" + dir + "/state\"}\n"
	r := startApp(t, dir, yaml, nil)
	admin := r.app.admin.Addr().String()
	if out, code := keysCLI(t, admin); code != 0 || !strings.Contains(out, "callers need none") {
		t.Errorf("without keys: %d %s", code, out)
	}
	if status, _ := askAs(t, r.base, "", "m"); status != 200 {
		t.Errorf("without keys: %d", status)
	}
	key := made(t, admin, "create", "team", "--models", "m", "--rpm", "100", "--usd-per-day", "5", "--note", "a note", "--expires", "30d")
	for _, step := range []struct {
		args string
		says []string
		code int
	}{
		{"list", []string{"team", key[3:11], "store", "active", "100 rpm", "$5.00"}, 0},
		{"show team", []string{"a note", "100 rpm", "requests left", "of $5.00"}, 0},
		{"show " + key[:11] + " -o json", []string{`"name": "team"`, `"rpm": 100`}, 0},
		{"create team", []string{"already"}, 1},
		{"create Team", []string{"The field name must be"}, 2},
		{"create t2 --expires yesterday", []string{"--expires", "want a date"}, 2},
		{"create t2 --trust most", []string{"The field trust must be one of"}, 2},
		{"update team", []string{"nothing to change"}, 2},
		{"update team --rpm 200 --priority batch", []string{"200 rpm"}, 0},
		{"show nobody", []string{`There is no key "nobody"`}, 1},
		{"list -o yaml", []string{"want table or json"}, 2},
		{"new", []string{"key:    hr_", "sha256: "}, 0},
	} {
		out, code := keysCLI(t, admin, strings.Fields(step.args)...)
		for _, says := range step.says {
			if code != step.code || !strings.Contains(out, says) {
				t.Errorf("keys %s: code %d, %s; want %d and %q", step.args, code, out, step.code, says)
			}
		}
		if strings.Contains(out, key) {
			t.Errorf("keys %s shows the key again", step.args)
		}
	}
	for _, tc := range []struct {
		key, model string
		status     int
		code       string
	}{{"", "m", 401, "invalid_api_key"}, {key, "m", 200, ""}, {key, "m2", 404, "model_not_found"}, {key + "x", "m", 401, "invalid_api_key"}} {
		if status, code := askAs(t, r.base, tc.key, tc.model); status != tc.status || tc.code != "" && code != tc.code {
			t.Errorf("model %s: %d %s, want %d %s", tc.model, status, code, tc.status, tc.code)
		}
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = startApp(t, dir, yaml, nil)
	admin = r.app.admin.Addr().String()
	if status, _ := askAs(t, r.base, key, "m"); status != 200 {
		t.Errorf("after a restart: %d", status)
	}
	if out, _ := keysCLI(t, admin, "show", "team", "-o", "json"); strings.Contains(out, `"spent_usd_total": 0,`) {
		t.Errorf("what was spent is forgotten: %s", out)
	}
	second := made(t, admin, "rotate", "team", "--grace", "1h")
	for _, k := range []string{key, second} {
		if status, _ := askAs(t, r.base, k, "m"); status != 200 {
			t.Errorf("while both are good: %d", status)
		}
	}
	if out, code := keysCLI(t, admin, "revoke", "team"); code != 0 || !strings.Contains(out, "revoked") {
		t.Errorf("revoke: %d %s", code, out)
	}
	for _, k := range []string{key, second, ""} {
		if status, _ := askAs(t, r.base, k, "m"); status != 401 {
			t.Errorf("after the revocation: %d", status)
		}
	}
	r.log.await(t, `"how":"revoked"`, 1)
	if logs := r.log.String(); strings.Contains(logs, key) || strings.Contains(logs, second) {
		t.Errorf("the log: %s", logs)
	}
}

// TestAdminKey closes the admin API with a key, and has the config's keys change with it.
func TestAdminKey(t *testing.T) {
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}})
	const root, plain = "root-key-0123456789abcdef", "plain-key-0123456789abcdef"
	yaml := fmt.Sprintf(appYAML, h.URL()+"/v1")
	keys := "keys:\n  - {name: root, key: " + root + ", admin: true}\n  - {name: plain, key: " + plain + "}\n"
	r := startApp(t, t.TempDir(), yaml+keys, nil)
	admin := r.app.admin.Addr().String()
	as := func(key, path string) int {
		res, err := (&http.Client{Transport: withKey(key)}).Get("http://" + admin + path) //nolint:noctx // loopback
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	for _, tc := range []struct {
		key, path string
		want      int
	}{
		{"", "/admin/v1/keys", 401},
		{"", "/admin/v1/hosts", 401},
		{"", "/debug/pprof/", 401},
		{"", "/nowhere", 401},
		{plain, "/admin/v1/hosts", 403},
		{root, "/admin/v1/hosts", 200},
		{"", "/livez", 200},
		{"", "/readyz", 200},
		{"", "/metrics", 200},
	} {
		if got := as(tc.key, tc.path); got != tc.want {
			t.Errorf("%s with %q: %d, want %d", tc.path, tc.key, got, tc.want)
		}
	}
	if out, code := keysCLI(t, admin, "list"); code != 1 || !strings.Contains(out, "HEADRACE_ADMIN_KEY") {
		t.Errorf("%d %s", code, out)
	}
	t.Setenv(envAdminKey, root)
	if out, code := keysCLI(t, admin, "list"); code != 0 || !strings.Contains(out, "config") {
		t.Errorf("%d %s", code, out)
	}
	if out, code := keysCLI(t, admin, "revoke", "plain"); code != 1 || !strings.Contains(out, "stands in the config") {
		t.Errorf("%d %s", code, out)
	}
	if status, _ := askAs(t, r.base, plain, "m"); status != 200 {
		t.Errorf("%d", status)
	}
	r.write(t, yaml+strings.Replace(keys, plain, "another-key-0123456789", 1))
	r.log.await(t, "config reloaded", 1)
	if status, _ := askAs(t, r.base, plain, "m"); status != 401 {
		t.Errorf("a key that was taken out of the config: %d", status)
	}
	if status, _ := askAs(t, r.base, "another-key-0123456789", "m"); status != 200 {
		t.Errorf("a key that was put into the config: %d", status)
	}
}

// withinASecond does something over and over, until it took no longer than that: a busy machine may hold any process up for a while, and what
// waits for somebody's next look never is so quick. What the machine takes for hops round trips is added, for it has nothing to do with what is
// waited for. do tells whether it was done at all.
func withinASecond(t *testing.T, what string, do func() bool) {
	t.Helper()
	for tries := 1; ; tries++ {
		began := time.Now()
		done := do()
		took := time.Since(began)
		if done && took <= time.Second+hops*roundTrip(t) {
			return
		}
		if t.Logf("%s after %s", what, took); tries == 10 {
			t.Fatalf("%s: never within a second", what)
		}
	}
}

// hops is how many round trips lie at most between a change and the last answer that shows it.
const hops = 30

// roundTrip is how long an HTTP request over loopback takes now.
func roundTrip(t *testing.T) time.Duration {
	t.Helper()
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	const n = 10
	began := time.Now()
	for range n {
		if status, _ := get(t, s.URL); status != http.StatusNotFound {
			t.Fatalf("status %d", status)
		}
	}
	return time.Since(began) / n
}

// TestReplicasShareKeys has three gateways behave as one: a key made at one of them opens all within a second, its limit holds over all of
// them, what it has spent is known to all, and its end is.
func TestReplicasShareKeys(t *testing.T) {
	t.Parallel()
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}})
	yaml := fmt.Sprintf(appYAML, h.URL()+"/v1") + "require_key: true\nstate: {redis: \"" + redistest.Start(t).URL() + "\", timeout: 10s}\n"
	var rs []*running
	for range 3 {
		rs = append(rs, startApp(t, t.TempDir(), yaml, nil))
	}
	eventually(t, "the replicas know of each other", func() bool {
		return rs[0].app.redis.Replicas() == 3 && rs[1].app.redis.Replicas() == 3 && rs[2].app.redis.Replicas() == 3
	})
	admin := func(i int) string { return rs[i].app.admin.Addr().String() }
	const rpm = 120
	opens := func(key string, want int) func() bool {
		return func() bool {
			for _, r := range rs {
				if status, _ := get(t, r.base+"/v1/models"); status != 401 {
					t.Fatalf("without a key: %d", status)
				}
				res, err := (&http.Client{Transport: withKey(key)}).Get(r.base + "/v1/models") //nolint:noctx // loopback
				if err != nil {
					t.Fatal(err)
				}
				if _ = res.Body.Close(); res.StatusCode != want {
					return false
				}
			}
			return true
		}
	}
	var key, name string
	n := 0
	// Redis has a quarter of a second for each answer, which is little on a busy machine.
	create := func() bool {
		n++
		name = fmt.Sprint("team-", n)
		out, code := keysCLI(t, admin(0), "create", name, "--rpm", fmt.Sprint(rpm), "--usd-total", "5", "-o", "json")
		var a struct{ Secret string }
		if code == 1 && strings.Contains(out, "does not answer") {
			return false
		}
		if err := json.Unmarshal([]byte(out), &a); err != nil || a.Secret == "" {
			t.Fatalf("code %d, %v: %s", code, err, out)
		}
		key = a.Secret
		eventually(t, "all know the key", opens(key, 200))
		return true
	}
	withinASecond(t, "all know the key", create)
	var in, limited, other, last atomic.Int64
	begin := time.Now()
	var load sync.WaitGroup
	for i := range 6 {
		load.Go(func() {
			client := &http.Client{Transport: withKey(key)}
			// As long as it takes to come to the limit, and then some.
			for d := time.Duration(0); d < 3*time.Second || limited.Load() < 20 && d < patience; d = time.Since(begin) {
				switch status, _ := ask(t, client, rs[i%3].base, "m", "hello", 5); status {
				case 200:
					in.Add(1)
				case 429:
					limited.Add(1)
					last.Store(int64(d))
				default:
					other.Add(1)
				}
			}
		})
	}
	load.Wait()
	want := rpm * (1 + time.Since(begin).Minutes())
	least := rpm * (1 + time.Duration(last.Load()).Minutes()) // when somebody was refused, there was nothing left
	alone := int64(0)
	for _, r := range rs {
		_, n := r.app.keys.Waits()
		alone += n
	}
	t.Logf("%d of %.1f to %.1f were let in, %d refused; %d waited for Redis in vain", in.Load(), least, want, limited.Load(), alone)
	most := want + 2*float64(alone) // on a busy machine Redis may take too long to answer; then a replica lets in a little by itself
	if got := float64(in.Load()); got > 1.02*most || got < 0.98*least-1-2*float64(alone) || limited.Load() < 20 || other.Load() != 0 {
		t.Errorf("%.0f requests were let in by three replicas and %d refused, want %.1f to %.1f within 2 %%; %d failed", got, limited.Load(), least, want, other.Load())
	}
	eventually(t, "all tell the same of what was spent", func() bool {
		var spent [3]string
		for i := range rs {
			out, _ := keysCLI(t, admin(i), "show", name, "-o", "json")
			_, after, _ := strings.Cut(out, `"spent_usd_total": `)
			spent[i], _, _ = strings.Cut(after, ",")
		}
		return spent[0] != "0" && spent[0] == spent[1] && spent[1] == spent[2]
	})
	used := false
	withinASecond(t, "nobody lets the key in", func() bool {
		if used { // it took too long with the one before
			eventually(t, "another key", create)
		}
		used = true
		if out, code := keysCLI(t, admin(2), "revoke", name); code != 0 {
			t.Logf("code %d: %s", code, out)
			return false
		}
		eventually(t, "nobody lets the key in", opens(key, 401))
		return true
	})
}

// TestKeysAreNowhereShown sends a good and a bad key in every way there is, and looks for them wherever the gateway tells of requests.
func TestKeysAreNowhereShown(t *testing.T) {
	h := startHost(t, fakecloud.HostConfig{Name: "a", Models: []string{"m"}})
	const good, bad = "good-key-0123456789abcdef", "some-bad-key-0123456789"
	traces := make(chan []byte, 1000)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if z, err := gzip.NewReader(bytes.NewReader(b)); err == nil {
			b, _ = io.ReadAll(z)
		}
		traces <- b
	}))
	defer collector.Close()
	r := startApp(t, t.TempDir(), fmt.Sprintf(appYAML, h.URL()+"/v1")+"log: {level: debug}\ntelemetry: {otlp: \""+collector.URL+"\", otlp_logs: true, sample: 1}\nkeys: [{name: team, key: "+good+"}]\n", nil)
	body := `{"model":"m","max_tokens":3,"user":"u","messages":[{"role":"user","content":"hello"}]}`
	for _, key := range []string{good, bad} {
		for _, send := range []func(*http.Request){
			func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+key) },
			func(r *http.Request) { r.Header.Set("Authorization", "Basic "+key) },
			func(r *http.Request) { r.Header.Set("X-Api-Key", key) },
			func(r *http.Request) { r.Header.Set("Api-Key", key) },
			func(r *http.Request) { r.URL.RawQuery = "api_key=" + key },
			func(r *http.Request) { r.URL.RawQuery = "x=1&access_token=" + key },
			func(r *http.Request) { r.URL.Path = "/v1/" + key },
			func(r *http.Request) {
				r.Header.Set("Cookie", "key="+key)
				r.Header.Set("Referer", "http://x/?key="+key)
			},
			func(r *http.Request) {
				r.Header.Set("Authorization", "Bearer "+key)
				r.Header.Set("X-Headrace-Trust", key)
			},
			func(r *http.Request) { r.SetBasicAuth("user", key) },
		} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.base+"/v1/chat/completions", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			send(req)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
	}
	admin := "http://" + r.app.admin.Addr().String()
	for _, path := range []string{"/admin/v1/keys", "/admin/v1/keys/team", "/admin/v1/requests", "/admin/v1/decisions", "/admin/v1/status", "/metrics"} {
		if status, text := get(t, admin+path); status != 200 || strings.Contains(text, good) || strings.Contains(text, bad) {
			t.Errorf("%s: %d\n%s", path, status, text)
		}
	}
	r.log.await(t, `"key":"team"`, 3)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if logs := r.log.String(); strings.Contains(logs, good) || strings.Contains(logs, bad) {
		t.Errorf("the log:\n%s", logs)
	}
	collector.Close()
	close(traces)
	n := 0
	for b := range traces {
		n++
		if bytes.Contains(b, []byte(good)) || bytes.Contains(b, []byte(bad)) {
			t.Errorf("a collector was sent a key:\n%q", b)
		}
	}
	if n == 0 {
		t.Error("a collector was sent nothing")
	}
}

func TestExpiry(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for in, want := range map[string]string{
		"never": "", "": "", "2031-01-02": "2031-01-02", "90d": "2030-04-01T00:00:00Z", "12h": "2030-01-01T12:00:00Z", "1.5d": "2030-01-02T12:00:00Z", "-1d": "error", "soon": "error", "d": "error",
	} {
		got, err := expiry(in, now)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
