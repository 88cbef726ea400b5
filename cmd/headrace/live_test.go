package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"headrace/gateway/config"
	"headrace/providers/fakecloud/fakevast"
)

// checked runs check --live as its command does.
func checked(t *testing.T, env map[string]string, output string) (text string, err error) {
	t.Helper()
	cfg, err := config.Parse("", nil, config.Overrides{}, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = checkLive(t.Context(), cfg, &out, output, liveTimes{all: 10 * time.Second, quiet: 300 * time.Millisecond})
	return out.String(), err
}

// TestCheckLive tells in plain words what a key can see, and warns of strangers' machines reached without TLS.
func TestCheckLive(t *testing.T) {
	cloud := startVast(t, fakevast.Config{TimeScale: 1000, EngineScale: -1, Seed: 1})
	up := cloud.AddInstance(fakevast.InstanceConfig{IsBid: true})
	lost := cloud.AddInstance(fakevast.InstanceConfig{Label: "x", Geolocation: "Bavaria, DE"})
	lost.Outbid(0)
	text, err := checked(t, vastEnv(cloud), "table")
	t.Log("\n" + text)
	if err != nil {
		t.Error(err)
	}
	for _, want := range []string{"vast: answers (2 hosts", "preempted", "requests go there", "strangers' machines are reached by plain HTTP"} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q", want)
		}
	}
	text, err = checked(t, vastEnv(cloud), "json")
	var rep liveReport
	if jerr := json.Unmarshal([]byte(text), &rep); jerr != nil || err != nil || len(rep.Hosts) != 2 {
		t.Fatalf("%v, %v: %s", jerr, err, text)
	}
	for _, h := range rep.Hosts {
		if h.Routable != (h.ID == "vast:"+idText(up.ID())) {
			t.Errorf("%s is routable: %v, since %s", h.ID, h.Routable, h.Why)
		}
	}
	if strings.Contains(text, up.Token()) || strings.Contains(text, "vast-key") {
		t.Error("a secret is shown")
	}

	t.Run("refused key", func(t *testing.T) {
		env := vastEnv(cloud)
		env["VAST_API_KEY"] = "wrong-key-1234"
		began := time.Now()
		text, err := checked(t, env, "table")
		if err == nil || !strings.Contains(text, "auth_error") || strings.Contains(text+err.Error(), "wrong-key-1234") {
			t.Errorf("%v: %s", err, text)
		}
		if time.Since(began) > 8*time.Second {
			t.Error("waited although nothing could come")
		}
		t.Log("\n", text, err)
	})
}
