package vast_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakevast"
	"headrace/providers/vast"
	"headrace/router/endpoint"
)

func TestIdentity(t *testing.T) {
	for name, tc := range map[string]struct {
		ic     fakevast.InstanceConfig
		bearer endpoint.Secret
		mode   string // of vast_identity; "" for an instance that must not be ready
		why    string
	}{
		"open server":                     {ic: fakevast.InstanceConfig{}, mode: "open", why: "asks for no key"},
		"key in the arguments":            {ic: fakevast.InstanceConfig{APIKey: "key-of-its-own"}, mode: "key"},
		"key in the environment":          {ic: fakevast.InstanceConfig{APIKey: "key-of-its-own", KeyIn: fakevast.KeyInEnv}, mode: "key"},
		"key in the config":               {ic: fakevast.InstanceConfig{APIKey: "key-for-all", KeyIn: fakevast.KeyHidden}, bearer: "key-for-all", mode: "key"},
		"another key in the config":       {ic: fakevast.InstanceConfig{APIKey: "key-of-its-own"}, bearer: "key-for-all", mode: "key"},
		"key that nobody tells":           {ic: fakevast.InstanceConfig{APIKey: "key-of-its-own", KeyIn: fakevast.KeyHidden}, why: "refuses the keys"},
		"portal with its jupyter_token":   {ic: fakevast.InstanceConfig{Template: fakevast.Portal}, mode: "key"},
		"portal with a password":          {ic: fakevast.InstanceConfig{Template: fakevast.Portal, APIKey: "pass-word", Portal: fakevast.PortalConfig{RefuseJupyter: true}}, mode: "key"},
		"portal with an unknown password": {ic: fakevast.InstanceConfig{Template: fakevast.Portal, APIKey: "pass-word", KeyIn: fakevast.KeyHidden, Portal: fakevast.PortalConfig{RefuseJupyter: true}}, why: "refuses the keys"},
		"portal without auth":             {ic: fakevast.InstanceConfig{Template: fakevast.Portal, Portal: fakevast.PortalConfig{NoAuth: true}}, mode: "open"},
		"token in OPEN_BUTTON_TOKEN": {ic: fakevast.InstanceConfig{
			Template: fakevast.Portal, APIKey: "tok-en", KeyIn: fakevast.KeyHidden, Env: map[string]string{"OPEN_BUTTON_TOKEN": "tok-en"}, Portal: fakevast.PortalConfig{RefuseJupyter: true},
		}, mode: "key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, fakevast.Config{}, func(o *vast.Options) { o.Bearer = tc.bearer }, tc.ic)
			i := r.cloud.Instances()[0]
			if tc.mode == "" {
				ep := r.state(i, endpoint.Starting, tc.why)
				if ep.APIKey != "" {
					t.Error("a key was given to a server that did not prove to be the instance's")
				}
				return
			}
			ep := r.state(i, endpoint.Ready, tc.why)
			if got := ep.Labels["vast_identity"]; got != tc.mode {
				t.Errorf("vast_identity is %q, want %q", got, tc.mode)
			}
			if want := i.Bearer(); tc.mode == "key" && ep.APIKey.Reveal() != want || tc.mode == "open" && ep.APIKey != "" {
				t.Errorf("the key is %q, want that of the instance (%q) or none", ep.APIKey.Reveal(), want)
			}
			if len(ep.Served) != 1 || ep.Served[0].Name != i.Config().Models[0] || ep.Served[0].MaxContext != 131072 || ep.Served[0].Card == nil {
				t.Errorf("served: %+v", ep.Served)
			}
		})
	}
}

// TestAddressOfAnother lets another tenant's server answer where an instance was.
func TestAddressOfAnother(t *testing.T) {
	for name, tc := range map[string]struct {
		own, other string // keys
		taken      bool   // the other is taken for the instance: nothing tells them apart
	}{
		"keyed by another key": {own: "own-key-1", other: "others-key", taken: false},
		"open where ours asks": {own: "own-key-1", other: "", taken: false},
		"keyed where ours does not ask": {
			own: "", other: "others-key", taken: false,
		},
		"both open": {own: "", other: "", taken: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, fakevast.Config{}, func(o *vast.Options) { o.Poll = 100 * time.Millisecond }, fakevast.InstanceConfig{APIKey: tc.own, KeyIn: fakevast.KeyInArgs})
			i := r.cloud.Instances()[0]
			r.state(i, endpoint.Ready, "")
			other := i.ReuseAddress(fakecloud.HostConfig{Name: "stranger", APIKey: tc.other, Models: []string{"strangers-model"}})
			r.p.Nudge(id(i))
			if tc.taken { // documented: it is seen by what it serves alone
				r.until("the stranger's model", func(eps []endpoint.Endpoint) bool { return eps[0].Served[0].Name == "strangers-model" })
				return
			}
			r.state(i, endpoint.Starting, "")
			if tc.other == "" {
				for _, q := range other.Requests() {
					noSecrets(t, "a request to a stranger that asks for no key", fmt.Sprint(q.Header), tc.own, i.Token())
				}
			}
		})
	}
}

// double is a console of which a test writes the rows itself, and a place where instances answer.
type double struct {
	*httptest.Server
	mu   sync.Mutex // guards all below
	rows []map[string]any
	seen []string // Authorization of requests to instances
}

func newDouble(t *testing.T, instance http.HandlerFunc, rows ...map[string]any) *double {
	d := &double{rows: rows}
	d.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/v1/instances/" {
			d.mu.Lock()
			defer d.mu.Unlock()
			_ = json.NewEncoder(w).Encode(map[string]any{"success": true, "instances": d.rows, "total_instances": len(d.rows), "next_token": nil})
			return
		}
		if strings.HasPrefix(r.URL.Path, "/api/") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		d.mu.Lock()
		d.seen = append(d.seen, r.Header.Get("Authorization"))
		d.mu.Unlock()
		instance(w, r)
	}))
	t.Cleanup(d.Close)
	return d
}

func (d *double) shown() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.seen, " ")
}

// rowAt is a running instance at the double.
func (d *double) rowAt(id int, more map[string]any) map[string]any {
	u, _ := strings.CutPrefix(d.URL, "http://")
	ip, port, _ := net.SplitHostPort(u)
	m := map[string]any{
		"id": id, "actual_status": "running", "cur_state": "running", "next_state": "running", "intended_status": "running", "is_bid": false,
		"public_ipaddr": ip, "ports": map[string]any{"8000/tcp": []any{map[string]any{"HostIp": "0.0.0.0", "HostPort": port}}},
		"dph_total": 0.4, "start_date": 1787722703.2, "jupyter_token": "jupyter-token-" + strconv.Itoa(id),
	}
	maps.Copy(m, more)
	return m
}

func (d *double) provider(t *testing.T, change func(*vast.Options)) *rig {
	t.Helper()
	c := fleetOf(t, fakevast.Config{}, 0)
	return attach(t, c, func(o *vast.Options) {
		o.ConsoleURL = d.URL
		if change != nil {
			change(o)
		}
	})
}

func TestOtherServers(t *testing.T) {
	models := `{"object":"list","data":[{"id":"m","max_model_len":4096}]}`
	say := func(status int, contentType, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	for name, tc := range map[string]struct {
		h     http.HandlerFunc
		why   string
		shown bool // keys were shown to it
	}{
		"web page":          {say(200, "text/html", "<html>nice</html>"), "web page", false},
		"not found":         {say(404, "application/json", `{"detail":"Not Found"}`), "gives 404", false},
		"other JSON":        {say(200, "application/json", `{"hello":"world"}`), "no list of models", false},
		"list of odd cards": {say(200, "application/json", `{"data":[{"name":"x"}]}`), "no list of models", false},
		"no model yet":      {say(200, "application/json", `{"object":"list","data":[]}`), "no model yet", false},
		"endless list":      {say(200, "application/json", `{"data":[`+strings.Repeat(" ", 1<<20)+`]}`), "larger than 1 MiB", false},
		"redirect to elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		}, "gives 302", false},
		"loading":           {say(503, "text/plain", "loading"), "answers 503", false},
		"placeholder":       {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Portal-Placeholder", "true") }, "portal", false},
		"refuses every key": {say(401, "application/json", `{"error":"Unauthorized"}`), "refuses the keys", true},
		"TLS by its word":   {say(400, "text/plain", "Client sent an HTTP request to an HTTPS server.\n"), "Vast.ai's root certificate could not be fetched", false},
		"breaks off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte("{"))
		}, "breaks its answer off", false},
		"no HTTP": {func(w http.ResponseWriter, _ *http.Request) {
			c, _, _ := http.NewResponseController(w).Hijack()
			_, _ = c.Write([]byte("SSH-2.0-OpenSSH_9.6\r\n"))
			_ = c.Close()
		}, "fails", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDouble(t, tc.h)
			d.rows = []map[string]any{d.rowAt(1, map[string]any{"image_args": []any{"--api-key", "args-secret"}, "extra_env": []any{[]any{"WEB_PASSWORD", "env-secret"}}})}
			r := d.provider(t, nil)
			eps := r.until("the reason "+tc.why, func(eps []endpoint.Endpoint) bool {
				return eps[0].State == endpoint.Starting && strings.Contains(eps[0].StateReason, tc.why)
			})
			if eps[0].APIKey != "" {
				t.Error("it has a key")
			}
			if !tc.shown {
				noSecrets(t, "a server that is none of ours", d.shown(), "args-secret", "env-secret", "jupyter-token")
			} else if !strings.Contains(d.shown(), "args-secret") {
				t.Error("no key was tried")
			}
		})
	}
	t.Run("then ours", func(t *testing.T) {
		t.Parallel()
		d := newDouble(t, say(200, "application/json", models))
		d.rows = []map[string]any{d.rowAt(1, nil)}
		eps := d.provider(t, nil).until("ready", func(eps []endpoint.Endpoint) bool { return eps[0].State == endpoint.Ready })
		if eps[0].Served[0].MaxContext != 4096 {
			t.Errorf("%+v", eps[0].Served)
		}
		noSecrets(t, "an open server", d.shown(), "jupyter-token")
	})
}

// TestOneAddressTwice lets two instances claim one address: neither is trusted unless a key of its own tells it apart.
func TestOneAddressTwice(t *testing.T) {
	for name, tc := range map[string]struct {
		key   string // that the server asks for, "" for none
		ready []int
	}{
		"open":             {"", nil},
		"key of the first": {"jupyter-token-1", []int{1}},
		"key of both":      {"shared-secret", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDouble(t, func(w http.ResponseWriter, r *http.Request) {
				if tc.key != "" && r.Header.Get("Authorization") != "Bearer "+tc.key {
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				_, _ = w.Write([]byte(`{"data":[{"id":"m"}]}`))
			})
			shared := map[string]any{"extra_env": map[string]any{"WEB_PASSWORD": "shared-secret"}}
			d.rows = []map[string]any{d.rowAt(1, shared), d.rowAt(2, shared)}
			r := d.provider(t, nil)
			r.until("both to be known", func(eps []endpoint.Endpoint) bool {
				var ready []int
				for i, ep := range eps {
					if ep.State == endpoint.Ready {
						ready = append(ready, i+1)
					} else if !strings.Contains(ep.StateReason, "claims the same address") {
						return false
					}
				}
				return slices.Equal(ready, tc.ready)
			})
			d.mu.Lock()
			d.rows = d.rows[:1] // the other is gone
			d.mu.Unlock()
			if tc.key != "shared-secret" {
				r.until("the one that is left", func(eps []endpoint.Endpoint) bool { return len(eps) == 1 && eps[0].State == endpoint.Ready })
			}
		})
	}
}

// TestOneAddressThrice is the same with a key that is the first's and the third's, but not the second's.
func TestOneAddressThrice(t *testing.T) {
	d := newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer key-of-two" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write([]byte(`{"data":[{"id":"m"}]}`))
	})
	for k, key := range []string{"key-of-two", "key-of-one", "key-of-two"} {
		d.rows = append(d.rows, d.rowAt(k+1, map[string]any{"extra_env": map[string]any{"WEB_PASSWORD": key}}))
	}
	r := d.provider(t, nil)
	polls := r.p.Status().Polls
	r.until("all to be told so", func(eps []endpoint.Endpoint) bool {
		return len(eps) == 3 && !slices.ContainsFunc(eps, func(ep endpoint.Endpoint) bool {
			return ep.State != endpoint.Starting || !strings.Contains(ep.StateReason, "claims the same address")
		}) && r.p.Status().Polls > polls
	})
}

// TestPortIsLearned finds the model among an instance's ports.
func TestPortIsLearned(t *testing.T) {
	for name, tc := range map[string]struct {
		ic   fakevast.InstanceConfig
		port int
		want string // vast_port, "" for not ready
	}{
		"8000":                  {fakevast.InstanceConfig{OtherPorts: []int{22, 8080, 9000}}, 0, "8000"},
		"asked for":             {fakevast.InstanceConfig{ContainerPort: 9123, OtherPorts: []int{22, 1111, 7000}}, 0, "9123"},
		"the one that answers":  {fakevast.InstanceConfig{ContainerPort: 30000, NoPortInEnv: true, OtherPorts: []int{22, 8080, 20000}}, 0, "30000"},
		"configured":            {fakevast.InstanceConfig{ContainerPort: 9123}, 9123, "9123"},
		"configured, not there": {fakevast.InstanceConfig{}, 9123, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, fakevast.Config{}, func(o *vast.Options) { o.Port = tc.port }, tc.ic)
			i := r.cloud.Instances()[0]
			if tc.want == "" {
				r.state(i, endpoint.Starting, "port 9123 is not mapped")
				return
			}
			if ep := r.state(i, endpoint.Ready, ""); ep.Labels["vast_port"] != tc.want {
				t.Errorf("port %q, want %s", ep.Labels["vast_port"], tc.want)
			}
		})
	}
}

func TestTLSModes(t *testing.T) {
	https := func(c fakevast.Certificate) fakevast.InstanceConfig {
		return fakevast.InstanceConfig{Template: fakevast.Portal, Portal: fakevast.PortalConfig{HTTPS: true, Certificate: c}}
	}
	for name, tc := range map[string]struct {
		ic        fakevast.InstanceConfig
		mode      vast.TLSMode
		encrypted bool
		why       string // it is not ready
	}{
		"auto, plain":               {fakevast.InstanceConfig{}, vast.TLSAuto, false, ""},
		"auto, signed":              {https(fakevast.Signed), vast.TLSAuto, true, ""},
		"auto, signed but expired":  {https(fakevast.SignedButLapsed), vast.TLSAuto, true, ""},
		"auto, self-signed":         {https(fakevast.SelfSigned), vast.TLSAuto, false, "not trusted"},
		"vast, signed":              {https(fakevast.Signed), vast.TLSVast, true, ""},
		"vast, self-signed":         {https(fakevast.SelfSigned), vast.TLSVast, false, "not trusted"},
		"vast, plain":               {fakevast.InstanceConfig{}, vast.TLSVast, false, "fails"},
		"system, signed":            {https(fakevast.SignedWithIP), vast.TLSSystem, false, "not trusted"},
		"pin, self-signed":          {https(fakevast.SelfSigned), vast.TLSPin, true, ""},
		"insecure, self-signed":     {https(fakevast.SelfSigned), vast.TLSInsecure, false, ""},
		"plain, https redirects it": {https(fakevast.Signed), vast.TLSPlain, false, "speaks TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, fakevast.Config{}, func(o *vast.Options) { o.TLS = tc.mode }, tc.ic)
			i := r.cloud.Instances()[0]
			if tc.why != "" {
				r.state(i, endpoint.Starting, tc.why)
				return
			}
			ep := r.state(i, endpoint.Ready, "")
			if ep.Encrypted() != tc.encrypted {
				t.Errorf("encrypted: %v (%s, %+v)", ep.Encrypted(), ep.BaseURL, ep.TLS)
			}
			if _, err := ep.TLS.Config("127.0.0.1"); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPinOutlivesStop has another server take over a pinned instance's address while it does not run: as long as the instance has
// not started anew, by its start time, that one is no other than a stranger.
func TestPinOutlivesStop(t *testing.T) {
	var exited, renewed atomic.Bool
	start0 := regexp.MustCompile(`"start_date":[0-9.e+]+`)
	r := start(t, fakevast.Config{}, func(o *vast.Options) {
		o.TLS = vast.TLSPin
		o.Transport = roundTrip(func(req *http.Request) (*http.Response, error) {
			res, err := http.DefaultTransport.RoundTrip(req)
			if err != nil || req.URL.Path != "/api/v1/instances/" {
				return res, err
			}
			b, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if exited.Load() {
				b = bytes.ReplaceAll(b, []byte(`"actual_status":"running"`), []byte(`"actual_status":"exited"`))
			}
			if renewed.Load() {
				b = start0.ReplaceAll(b, []byte(`"start_date":1800000000.5`))
			}
			return answer(req, res.StatusCode, string(b)), err
		})
	}, fakevast.InstanceConfig{Template: fakevast.Portal, Portal: fakevast.PortalConfig{HTTPS: true}})
	i := r.cloud.Instances()[0]
	pin := r.state(i, endpoint.Ready, "").TLS.Pin
	exited.Store(true)
	r.until("the instance to leave", func(eps []endpoint.Endpoint) bool { return eps[0].State != endpoint.Ready })
	other := i.ReuseAddress(fakecloud.HostConfig{Name: "stranger", TLS: true})
	exited.Store(false)
	r.state(i, endpoint.Starting, "another certificate")
	if n := len(other.Requests()); n > 0 {
		t.Errorf("%d requests were sent over a connection whose certificate is not the pinned one", n)
	}
	renewed.Store(true)
	r.until("the new start's server to be asked", func([]endpoint.Endpoint) bool { return len(other.Requests()) > 0 })
	if len(pin) != 64 {
		t.Errorf("pin %q", pin)
	}
}

// TestPinHolds lets a host with another certificate answer at a pinned address.
func TestPinHolds(t *testing.T) {
	r := start(t, fakevast.Config{}, func(o *vast.Options) { o.TLS = vast.TLSPin },
		fakevast.InstanceConfig{Template: fakevast.Portal, Portal: fakevast.PortalConfig{HTTPS: true}})
	i := r.cloud.Instances()[0]
	pin := r.state(i, endpoint.Ready, "").TLS.Pin
	if len(pin) != 64 {
		t.Fatalf("pin %q", pin)
	}
	other := i.ReuseAddress(fakecloud.HostConfig{Name: "stranger", TLS: true})
	r.p.Nudge(id(i))
	r.state(i, endpoint.Starting, "another certificate")
	if n := len(other.Requests()); n > 0 {
		t.Errorf("%d requests were sent over a connection whose certificate is not the pinned one", n)
	}
	i.Restart(0, "")
	if again := r.state(i, endpoint.Ready, "").TLS.Pin; len(again) != 64 {
		t.Errorf("pin %q", again)
	}
}
