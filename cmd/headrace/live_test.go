package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"headrace/gateway/config"
	"headrace/providers/fakecloud/fakerunpod"
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
	err = checkLive(t.Context(), cfg, &out, output, liveTimes{all: patience, quiet: 300 * time.Millisecond})
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
		if time.Since(began) >= patience {
			t.Error("waited although nothing could come")
		}
		t.Log("\n", text, err)
	})
}

// TestCheckLiveWaitsForAHiccup: one answer that is lost says nothing of an account, and a refused key is told soon all the same.
func TestCheckLiveWaitsForAHiccup(t *testing.T) {
	t.Parallel() // most of it waits for the next look
	cloud := startRunPod(t, fakerunpod.Config{TimeScale: 1000, Seed: 1})
	cloud.AddEndpoint(fakerunpod.EndpointConfig{ID: "a", Env: map[string]string{"MODEL_NAME": "org/llama"}})
	target, err := url.Parse(cloud.ManagementURL())
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: target.Scheme, Host: target.Host}) }}
	var lists atomic.Int32
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/serverless") && lists.Add(1) == 1 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	defer front.Close()
	env := runpodEnv(cloud)
	env["RUNPOD_MANAGEMENT_URL"] = front.URL + target.Path
	text, err := checked(t, env, "table")
	if err != nil || !strings.Contains(text, "runpod:a") {
		t.Errorf("%v: %s", err, text)
	}
	env["RUNPOD_API_KEY"] = "rpa_wrong"
	began := time.Now()
	if text, err = checked(t, env, "table"); err == nil || !strings.Contains(text, "401") {
		t.Errorf("%v: %s", err, text)
	}
	if time.Since(began) >= patience {
		t.Error("waited although nothing could come")
	}
}
