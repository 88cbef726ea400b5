package runpod

import (
	"encoding/json"
	"testing"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

func TestNumber(t *testing.T) {
	for in, want := range map[string]number{
		`1.5`: {1.5, true, false}, `"1.5"`: {1.5, true, true}, `" 2 "`: {2, true, true}, `null`: {}, `"x"`: {odd: true}, `{}`: {odd: true}, `true`: {odd: true},
		`"NaN"`: {odd: true}, `1e400`: {odd: true}, `""`: {odd: true},
	} {
		var n number
		if err := json.Unmarshal([]byte(in), &n); err != nil || n != want {
			t.Errorf("%s: %+v, %v, want %+v", in, n, err, want)
		}
	}
	if n := (number{v: -3}).count(); n != 0 {
		t.Errorf("-3 things are %d", n)
	}
	if n := (number{v: 1e300}).count(); n != 1<<30 {
		t.Errorf("1e300 things are %d", n)
	}
}

// Whatever RunPod answers, nothing panics, and a fleet that is known is not emptied by an answer that is no list.
func FuzzAnswers(f *testing.F) {
	for _, seed := range []string{
		listOf(entry("a"), entry("b")), `{"endpoints":[{"id":7}]}`, `{"endpoints":[{"id":"c","gpu":[],"workers":3,"env":[{"key":"MODEL_NAME"}]}]}`, readyHealth, asleepHealth, oneWorker,
		`{"pods":[` + podEntry("p", "RUNNING", "") + `]}`, `{"gpus":[` + join(sampleCatalog) + `]}`, podModels, `null`, `[]`, `{"endpoints":null}`, `{"workers":{"ready":-1}}`, `{"ENDPOINTS":[]}`,
		`{"endpoints":[{"id":"d","type":"LOAD_BALANCER","requestUrls":{"base":"https://d.api.runpod.ai/"},"args":"vllm serve 'x"}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		p := New(Options{Key: testKey, AllPods: true})
		p.gotCatalog(sampleCatalog, time.Unix(0, 0))
		p.gotList(&api.Answer{Body: []byte(listOf(entry("a")))}, nil)
		known := p.services["a"]
		a := &api.Answer{Body: body, At: time.Unix(1, 0)}
		p.gotHealth(known, a, nil)
		p.gotPrices(a, nil)
		p.gotPods(a, nil)
		if entries, err := list(a, "workers", workersOf); err == nil {
			known.workers, _ = p.readWorkers(entries, span{})
			p.build(known)
		}
		_, _ = models(body)
		p.gotList(a, nil)
		if _, err := list(a, "endpoints", endpointsOf); err != nil && len(p.services) != 1 {
			t.Errorf("%d endpoints are left after an answer that is no list", len(p.services))
		}
		for _, ep := range p.fleet() {
			if ep.ID == "" || ep.BaseURL == "" || len(ep.Served) == 0 || ep.Served[0].Name == "" || ep.Price.USDPerWorkerSecond < 0 || ep.MaxNumSeqs < 0 || ep.Limits.MaxBodyBytes < 0 {
				t.Errorf("%s made %+v", body, ep)
			}
			if ep.State == endpoint.Ready && ep.Workers == 0 && ep.Tenure == endpoint.Serverless {
				t.Errorf("%s made an endpoint ready with nobody up", body)
			}
		}
	})
}
