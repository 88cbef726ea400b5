package config

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"headrace/router/endpoint"
)

const oneHost = `
providers:
  static:
    - name: lab
      base_url: "http://gpu-box:8000/v1"
`

// accepted are files without a mistake and something to look at in what they mean.
var accepted = map[string]struct {
	src  string
	look func(*Config) any
	want any
}{
	"one address": {`listen: "[::1]:0"`, func(c *Config) any { return c.Listen }, []Listener{{Address: "[::1]:0"}}},
	"one section": {
		`listen: {address: "localhost:8443", tls: {cert: a.pem, key: /etc/b.pem}}`, func(c *Config) any { return c.Listen },
		[]Listener{{Address: "localhost:8443", TLS: &ListenTLS{Cert: "dir/a.pem", Key: "/etc/b.pem"}}},
	},
	"list of both": {
		`listen: ["127.0.0.1:1", {address: "127.0.0.2:1"}]`, func(c *Config) any { return c.Listen },
		[]Listener{{Address: "127.0.0.1:1"}, {Address: "127.0.0.2:1"}},
	},
	"open to all, asked for":   {"listen: \":8080\"\nallow_unauthenticated: true", func(c *Config) any { return c.Listen[0].Address }, ":8080"},
	"admin off":                {"admin: off", func(c *Config) any { return c.Admin }, "off"},
	"nothing":                  {"# listen: \"x\"\n", func(c *Config) any { return c.Listen }, []Listener{{Address: "127.0.0.1:8080"}}},
	"open to those with a key": {"listen: \":8080\"\nkeys: [{name: a, key: 0123456789abcdefghij, admin: true}]\nadmin: :9090", func(c *Config) any { return c.Admin }, ":9090"},
	"open to keys made later":  {"listen: \":8080\"\nrequire_key: true", func(c *Config) any { return c.RequireKey }, true},
	"a key's end":              {"keys: [{name: a, key: 0123456789abcdefghij, expires: 2030-01-02}]", func(c *Config) any { return c.Keys[0].ExpiresAt.Unix() }, int64(1893542400)},
	"one port, two families":   {"listen: [\"0.0.0.0:1\", \"[::1]:1\"]\nallow_unauthenticated: true", func(c *Config) any { return len(c.Listen) }, 2},
	"empty sections":           {"providers:\nmodels:\nlimits:\n", func(c *Config) any { return c.Limits.MaxBody }, int64(32 << 20)},
	"other values stay default": {
		"timeouts: {gap: 1m30s, heartbeat: 0}", func(c *Config) any { return []time.Duration{c.Timeouts.Gap, c.Timeouts.Total, c.Timeouts.Heartbeat} },
		[]time.Duration{90 * time.Second, 30 * time.Minute, 0},
	},
	"sizes": {
		"limits: {max_body: 1.5MiB, max_upload: 2GB, max_head: 4096}", func(c *Config) any { return c.Limits },
		Limits{MaxBody: 3 << 19, MaxUpload: 2_000_000_000, MaxInFlight: 10000, MaxHead: 4096, MaxContinuation: 256 << 10, MaxGathered: 16 << 20},
	},
	"log": {"log: {level: error, format: text, access: False}", func(c *Config) any { return c.Log }, Log{Level: slog.LevelError, Format: "text"}},
	"variables in typed values": {
		oneHost + "      max_num_seqs: ${SEQS}\n      inject_usage: \"${NO:-false}\"\n      region: \"${EMPTY:-}eu-$${SEQS}\"\ntimeouts: {connect: \"${SECONDS}\"}\nlog: {access: \"${YES}\"}",
		func(c *Config) any {
			h := c.Providers.Static[0]
			return []any{h.MaxNumSeqs, h.InjectUsage, h.Region, c.Timeouts.Connect, c.Log.Access}
		},
		[]any{64, false, "eu-${SEQS}", 5 * time.Second, true},
	},
	"a variable adds no structure": {
		oneHost + `      gpu: "${INJECTED}"`, func(c *Config) any { return c.Providers.Static[0].GPU }, "x\n      name: y",
	},
	"anchors and merges": {
		"providers:\n  static:\n    - &a {name: a, base_url: \"http://a\", gpu: X, labels: &l {k: v}}\n    - {<<: *a, name: b, labels: *l}\n    - {<<: [{gpu: Y}, *a], name: c}",
		func(c *Config) any {
			var got []string
			for _, h := range c.Providers.Static {
				got = append(got, h.Name+h.GPU+h.Labels["k"])
			}
			return got
		},
		[]string{"aXv", "bXv", "cYv"},
	},
	"host models": {
		oneHost + `      models: [a, {name: b, max_context: 4096}]`, func(c *Config) any { return c.Providers.Static[0].Models },
		[]HostModel{{Name: "a"}, {Name: "b", MaxContext: 4096}},
	},
	"patterns find models": {
		oneHost + "      models: [org/llama-70b]\nmodels: {l: {serves: [org/llama-*]}, all: {serves: [\"*\"]}}",
		func(c *Config) any { return len(c.Models) }, 2,
	},
	"price of nothing": {
		oneHost + "      price: {usd_per_hour: 0}", func(c *Config) any { return c.Providers.Static[0].Price }, Price{Basis: endpoint.PerHour},
	},
}

func acceptedEnv(name string) (string, bool) {
	if name == "INJECTED" {
		return "x\n      name: y", true
	}
	return testEnv(name)
}

func TestAccepted(t *testing.T) {
	for name, tc := range accepted {
		t.Run(name, func(t *testing.T) {
			c, err := Parse("dir/headrace.yaml", []byte(tc.src), Overrides{}, acceptedEnv)
			if err != nil {
				t.Fatal(err)
			}
			if got := tc.look(c); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestStaticEndpoints(t *testing.T) {
	src := `
providers:
  static:
    - name: lab
      base_url: "https://gpu-box:8000/v1//"
      models: [m, {name: n, max_context: 10}]
      api_key: "${LAB_KEY}"
      price: {usd_per_hour: 1.80}
      gpu: A100 80GB
      machine: r7
      region: eu
      trust: verified
      max_num_seqs: 256
      labels: {a: b}
      tls: {ca: ca.pem, server_name: x, insecure_skip_verify: true}
      inject_usage: false
      continues: always
    - {name: burst, base_url: "http://b", price: {usd_per_worker_second: 0.0004, cold_start: 45s, idle_timeout: 5s}}
    - {name: api, base_url: "http://c", price: {usd_per_mtok: {in: 0.4, out: 1.2}}}
    - {name: api2, base_url: "http://c", price: {usd_per_mtok: {in: 0.4, cached: 0, out: 1.2}}, tenure: serverless}
    - {name: free, base_url: "http://d", continues: never}
`
	c, err := Parse("/etc/headrace/headrace.yaml", []byte(src), Overrides{}, testEnv)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	price := func(p endpoint.Price) endpoint.Price { p.AsOf, p.Source = now, "config"; return p }
	want := []endpoint.Endpoint{
		{
			ID: "static:lab", Provider: "static", BaseURL: "https://gpu-box:8000/v1", APIKey: labKey,
			Served:   []endpoint.Served{{Name: "m"}, {Name: "n", MaxContext: 10}},
			Hardware: endpoint.Hardware{GPU: "A100 80GB", Machine: "r7"}, Trust: endpoint.TrustVerified, Region: "eu", MaxNumSeqs: 256,
			Price: price(endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 1.8}), Tenure: endpoint.OnDemand,
			Labels:           map[string]string{"a": "b"},
			TLS:              endpoint.TLS{Roots: "tls.ca: open /etc/headrace/ca.pem: no such file or directory", ServerName: "x", InsecureSkipVerify: true},
			NoUsageInjection: true, Continues: endpoint.ContinuesAlways,
		},
		{
			ID: "static:burst", Provider: "static", BaseURL: "http://b", Tenure: endpoint.Serverless,
			Price: price(endpoint.Price{Basis: endpoint.PerWorkerSecond, USDPerWorkerSecond: 0.0004, ColdStart: 45 * time.Second, IdleTimeout: 5 * time.Second}),
		},
		{
			ID: "static:api", Provider: "static", BaseURL: "http://c", Tenure: endpoint.TenurePerToken,
			Price: price(endpoint.Price{Basis: endpoint.PerToken, USDPerMTokIn: 0.4, USDPerMTokCached: 0.4, USDPerMTokOut: 1.2}),
		},
		{
			ID: "static:api2", Provider: "static", BaseURL: "http://c", Tenure: endpoint.Serverless,
			Price: price(endpoint.Price{Basis: endpoint.PerToken, USDPerMTokIn: 0.4, USDPerMTokOut: 1.2}),
		},
		{ID: "static:free", Provider: "static", BaseURL: "http://d", Continues: endpoint.ContinuesNever},
	}
	got := c.StaticEndpoints(now)
	if len(got) != len(want) {
		t.Fatalf("%d endpoints, want %d", len(got), len(want))
	}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("endpoint %d\n got %+v\nwant %+v", i, got[i], want[i])
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v"} {
		if s := fmt.Sprintf(verb, c); strings.Contains(s, labKey) {
			t.Errorf("%s prints the key: %s", verb, s)
		}
	}
}

func TestOverrides(t *testing.T) {
	no, yes := false, true
	env := func(pairs ...string) func(string) (string, bool) {
		return func(name string) (string, bool) {
			for i := 0; i < len(pairs); i += 2 {
				if pairs[i] == name {
					return pairs[i+1], true
				}
			}
			return "", false
		}
	}
	withTLS := `listen: [{address: "127.0.0.1:8443", tls: {cert: a, key: b}}]`
	for name, tc := range map[string]struct {
		src     string
		env     func(string) (string, bool)
		o       Overrides
		want    string // "listen admin allow level", or the problem
		problem bool
	}{
		"defaults":                      {"", env(), Overrides{}, "127.0.0.1:8080 127.0.0.1:9090 false INFO", false},
		"file":                          {"listen: 127.0.0.1:1\nlog: {level: warn}", env(), Overrides{}, "127.0.0.1:1 127.0.0.1:9090 false WARN", false},
		"environment over file":         {"listen: 127.0.0.1:1", env(EnvListen, "127.0.0.1:2", EnvAdmin, "off"), Overrides{}, "127.0.0.1:2 off false INFO", false},
		"empty environment is none":     {"listen: 127.0.0.1:1", env(EnvListen, "", EnvAdmin, ""), Overrides{}, "127.0.0.1:1 127.0.0.1:9090 false INFO", false},
		"flags over environment":        {"", env(EnvListen, "127.0.0.1:2", EnvAdmin, "off"), Overrides{Listen: "127.0.0.1:3", Admin: "127.0.0.1:4", LogLevel: "debug"}, "127.0.0.1:3 127.0.0.1:4 false DEBUG", false},
		"several addresses":             {"", env(EnvListen, "127.0.0.1:2, [::1]:2"), Overrides{}, "127.0.0.1:2,[::1]:2 127.0.0.1:9090 false INFO", false},
		"allowed by environment":        {"listen: :1", env(EnvAllowUnauthenticated, "true"), Overrides{}, ":1 127.0.0.1:9090 true INFO", false},
		"forbidden by flag":             {"listen: :1", env(EnvAllowUnauthenticated, "true"), Overrides{AllowUnauthenticated: &no}, `headrace.yaml:1:9: listen: can be reached from other machines, and nobody is asked for a key; listen on 127.0.0.1, name "keys", write "require_key: true" to make them later, or "allow_unauthenticated: true" if that is meant`, true},
		"allowed by flag":               {"allow_unauthenticated: false", env(EnvListen, ":1"), Overrides{AllowUnauthenticated: &yes}, ":1 127.0.0.1:9090 true INFO", false},
		"TLS stays":                     {withTLS, env(EnvListen, "127.0.0.1:5"), Overrides{}, "127.0.0.1:5+tls 127.0.0.1:9090 false INFO", false},
		"TLS is not dropped":            {withTLS, env(), Overrides{Listen: "127.0.0.1:5,127.0.0.1:6"}, "flag --listen: would drop the TLS that the file sets under listen; change the addresses in the file, or keep one listener on both sides", true},
		"open by environment":           {"", env(EnvListen, ":1"), Overrides{}, `environment variable HEADRACE_LISTEN: can be reached from other machines, and nobody is asked for a key; listen on 127.0.0.1, name "keys", write "require_key: true" to make them later, or "allow_unauthenticated: true" if that is meant`, true},
		"bad address from environment":  {"", env(EnvListen, "sk-secret"), Overrides{}, `environment variable HEADRACE_LISTEN: is not host:port; write host:port, such as "127.0.0.1:8080"`, true},
		"bad address from flag":         {"", env(), Overrides{Admin: "9090"}, `flag --admin: "9090" is a port without a host; write host:port, such as "127.0.0.1:8080"`, true},
		"bad bool from environment":     {"listen: :1", env(EnvAllowUnauthenticated, "sk-secret"), Overrides{}, "environment variable HEADRACE_ALLOW_UNAUTHENTICATED: is neither true nor false; write true or false", true},
		"bad level from flag":           {"", env(), Overrides{LogLevel: "loud"}, `flag --log-level: "loud" is not known; write debug, info, warn or error`, true},
		"wildcard takes all":            {"listen: :9090", env(), Overrides{AllowUnauthenticated: &yes, Admin: "127.0.0.1:9090"}, "flag --admin: \"127.0.0.1:9090\" is taken by listen; give each listener a port of its own", true},
		"environment and file disagree": {"listen: 127.0.0.1:9090", env(EnvAdmin, "127.0.0.1:9090"), Overrides{}, "environment variable HEADRACE_ADMIN: is taken by listen; give each listener a port of its own", true},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Parse("headrace.yaml", []byte(tc.src), tc.o, tc.env)
			if tc.problem {
				if err == nil || err.Error() != tc.want {
					t.Errorf("error %v, want %s", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var listen []string
			for _, l := range c.Listen {
				if l.TLS != nil {
					l.Address += "+tls"
				}
				listen = append(listen, l.Address)
			}
			if got := fmt.Sprint(strings.Join(listen, ","), " ", c.Admin, " ", c.AllowUnauthenticated, " ", c.Log.Level); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "headrace.yaml")
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	load := func() (*Config, error) { return Load(path, Overrides{}, testEnv) }

	_, err := load()
	if !errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), path+": cannot be read: ") || strings.Count(err.Error(), path) != 1 {
		t.Errorf("without a file: %v", err)
	}

	write("headrace.yaml", "listen: {address: \"127.0.0.1:1\", tls: {cert: c.pem, key: .}}\n"+
		"providers: {static: [{name: a, base_url: \"https://a\", tls: {ca: \"${SEQS}\"}}]}\n")
	_, err = load()
	want := fmt.Sprintf(`%[1]s:1:46: listen.tls.cert: %[2]q cannot be read: no such file or directory; relative names start from the directory of the configuration file
%[1]s:1:58: listen.tls.key: %[3]q cannot be read: it is a directory; relative names start from the directory of the configuration file
%[1]s:2:65: providers.static[0].tls.ca: the value of ${SEQS} cannot be read: no such file or directory; relative names start from the directory of the configuration file`,
		path, abridged(filepath.Join(dir, "c.pem")), abridged(dir))
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}

	write("c.pem", "")
	write("k.pem", "")
	write("headrace.yaml", `listen: [{address: "127.0.0.1:1", tls: {cert: c.pem, key: k.pem}}, {address: "127.0.0.1:2", tls: {cert: c.pem, key: k.pem}}]`)
	c, err := load()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Files(), []string{path, filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")}; !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}

	write("headrace.yaml", strings.Repeat("#", maxFileBytes+1))
	if _, err := load(); err == nil || !strings.Contains(err.Error(), ":1:1: is larger than 1048576 bytes") {
		t.Errorf("oversized: %v", err)
	}
}

func TestValidateWantsAHost(t *testing.T) {
	for name, tc := range map[string]struct{ source, src, want string }{
		"without a file": {"", "", "providers: no host is configured, so there is nowhere to send requests; set RUNPOD_API_KEY or VAST_API_KEY to use what an account has rented, or write one to headrace.yaml, or name another file with --config, for example:\n\nproviders:\n"},
		"empty file":     {"headrace.yaml", "", "headrace.yaml:1:1: providers: no host is configured, so there is nowhere to send requests; set RUNPOD_API_KEY or VAST_API_KEY to use what an account has rented, or add one to the file, for example:\n\nproviders:\n"},
		"empty list":     {"headrace.yaml", "log: {}\nproviders:\n  static: []\n", "headrace.yaml:3:3: providers: no host"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Parse(tc.source, []byte(tc.src), Overrides{}, testEnv)
			if err != nil {
				t.Fatal(err)
			}
			err = c.Validate()
			if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Fatalf("got %v, want %s", err, tc.want)
			}
			// The example is good for copying.
			_, example, _ := strings.Cut(err.Error(), "\n\n")
			c, err = Parse("copied", []byte(example), Overrides{}, testEnv)
			if err != nil {
				t.Fatalf("the example: %v\n%s", err, example)
			}
			if err := c.Validate(); err != nil {
				t.Errorf("the example: %v", err)
			}
		})
	}
}
