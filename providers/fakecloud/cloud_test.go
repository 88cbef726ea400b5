package fakecloud_test

import (
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"headrace/providers/fakecloud"
)

func TestDraw(t *testing.T) {
	a := fakecloud.Draw(7, 12)
	if !reflect.DeepEqual(a, fakecloud.Draw(7, 12)) {
		t.Error("the same seed drew other hosts")
	}
	if reflect.DeepEqual(a, fakecloud.Draw(8, 12)) {
		t.Error("another seed drew the same hosts")
	}
	names := map[string]bool{}
	classes := map[string]int{}
	for i, s := range a {
		names[s.Name] = true
		classes[s.Class.Name+" "+s.Provider]++
		o := s.Class.Offer(s.Provider)
		in := func(what string, x float64, r fakecloud.Range) {
			if x < r.Low-0.001 || x > r.High {
				t.Errorf("host %d: %s %v outside of %v", i, what, x, r)
			}
		}
		in("price", s.USDPerHour, o.USDPerHour)
		in("TPS", s.TPS, o.TPS)
		in("TTFT", float64(s.TTFT.Milliseconds())+0.5, o.TTFT)
	}
	if len(names) != 12 || len(classes) != 2*len(fakecloud.Classes) {
		t.Errorf("%d names, classes %v", len(names), classes)
	}
	for _, s := range fakecloud.Draw(1, 4, fakecloud.Classes[2]) {
		if s.Class.Name != fakecloud.Classes[2].Name {
			t.Errorf("class %s was not asked for", s.Class.Name)
		}
	}
}

func TestCloud(t *testing.T) {
	noLeak(t, func() {
		dir := t.TempDir()
		c, err := fakecloud.StartCloud(t.Context(), fakecloud.CloudConfig{
			Hosts: fakecloud.Draw(1, 5), Base: fakecloud.HostConfig{APIKey: "k", TLS: true}, CADir: dir,
		})
		if err != nil {
			t.Fatal(err)
		}
		var parsed struct {
			Providers struct {
				Static []struct {
					Name, Tenure, GPU string
					BaseURL           string `yaml:"base_url"`
					APIKey            string `yaml:"api_key"`
					MaxNumSeqs        int    `yaml:"max_num_seqs"`
					Price             struct {
						USDPerHour float64 `yaml:"usd_per_hour"`
					}
					Labels map[string]string
					TLS    struct{ CA string }
				}
			}
		}
		if err := yaml.Unmarshal([]byte(c.YAML()), &parsed); err != nil {
			t.Fatalf("%v in\n%s", err, c.YAML())
		}
		for i, h := range c.Hosts() {
			s := parsed.Providers.Static[i]
			tenure := map[string]string{"vast": "interruptible", "runpod": "on_demand"}[h.Config().Provider]
			if s.Name != h.Name() || s.BaseURL != h.URL()+"/v1" || s.APIKey != "k" || s.Price.USDPerHour != h.Config().USDPerHour || s.Tenure != tenure ||
				s.GPU != h.Config().Class.GPU || s.TLS.CA != filepath.Join(dir, h.Name()+".pem") || s.Labels["provider"] != h.Config().Provider {
				t.Errorf("host %s is written as %+v", h.Name(), s)
			}
			if _, err := os.Stat(s.TLS.CA); err != nil {
				t.Error(err)
			}
			if c.Host(h.Name()) != h {
				t.Errorf("host %s is not found by name", h.Name())
			}
		}
		if c.Host("nobody") != nil {
			t.Error("found a host that is not there")
		}
		c.Stop()
	})
}

func TestCloudStartsAllOrNone(t *testing.T) {
	taken := start(t, fakecloud.HostConfig{})
	noLeak(t, func() {
		specs := fakecloud.Draw(1, 2)
		addr := strings.TrimPrefix(taken.URL(), "http://127.0.0.1:")
		port := 0
		for _, d := range addr {
			port = 10*port + int(d-'0')
		}
		if _, err := fakecloud.StartCloud(t.Context(), fakecloud.CloudConfig{Hosts: specs, Port: port - 1}); err == nil {
			t.Error("started on a port that is taken")
		}
	})
	if status, _, _ := do(t, taken, http.MethodGet, "/health", ""); status != http.StatusOK {
		t.Errorf("the host that had the port: status %d", status)
	}
}
