package fakevast_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"headrace/providers/fakecloud/fakevast"
)

func start(t *testing.T, cfg fakevast.Config) *fakevast.Cloud {
	t.Helper()
	c, err := fakevast.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	return c
}

// client keeps no connection, so that each request dials.
var client = &http.Client{
	Timeout:       time.Minute,
	Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

type answer struct {
	status int
	header http.Header
	body   string
	v      map[string]any // of a JSON object
}

func (a *answer) str(t *testing.T, name string) string {
	t.Helper()
	s, ok := a.v[name].(string)
	if !ok {
		t.Fatalf("%s is %v in %s", name, a.v[name], a.body)
	}
	return s
}

// call asks with the key "vast-key", or with the one in header.
func call(t *testing.T, method, url, body string, header ...string) *answer {
	t.Helper()
	a, err := try(t.Context(), method, url, body, header...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return a
}

func try(ctx context.Context, method, url, body string, header ...string) (*answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer vast-key")
	for i := 0; i < len(header); i += 2 {
		req.Header.Del(header[i])
		if header[i+1] != "" {
			req.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	a := &answer{status: resp.StatusCode, header: resp.Header, body: string(b)}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	_ = dec.Decode(&a.v)
	return a, nil
}

// row reads one instance by the list.
func row(t *testing.T, c *fakevast.Cloud) map[string]any {
	t.Helper()
	a := call(t, "GET", c.ConsoleURL()+"/api/v1/instances/", "")
	list, _ := a.v["instances"].([]any)
	if len(list) != 1 {
		t.Fatalf("want one instance: %s", a.body)
	}
	r, _ := list[0].(map[string]any)
	return r
}

// until waits for a step of the cloud after which ok holds.
func until(t *testing.T, c *fakevast.Cloud, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.Wait(ctx, func(fakevast.Stats) bool { return ok() }); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func tuple(i *fakevast.Instance) string {
	a, c, n, in := i.States()
	return a + "/" + c + "/" + n + "/" + in
}

func TestInstanceServesAtItsAddress(t *testing.T) {
	c := start(t, fakevast.Config{})
	i := c.AddInstance(fakevast.InstanceConfig{Label: "gw", APIKey: "k"})
	r := row(t, c)
	ports, _ := r["ports"].(map[string]any)
	list, _ := ports["8000/tcp"].([]any)
	first, _ := list[0].(map[string]any)
	port, _ := first["HostPort"].(string)
	ip, _ := r["public_ipaddr"].(string)
	if url := "http://" + ip + ":" + port; url != i.URL() {
		t.Fatalf("the row leads to %s, the instance is at %s", url, i.URL())
	}
	if a := call(t, "GET", i.URL()+"/v1/models", "", "Authorization", "Bearer k"); a.status != 200 {
		t.Errorf("models: %d %s", a.status, a.body)
	}
	if a := call(t, "GET", i.URL()+"/v1/models", ""); a.status != 401 {
		t.Errorf("models with another key: %d %s", a.status, a.body)
	}
}

func TestLife(t *testing.T) {
	c := start(t, fakevast.Config{TimeScale: 600}) // 90 s pull = 150 ms, 180 s model = 300 ms
	i := c.AddInstance(fakevast.InstanceConfig{Boot: &fakevast.Boot{}})
	seen := map[string]bool{}
	until(t, c, "boot", func() bool {
		seen[tuple(i)] = true
		a, err := try(t.Context(), "GET", i.URL()+"/v1/models", "")
		return err == nil && a.status == 200
	})
	for _, want := range []string{"/running/running/running", "loading/running/running/running", "running/running/running/running"} {
		if !seen[want] {
			t.Errorf("never was %q: %v", want, seen)
		}
	}
	old := i.URL()
	i.Outbid(fakevast.ExitedQueued)
	if _, err := try(t.Context(), "GET", old+"/v1/models", ""); err == nil {
		t.Error("an outbid instance answers")
	}
	if got := tuple(i); got != "exited/stopped/running/running" {
		t.Errorf("outbid: %s", got)
	}
	i.Resume()
	until(t, c, "resume", func() bool {
		a, err := try(t.Context(), "GET", i.URL()+"/v1/models", "")
		return err == nil && a.status == 200
	})
	if i.URL() == old {
		t.Error("came back at the same port")
	}
}
