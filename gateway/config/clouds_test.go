package config

import (
	"strings"
	"testing"
	"time"
)

func env(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

// TestZeroConfig takes accounts from the environment, with no file at all.
func TestZeroConfig(t *testing.T) {
	c, err := Parse("", nil, Overrides{}, env(
		"RUNPOD_API_KEY", "rpa_1", "RUNPOD_QUEUE_URL", "http://127.0.0.1:1/v2/", "RUNPOD_PODS", "1",
		"VAST_API_KEY", "v1", "VAST_POLL", "2s", "VAST_SERVERLESS", "true", "VAST_WEBHOOK_SECRET", "w"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	r, v := c.Providers.RunPod, c.Providers.Vast
	if r == nil || r.APIKey.Reveal() != "rpa_1" || r.QueueURL != "http://127.0.0.1:1/v2" || r.ManagementURL != "https://api.runpod.io/v2" || r.HealthPoll != 5*time.Second ||
		len(r.Endpoints) != 0 || len(r.Pods) != 1 || r.Pods[0].Match != "*" || r.Pods[0].Port != 8000 {
		t.Errorf("runpod %+v", r)
	}
	if v == nil || v.APIKey.Reveal() != "v1" || v.Poll != 2*time.Second || v.Instances.TLS != "auto" || v.Instances.LeaveBefore != 10*time.Minute ||
		len(v.Serverless) != 1 || v.Serverless[0].Way != "proxy" || v.WebhookSecret.Reveal() != "w" {
		t.Errorf("vast %+v", v)
	}
}

// TestCloudsAndFile says which of file and environment decides.
func TestCloudsAndFile(t *testing.T) {
	keys := env("RUNPOD_API_KEY", "rpa_env", "VAST_API_KEY", "vast_env")
	for name, tc := range map[string]struct {
		src          string
		runpod, vast string // keys in force, "" for a provider that is not asked
	}{
		"a file without providers refines":   {"models: {m: {serves: [x]}}\n", "rpa_env", "vast_env"},
		"a providers section is in charge":   {"providers:\n  runpod:\n", "rpa_env", ""},
		"an empty section takes the key":     {"providers: {vast: {}}\n", "", "vast_env"},
		"a key in the file wins":             {"providers: {runpod: {api_key: file}}\n", "file", ""},
		"static hosts alone stay alone":      {"providers: {static: [{name: a, base_url: \"http://a\"}]}\n", "", ""},
		"sections and short forms of a list": {"providers: {runpod: {endpoints: [\"a*\", {match: b, native: true}]}}\n", "rpa_env", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Parse("f.yaml", []byte(tc.src), Overrides{}, keys)
			if err != nil {
				t.Fatal(err)
			}
			var runpod, vast string
			if c.Providers.RunPod != nil {
				runpod = c.Providers.RunPod.APIKey.Reveal()
			}
			if c.Providers.Vast != nil {
				vast = c.Providers.Vast.APIKey.Reveal()
			}
			if runpod != tc.runpod || vast != tc.vast {
				t.Errorf("keys %q and %q, want %q and %q", runpod, vast, tc.runpod, tc.vast)
			}
		})
	}
}

func TestBadClouds(t *testing.T) {
	for name, tc := range map[string]struct {
		src  string
		env  []string
		want string
	}{
		"no key":             {"providers: {runpod: {}}", nil, "f.yaml:1:21: providers.runpod: has no api_key; set RUNPOD_API_KEY, or write api_key"},
		"key with a space":   {"", []string{"VAST_API_KEY", "a b"}, "environment variable VAST_API_KEY: holds a space or a control character; write the key alone"},
		"pattern":            {"providers: {runpod: {api_key: k, endpoints: [\"a*b\"]}}", nil, `"a*b" is no id or name, nor the beginning of one with "*" at its end`},
		"address":            {"providers: {vast: {api_key: k, console_url: \"console.vast.ai\"}}", nil, "providers.vast.console_url: is no http:// or https:// address"},
		"address without id": {"providers: {runpod: {api_key: k, balancer_url: \"https://x\"}}", nil, "providers.runpod.balancer_url: has no {id}; write the address with {id} in it"},
		"address of env":     {"", []string{"RUNPOD_API_KEY", "k", "RUNPOD_POD_URL", "https://{id}"}, "environment variable RUNPOD_POD_URL: has no {port}"},
		"duration of env":    {"", []string{"RUNPOD_API_KEY", "k", "RUNPOD_POLL", "0s"}, "environment variable RUNPOD_POLL: must be above 0"},
		"flag of env":        {"", []string{"VAST_API_KEY", "k", "VAST_SERVERLESS", "maybe"}, "environment variable VAST_SERVERLESS: is neither true nor false"},
		"action unknown":     {"providers: {runpod: {api_key: k, endpoints: [{match: a, actions: warm}]}}", nil, "providers.runpod.endpoints[0].actions: "},
		"hold without file":  {"providers: {runpod: {api_key: k, endpoints: [{match: a, actions: hold}]}}", nil, "providers.runpod.endpoints[0].actions: cannot be hold: there is nowhere to remember"},
		"none to be held":    {"providers: {runpod: {api_key: k, max_held: 0}}", nil, "providers.runpod.max_held: "},
		"trust":              {"models: {m: {serves: [x], require: {trust: high}}}", nil, `providers`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("f.yaml", []byte(tc.src), Overrides{}, env(tc.env...))
			if name == "trust" {
				if err == nil || !strings.Contains(err.Error(), "models.m.require.trust") {
					t.Errorf("got %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v\nwant %s", err, tc.want)
			}
		})
	}
}
