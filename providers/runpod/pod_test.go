package runpod

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"headrace/router/endpoint"
)

func podEntry(id, status, more string) string {
	return fmt.Sprintf(`{"id":%q,"name":"vllm-%[1]s","image":"vllm/vllm-openai:v0.11","args":"--max-num-seqs 64","env":{"HF_TOKEN":%q},"ports":["8000/http","22/tcp"],`+
		`"status":%q,"actions":[],"gpu":{"id":"NVIDIA GeForce RTX 4090","count":2},"cloud":"SECURE","cost":0.88,"mounts":{"persistent":{"size":100,"path":"/w"}},`+
		`"runtime":null,"startedAt":"2026-06-01T12:05:00Z"%s}`, id, envCode, status, more)
}

const podModels = `{"object":"list","data":[{"id":"org/pod-model","object":"model","created":%d,"max_model_len":4096,"permission":[{"id":"modelperm-%[1]d"}]}]}`

func TestPods(t *testing.T) {
	a := newAccount()
	pods := func(entries ...string) { a.set("/v2/pods", `{"pods":[`+strings.Join(entries, ",")+`]}`) }
	pods(podEntry("p", "PROVISIONING", ""), podEntry("q", "RUNNING", `,"endpointId":"e"`), strings.Replace(podEntry("r", "RUNNING", ""), "8000/http", "9000/http", 1))
	inBubble(t, a, Options{AllPods: true}, func(t *testing.T, w *watched) {
		eps := w.after(time.Second)
		if len(eps) != 1 || eps[0].ID != "runpod:pod-p" || eps[0].State != endpoint.Starting {
			t.Fatalf("sent %+v", eps)
		}
		if sk := w.Status().Skipped; len(sk) != 1 || sk[0].ID != "pod-r" || !strings.Contains(sk[0].Why, "8000/http") {
			t.Errorf("skipped %+v", sk)
		}
		a.set("/v1/models", `502 <html>warming up</html>`)
		pods(podEntry("p", "RUNNING", ""))
		if ep := w.after(time.Minute)[0]; ep.State != endpoint.Starting || !strings.Contains(ep.StateReason, "502") {
			t.Errorf("runpod_9.15: %v, %q while the proxy says 502", ep.State, ep.StateReason)
		}
		a.set("/v1/models", fmt.Sprintf(podModels, 1))
		ep := w.after(6 * time.Second)[0]
		if ep.State != endpoint.Ready || ep.BaseURL != "https://p-8000.proxy.runpod.net/v1" || ep.APIKey != "" || ep.Tenure != endpoint.OnDemand || ep.Trust != endpoint.TrustSecure ||
			ep.Hardware.GPU != "RTX 4090" || ep.Hardware.GPUCount != 2 || ep.MaxNumSeqs != 64 || ep.Dialect != endpoint.OpenAI {
			t.Errorf("%+v", ep)
		}
		if s := ep.Served; len(s) != 1 || s[0].Name != "org/pod-model" || s[0].MaxContext != 4096 || strings.Contains(string(s[0].Card), "created") {
			t.Errorf("served %+v", s)
		}
		if p := ep.Price; p.Basis != endpoint.PerHour || p.USDPerHour != 0.88 || math.Abs(p.USDPerHourStopped-20.0/730) > 1e-9 || p.Source != "runpod pod cost" {
			t.Errorf("price %+v", p)
		}
		if n := w.sets(); true {
			a.set("/v1/models", fmt.Sprintf(podModels, 2))
			if w.after(10 * time.Minute); w.sets() != n {
				t.Errorf("%d sets were sent although nothing has changed", w.sets()-n)
			}
		}
		a.set("/v1/models", `500 {}`)
		w.Nudge("runpod:pod-p")
		if ep := w.after(0)[0]; ep.State != endpoint.Ready {
			t.Errorf("one lost answer made it %v", ep.State)
		}
		if ep := w.after(10 * time.Second)[0]; ep.State != endpoint.Starting {
			t.Errorf("%v while its server does not answer", ep.State)
		}
		w.after(time.Minute + 10*time.Second)
		pods(strings.Replace(podEntry("p", "EXITED", ""), `"cost":0.88`, `"cost":0.0`, 1))
		w.Nudge("runpod:pod-p")
		if ep := w.after(11 * time.Second)[0]; ep.State != endpoint.Preempted || ep.Price.USDPerHour != 0.88 {
			t.Errorf("runpod_9.16: %v, %+v after RunPod has stopped it", ep.State, ep.Price)
		}
		pods(podEntry("p", "HALTING", ""))
		a.set("/v1/models", fmt.Sprintf(podModels, 3))
		if ep := w.after(2 * time.Minute)[0]; ep.State != endpoint.Ready || w.Status().Oddities["pod: unknown status HALTING"] == 0 {
			t.Errorf("%v in a status that is not known, oddities %v", ep.State, w.Status().Oddities)
		}
		a.set("/v1/models", `401 {}`)
		if ep := w.after(2 * time.Minute)[0]; ep.State != endpoint.Starting || !strings.Contains(ep.StateReason, "api_key") {
			t.Errorf("%v, %q where the pod's server wants a key", ep.State, ep.StateReason)
		}
		a.set("/v2/pods", `500 {}`)
		if eps := w.after(10 * time.Minute); len(eps) != 1 {
			t.Error("an error took the pods away")
		}
		pods(podEntry("p", "TERMINATED", ""))
		if ep := w.after(2 * time.Minute)[0]; ep.State != endpoint.Gone {
			t.Errorf("%v after it was terminated", ep.State)
		}
		pods()
		if eps := w.after(2 * time.Minute); len(eps) != 0 {
			t.Errorf("%d pods of an account that has none", len(eps))
		}
	})
}

func TestPodByTCP(t *testing.T) {
	a := newAccount()
	pods := func(more string) {
		a.set("/v2/pods", `{"pods":[`+strings.Replace(strings.Replace(podEntry("p", "RUNNING", ""), "8000/http", "8000/tcp", 1), `"runtime":null`, `"runtime":`+more, 1)+`]}`)
	}
	pods(`null`)
	a.set("/v1/models", fmt.Sprintf(podModels, 1))
	a.podKey = "pod-key"
	o := Options{Pods: []PodOptions{{Match: "vllm-*", TCP: true, Spot: true, Key: "pod-key", Models: []string{"mine"}}}}
	inBubble(t, a, o, func(t *testing.T, w *watched) {
		if ep := w.after(3 * time.Second)[0]; ep.State != endpoint.Starting || !strings.Contains(ep.StateReason, "not published") {
			t.Errorf("%v, %q before its port is known", ep.State, ep.StateReason)
		}
		pods(`{"ports":[{"private":8000,"public":10341,"type":"tcp","ip":"203.0.113.7"},{"private":22,"public":1,"type":"tcp","ip":"203.0.113.7"}]}`)
		ep := w.after(time.Minute)[0]
		if ep.State != endpoint.Ready || ep.BaseURL != "http://203.0.113.7:10341/v1" || ep.APIKey != "pod-key" || ep.Tenure != endpoint.Interruptible || ep.Served[0].Name != "mine" || ep.Encrypted() {
			t.Errorf("%+v", ep)
		}
		a.set("/v1/models", "broken")
		pods(`{"ports":[{"private":8000,"public":"10999","type":"TCP","ip":"203.0.113.7"}]}`)
		if ep := w.after(time.Minute)[0]; ep.State != endpoint.Starting || ep.BaseURL != "http://203.0.113.7:10999/v1" {
			t.Errorf("runpod_9.15: %v at %s after the port has changed, before anybody has answered there", ep.State, ep.BaseURL)
		}
		a.set("/v1/models", fmt.Sprintf(podModels, 1))
		if ep := w.after(6 * time.Second)[0]; ep.State != endpoint.Ready {
			t.Errorf("%v at the new port", ep.State)
		}
		a.change(func() { a.podKey, a.shown = "", nil }) // another tenant's server has the port
		w.Nudge("runpod:pod-p")
		if ep := w.after(2 * time.Second)[0]; ep.State != endpoint.Starting || !strings.Contains(ep.StateReason, "it is another") {
			t.Errorf("%v, %q where a server answers anybody", ep.State, ep.StateReason)
		}
		a.change(func() {
			if len(a.shown) == 0 || slices.Contains(a.shown, "Bearer pod-key") {
				t.Errorf("another's server was shown %q", a.shown)
			}
			a.podKey = "pod-key"
		})
		if ep := w.after(6 * time.Second)[0]; ep.State != endpoint.Ready {
			t.Errorf("%v, %q when its own server is back", ep.State, ep.StateReason)
		}
		a.change(func() { a.podKey = "of-another" })
		w.Nudge("runpod:pod-p")
		if ep := w.after(2 * time.Second)[0]; ep.State != endpoint.Starting {
			t.Errorf("%v, %q where a server refuses its key", ep.State, ep.StateReason)
		}
	})
	a.podKey = ""
	o.Pods[0].Key = ""
	inBubble(t, a, o, func(t *testing.T, w *watched) {
		if ep := w.after(3 * time.Second)[0]; ep.State != endpoint.Ready || !strings.Contains(ep.StateReason, "another server") {
			t.Errorf("%v, %q without a key", ep.State, ep.StateReason)
		}
	})
}

// TestPodsThatCannotBeRead: a list whose entries lack what names them says nothing of which pods there are.
func TestPodsThatCannotBeRead(t *testing.T) {
	a := newAccount()
	a.set("/v2/pods", `{"pods":[`+podEntry("p", "RUNNING", "")+`,`+podEntry("q", "RUNNING", "")+`]}`)
	a.set("/v1/models", fmt.Sprintf(podModels, 1))
	inBubble(t, a, Options{AllPods: true}, func(t *testing.T, w *watched) {
		w.after(3 * time.Second)
		renamed := strings.ReplaceAll(podEntry("p", "RUNNING", ""), `"id":"p"`, `"podId":"p"`)
		for _, list := range []string{renamed, renamed + "," + podEntry("q", "RUNNING", "")} {
			a.set("/v2/pods", `{"pods":[`+list+`]}`)
			if eps := w.after(3 * time.Minute); len(eps) != 2 {
				t.Errorf("%d pods are left after %s", len(eps), list)
			}
		}
		a.set("/v2/pods", `{"pods":[`+podEntry("q", "RUNNING", "")+`]}`)
		if eps := w.after(3 * time.Minute); len(eps) != 1 {
			t.Errorf("%d pods when the list can be read again", len(eps))
		}
	})
}

func TestAnEmptyListOfPodsIsBelievedTheSecondTime(t *testing.T) {
	a := newAccount()
	a.set("/v2/pods", `{"pods":[`+podEntry("p", "RUNNING", "")+`]}`)
	a.set("/v1/models", fmt.Sprintf(podModels, 1))
	inBubble(t, a, Options{AllPods: true}, func(t *testing.T, w *watched) {
		w.after(59 * time.Second)
		a.set("/v2/pods", `{"pods":[]}`)
		if eps := w.after(3 * time.Second); len(eps) != 1 {
			t.Error("an empty list was believed at once")
		}
		if eps := w.after(10 * time.Second); len(eps) != 0 {
			t.Error("an account that is empty twice is empty")
		}
	})
}
