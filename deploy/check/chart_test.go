// Package check renders the chart with Helm's own code, reads every manifest strictly as the Kubernetes type it claims to be, holds the pods
// to what docs/deploy.md promises, and loads the compose files as Compose does. `make deploy-check` runs it.
package check

import (
	"io"
	"log"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"
)

const chartPath = "../helm/headrace"

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load(chartPath)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func values(t *testing.T, file string) map[string]any {
	t.Helper()
	v, err := chartutil.ReadValuesFile(filepath.Join(chartPath, "ci", file))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// render returns the manifests by kind and name.
func render(t *testing.T, vals map[string]any) (map[string][]byte, error) {
	t.Helper()
	c := load(t)
	caps := chartutil.DefaultCapabilities.Copy()
	caps.KubeVersion = chartutil.KubeVersion{Version: "v1.31.0", Major: "1", Minor: "31"}
	top, err := chartutil.ToRenderValues(c, vals, chartutil.ReleaseOptions{Name: "r", Namespace: "llm", IsInstall: true}, caps)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(c, top)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for name, text := range files {
		if strings.HasSuffix(name, "NOTES.txt") {
			continue
		}
		for _, doc := range strings.Split(text, "\n---\n") {
			var head struct {
				Kind     string
				Metadata struct{ Name string }
			}
			if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, doc)
			}
			if head.Kind != "" {
				out[head.Kind+"/"+head.Metadata.Name] = []byte(doc)
			}
		}
	}
	return out, nil
}

// as reads a manifest as a T; unknown and doubled fields fail.
func as[T any](t *testing.T, docs map[string][]byte, id string) *T {
	t.Helper()
	doc, ok := docs[id]
	if !ok {
		t.Fatalf("no %s, but %v", id, slices.Sorted(maps.Keys(docs)))
	}
	out := new(T)
	if err := yaml.UnmarshalStrict(doc, out); err != nil {
		t.Fatalf("%s: %v\n%s", id, err, doc)
	}
	return out
}

func TestLint(t *testing.T) {
	for _, file := range []string{"small.yaml", "full.yaml", "keys.yaml"} {
		for _, m := range lint.All(chartPath, values(t, file), "llm", true).Messages {
			if m.Severity > support.InfoSev {
				t.Errorf("%s: %v", file, m)
			}
		}
	}
}

// TestManifests reads all that both sets of values yield.
func TestManifests(t *testing.T) {
	small, err := render(t, values(t, "small.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	full, err := render(t, values(t, "full.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"ConfigMap/r-headrace", "Deployment/r-headrace", "NetworkPolicy/r-headrace", "PodDisruptionBudget/r-headrace",
		"Service/r-headrace", "Service/r-headrace-admin", "ServiceAccount/r-headrace",
	}
	if got := slices.Sorted(maps.Keys(small)); !slices.Equal(got, want) {
		t.Errorf("small: %v, want %v", got, want)
	}
	want = append(want, "ConfigMap/r-headrace-dashboards", "HorizontalPodAutoscaler/r-headrace", "PrometheusRule/r-headrace", "ServiceMonitor/r-headrace")
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(full)); !slices.Equal(got, want) {
		t.Errorf("full: %v, want %v", got, want)
	}
	for name, docs := range map[string]map[string][]byte{"small": small, "full": full} {
		t.Run(name, func(t *testing.T) {
			as[corev1.ConfigMap](t, docs, "ConfigMap/r-headrace")
			as[corev1.ServiceAccount](t, docs, "ServiceAccount/r-headrace")
			d := as[appsv1.Deployment](t, docs, "Deployment/r-headrace")
			pods(t, d)
			for _, id := range []string{"Service/r-headrace", "Service/r-headrace-admin"} {
				s := as[corev1.Service](t, docs, id)
				subset(t, id, s.Spec.Selector, d.Spec.Template.Labels)
			}
			subset(t, "pdb", as[policyv1.PodDisruptionBudget](t, docs, "PodDisruptionBudget/r-headrace").Spec.Selector.MatchLabels, d.Spec.Template.Labels)
			n := as[networkingv1.NetworkPolicy](t, docs, "NetworkPolicy/r-headrace")
			subset(t, "network policy", n.Spec.PodSelector.MatchLabels, d.Spec.Template.Labels)
			for _, rule := range n.Spec.Ingress {
				if len(rule.From) == 0 || len(rule.Ports) == 0 {
					t.Errorf("a rule lets anybody in: %+v", rule)
				}
			}
		})
	}
	h := as[autoscalingv2.HorizontalPodAutoscaler](t, full, "HorizontalPodAutoscaler/r-headrace")
	d := as[appsv1.Deployment](t, full, "Deployment/r-headrace")
	if h.Spec.ScaleTargetRef.Name != d.Name || d.Spec.Replicas != nil {
		t.Errorf("the autoscaler scales %q, the deployment %q wants %v replicas itself", h.Spec.ScaleTargetRef.Name, d.Name, d.Spec.Replicas)
	}
	boards := as[corev1.ConfigMap](t, full, "ConfigMap/r-headrace-dashboards")
	if size := len(full["ConfigMap/r-headrace-dashboards"]); len(boards.Data) < 4 || size > 1<<20 {
		t.Errorf("%d dashboards in %d bytes; a ConfigMap holds 1 MiB", len(boards.Data), size)
	}
	rule := as[struct {
		APIVersion, Kind string
		Metadata         map[string]any
		Spec             struct{ Groups []map[string]any }
	}](t, full, "PrometheusRule/r-headrace")
	if len(rule.Spec.Groups) < 5 {
		t.Errorf("%d groups of rules", len(rule.Spec.Groups))
	}
}

func subset(t *testing.T, what string, selector, labels map[string]string) {
	t.Helper()
	if len(selector) == 0 {
		t.Errorf("%s selects everything", what)
	}
	for k, v := range selector {
		if labels[k] != v {
			t.Errorf("%s selects %s=%s, the pods have %q", what, k, v, labels[k])
		}
	}
}

// pods holds the pod template to what is promised: no root, nothing to write to, time to finish, no secret but by reference.
func pods(t *testing.T, d *appsv1.Deployment) {
	t.Helper()
	p := d.Spec.Template.Spec
	c := p.Containers[0]
	if sc := p.SecurityContext; sc == nil || sc.RunAsNonRoot == nil || !*sc.RunAsNonRoot || sc.RunAsUser == nil || *sc.RunAsUser == 0 ||
		sc.SeccompProfile == nil || sc.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("pod security: %+v", sc)
	}
	if sc := c.SecurityContext; sc == nil || sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem ||
		sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation || !slices.Contains(sc.Capabilities.Drop, "ALL") {
		t.Errorf("container security: %+v", sc)
	}
	if p.AutomountServiceAccountToken == nil || *p.AutomountServiceAccountToken {
		t.Error("the pod has a token for the Kubernetes API, which it does not need")
	}
	if c.LivenessProbe == nil || c.ReadinessProbe == nil || c.StartupProbe == nil {
		t.Error("a probe is missing")
	}
	if c.Lifecycle == nil || c.Lifecycle.PreStop == nil || c.Lifecycle.PreStop.Sleep == nil {
		t.Fatal("no preStop")
	}
	for _, e := range c.Env {
		if (strings.Contains(e.Name, "KEY") || strings.Contains(e.Name, "SECRET") || e.Name == "REDIS_URL") && (e.ValueFrom == nil || e.ValueFrom.SecretKeyRef == nil) {
			t.Errorf("%s is not read from a Secret", e.Name)
		}
	}
}

// TestConfigAndDrain lets the gateway itself read the rendered config: it must be good, and pods must live until it has drained.
func TestConfigAndDrain(t *testing.T) {
	for _, file := range []string{"small.yaml", "full.yaml", "keys.yaml"} {
		docs, err := render(t, values(t, file))
		if err != nil {
			t.Fatal(err)
		}
		text := as[corev1.ConfigMap](t, docs, "ConfigMap/r-headrace").Data["headrace.yaml"]
		path := filepath.Join(t.TempDir(), "headrace.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		configIsGood(t, path)
		var cfg struct{ Timeouts struct{ Drain string } }
		if err := yaml.Unmarshal([]byte(text), &cfg); err != nil {
			t.Fatal(err)
		}
		drain, err := time.ParseDuration(cfg.Timeouts.Drain)
		if err != nil {
			t.Fatal(err)
		}
		p := as[appsv1.Deployment](t, docs, "Deployment/r-headrace").Spec.Template.Spec
		leaving := time.Duration(p.Containers[0].Lifecycle.PreStop.Sleep.Seconds) * time.Second
		if grace := time.Duration(*p.TerminationGracePeriodSeconds) * time.Second; grace < leaving+drain+10*time.Second {
			t.Errorf("%s: killed %v after a drain of %v and a preStop of %v", file, grace, drain, leaving)
		}
	}
}

// configIsGood lets the gateway read a config, with keys and Redis in its environment.
func configIsGood(t *testing.T, path string) {
	t.Helper()
	check := exec.CommandContext(t.Context(), "go", "run", "./cmd/headrace", "check", "--config", path)
	check.Dir = "../.."
	check.Env = append(os.Environ(), "RUNPOD_API_KEY=rpa_example", "VAST_API_KEY=example", "REDIS_URL=redis://redis:6379/0",
		"HEADRACE_ADMIN_KEY=hr_an-admin-key-of-a-test", "SEARCH_KEY=hr_another-key-of-a-test")
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("headrace check: %v\n%s", err, out)
	}
}

// TestKeys has every caller asked for a key, and the admin key come from its Secret.
func TestKeys(t *testing.T) {
	docs, err := render(t, values(t, "keys.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var cfg struct {
		RequireKey bool `json:"require_key"`
		Allow      bool `json:"allow_unauthenticated"`
		Keys       []struct {
			Name, Key string
			Admin     bool
		}
	}
	if err := yaml.Unmarshal([]byte(as[corev1.ConfigMap](t, docs, "ConfigMap/r-headrace").Data["headrace.yaml"]), &cfg); err != nil {
		t.Fatal(err)
	}
	if n := len(cfg.Keys); !cfg.RequireKey || cfg.Allow || n != 2 || cfg.Keys[0].Name != "search" || !cfg.Keys[1].Admin || cfg.Keys[1].Key != "${HEADRACE_ADMIN_KEY}" {
		t.Errorf("%+v", cfg)
	}
	d := as[appsv1.Deployment](t, docs, "Deployment/r-headrace")
	pods(t, d)
	if env := d.Spec.Template.Spec.Containers[0].Env; !slices.ContainsFunc(env, func(e corev1.EnvVar) bool {
		return e.Name == "HEADRACE_ADMIN_KEY" && e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil && e.ValueFrom.SecretKeyRef.Name == "headrace-keys" && e.ValueFrom.SecretKeyRef.Key == "admin"
	}) {
		t.Errorf("the admin key does not come from its Secret: %+v", env)
	}
}

// TestRefused are values that would cut streams, lose state or let strangers in.
func TestRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(v map[string]any)
		want   string
	}{
		"strangers":                 {func(v map[string]any) { v["allowUnauthenticated"] = false }, "asked for no key"},
		"replicas without Redis":    {func(v map[string]any) { v["replicas"] = 2 }, "redis.urlSecret.name"},
		"autoscaling without Redis": {func(v map[string]any) { v["autoscaling"] = map[string]any{"enabled": true} }, "redis.urlSecret.name"},
		"one volume for several": {func(v map[string]any) {
			v["replicas"], v["redis"] = 2, map[string]any{"urlSecret": map[string]any{"name": "r", "key": "url"}}
			v["state"] = map[string]any{"claim": "books"}
		}, "state.claim"},
		"drain shorter than streams": {func(v map[string]any) { v["drain"] = map[string]any{"longestStream": 1799} }, "would cut it"},
		"streams longer than drain": {func(v map[string]any) {
			v["config"] = map[string]any{"timeouts": map[string]any{"total": "1h30m1s"}}
			v["drain"] = map[string]any{"longestStream": 5400}
		}, "would cut it"},
		"keys, and callers without": {func(v map[string]any) {
			v["keys"], v["state"] = map[string]any{"admin": map[string]any{"name": "k", "key": "admin"}}, map[string]any{"claim": "c"}
		}, "leave one of them out"},
		"keys that nothing keeps": {func(v map[string]any) {
			v["keys"], v["allowUnauthenticated"] = map[string]any{"admin": map[string]any{"name": "k", "key": "admin"}}, false
		}, "would end with the pod"},
		"listen in config":  {func(v map[string]any) { v["config"] = map[string]any{"listen": ":80"} }, "listen"},
		"unknown value":     {func(v map[string]any) { v["replicaCount"] = 3 }, "replicaCount"},
		"key in plain text": {func(v map[string]any) { v["secretEnv"] = map[string]any{"VAST_API_KEY": "abc"} }, "VAST_API_KEY"},
	} {
		t.Run(name, func(t *testing.T) {
			v := values(t, "small.yaml")
			tc.change(v)
			if _, err := render(t, v); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one about %q", err, tc.want)
			}
		})
	}
}

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // the loader logs every symbolic link
	os.Exit(m.Run())
}
