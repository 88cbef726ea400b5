package runpod

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"headrace/router/endpoint"
)

func TestFirstSet(t *testing.T) {
	a := newAccount()
	lb := strings.NewReplacer("QUEUE", "LOAD_BALANCER", `"run":"https://api.runpod.ai/v2/c/run"`, `"base":"https://c.api.runpod.ai","health":"https://c.api.runpod.ai/ping"`).Replace(entry("c"))
	a.set("/v2/serverless", listOf(entry("b"), entry("a"), lb))
	a.set("/v2/b/health", readyHealth)
	a.set("/v2/c/health", readyHealth)
	inBubble(t, a, Options{}, func(t *testing.T, w *watched) {
		eps := w.after(0)
		if len(eps) != 3 || eps[0].ID != "runpod:a" || eps[1].ID != "runpod:b" || eps[2].ID != "runpod:c" {
			t.Fatalf("sent %+v", eps)
		}
		asleep, ready, balanced := eps[0], eps[1], eps[2]
		if asleep.State != endpoint.Cold || asleep.Dialect != endpoint.RunPodJobs || asleep.Limits.MaxBodyBytes != 10e6 || asleep.Limits.Requests != 1000 || asleep.Limits.Concurrent != 200 {
			t.Errorf("an endpoint that sleeps: %+v", asleep)
		}
		if ready.State != endpoint.Ready || ready.Dialect != endpoint.OpenAI || ready.Limits.MaxBodyBytes != 20e6 || ready.Limits.Requests != 2000 || ready.Limits.Per != 10*time.Second || ready.Limits.Concurrent != 400 {
			t.Errorf("an endpoint that is up: %+v", ready)
		}
		if ready.BaseURL != "https://api.runpod.ai/v2/b/openai/v1" || asleep.BaseURL != "https://api.runpod.ai/v2/a/openai/v1" || balanced.BaseURL != "https://c.api.runpod.ai/v1" {
			t.Errorf("addresses %s, %s, %s", ready.BaseURL, asleep.BaseURL, balanced.BaseURL)
		}
		if balanced.Dialect != endpoint.OpenAI || balanced.Lumpy || balanced.Limits.MaxDuration != 330*time.Second || balanced.Limits.MaxBodyBytes != 30e6 || balanced.Limits.Requests != 0 {
			t.Errorf("a load-balancing endpoint: %+v", balanced)
		}
		if !ready.Lumpy || ready.Provider != "runpod" || ready.APIKey.Reveal() != testKey || ready.Tenure != endpoint.Serverless || ready.Region != "US-KS-2" ||
			ready.Hardware.GPU != "RTX 4090" || ready.Hardware.GPUCount != 1 || ready.Workers != 1 || ready.MaxNumSeqs != vllmConcurrency || ready.Trust != endpoint.TrustDatacenter {
			t.Errorf("an endpoint that is up: %+v", ready)
		}
		if s := ready.Served; len(s) != 1 || s[0].Name != "org/model" || s[0].MaxContext != 8192 || s[0].Unnamed {
			t.Errorf("served %+v", s)
		}
		if p := ready.Price; p.Basis != endpoint.PerWorkerSecond || math.Abs(p.USDPerWorkerSecond-1.08/3600) > 1e-12 || !p.AsOf.Equal(time.Now()) {
			t.Errorf("price %+v", p)
		}
		if w.sets() != 1 {
			t.Errorf("%d sets were sent where one says all", w.sets())
		}
		w.after(9 * time.Minute)
		if w.sets() != 1 {
			t.Errorf("%d sets were sent although nothing has changed", w.sets())
		}
		if n := a.count("/v2/a/openai/v1/models") + a.count("/v2/b/openai/v1/models"); n != 0 {
			t.Error("asking for models wakes a worker")
		}
		st := w.Status()
		if st.Endpoints != 3 || st.Failing != 0 || st.Polls < 9 || len(st.Oddities) != 1 { // the price in quotes
			t.Errorf("status %+v", st)
		}
	})
}

func TestAnEmptyAccountIsSent(t *testing.T) {
	inBubble(t, newAccount(), Options{}, func(t *testing.T, w *watched) {
		if eps := w.after(0); eps == nil || len(eps) != 0 || w.sets() != 1 {
			t.Errorf("sent %v, %d times", eps, w.sets())
		}
	})
}

func TestErrorsNeverEmptyTheFleet(t *testing.T) {
	for name, answer := range map[string]string{
		"500":                    `500 {"status":500,"title":"Internal Server Error"}`,
		"401":                    `401 {"title":"Unauthorized","status":401,"detail":"missing bearer token"}`,
		"429":                    `429 {"title":"Too Many Requests","status":429}`,
		"a page":                 `502 <html>bad gateway</html>`,
		"a page, 200":            `<html>welcome</html>`,
		"cut off":                `{"endpoints":[{"id":"a"`,
		"no list":                `{"data":[]}`,
		"another shape":          `[{"id":"a"}]`,
		"a list of words":        `{"endpoints":"none"}`,
		"entries of words":       `{"endpoints":["a","b"]}`,
		"ids under another name": strings.ReplaceAll(listOf(entry("a"), entry("b")), `"id":`, `"endpointId":`),
		"no answer":              "broken",
		// GraphQL's way of failing, should REST v2 ever take it up.
		"runpod_9.18_something_went_wrong_in_a_200": `{"errors":[{"message":"Something went wrong. Please try again later or contact support."}],"data":null}`,
	} {
		t.Run(name, func(t *testing.T) {
			a := newAccount()
			a.set("/v2/serverless", listOf(entry("a"), entry("b")))
			inBubble(t, a, Options{}, func(t *testing.T, w *watched) {
				w.after(time.Second)
				a.set("/v2/serverless", answer)
				if eps := w.after(10 * time.Minute); len(eps) != 2 || w.sets() != 2 { // the second when the price list was read anew
					t.Fatalf("%d endpoints are left, %d sets were sent", len(eps), w.sets())
				}
				if st := w.Status(); st.Failing < 5 || st.LastError == "" || time.Since(st.LastGood) < 9*time.Minute {
					t.Errorf("status %+v", st)
				}
				a.set("/v2/serverless", listOf(entry("a")))
				if eps := w.after(3 * time.Minute); len(eps) != 1 {
					t.Errorf("%d endpoints after RunPod has answered again", len(eps))
				}
				if st := w.Status(); st.Failing != 0 || st.LastError != "" {
					t.Errorf("status %+v", st)
				}
			})
		})
	}
}

// An entry that does not say which endpoint it is may be any of those that no other entry names.
func TestNamelessEntriesTakeNothingAway(t *testing.T) {
	a := newAccount()
	a.set("/v2/serverless", listOf(entry("a"), entry("b")))
	inBubble(t, a, Options{}, func(t *testing.T, w *watched) {
		w.after(time.Second)
		a.set("/v2/serverless", listOf(`{"endpointId":"a"}`, entry("c")))
		if eps := w.after(2 * time.Minute); len(eps) != 3 {
			t.Errorf("%d endpoints", len(eps))
		}
		if w.Status().Oddities["endpoint: an entry that cannot be read"] == 0 {
			t.Errorf("status %+v", w.Status())
		}
		a.set("/v2/serverless", listOf(entry("c")))
		if eps := w.after(2 * time.Minute); len(eps) != 1 {
			t.Errorf("%d endpoints when all entries can be read", len(eps))
		}
	})
}

func TestAnEmptyListIsBelievedTheSecondTime(t *testing.T) {
	for _, empty := range []string{`{"endpoints":[]}`, `{"endpoints":null}`} {
		a := newAccount()
		a.set("/v2/serverless", listOf(entry("a")))
		inBubble(t, a, Options{}, func(t *testing.T, w *watched) {
			w.after(59 * time.Second)
			a.set("/v2/serverless", empty)
			if eps := w.after(3 * time.Second); len(eps) != 1 {
				t.Error("an empty list was believed at once")
			}
			if eps := w.after(10 * time.Second); len(eps) != 0 {
				t.Error("an account that is empty twice is empty")
			}
		})
	}
}

func TestFirstPollIsRepeatedSoon(t *testing.T) {
	a := newAccount()
	a.set("/v2/serverless", "broken")
	a.set("/v2/catalog/gpus", "broken")
	inBubble(t, a, Options{}, func(t *testing.T, w *watched) {
		if w.after(500 * time.Millisecond); w.sets() != 0 {
			t.Error("something was sent before anything was known")
		}
		a.set("/v2/serverless", listOf(entry("a")))
		eps := w.after(time.Second)
		if len(eps) != 1 || !strings.Contains(eps[0].Price.Source, "built-in table") {
			t.Fatalf("sent %+v", eps)
		}
		a.set("/v2/catalog/gpus", `{"gpus":[`+join(sampleCatalog)+`]}`)
		if eps := w.after(5 * time.Second); !strings.Contains(eps[0].Price.Source, "catalog") {
			t.Errorf("price from %q after the catalogue came back", eps[0].Price.Source)
		}
		a.set("/v2/catalog/gpus", `500 {}`)
		asOf := w.after(0)[0].Price.AsOf
		if p := w.after(time.Hour)[0].Price; !p.AsOf.Equal(asOf) || !strings.Contains(p.Source, "catalog") {
			t.Errorf("an hour without a catalogue: %+v, want the last good price with its age", p)
		}
	})
}

func TestStatesFollowHealth(t *testing.T) {
	a := newAccount()
	a.set("/v2/serverless", listOf(entry("a")))
	inBubble(t, a, Options{}, func(t *testing.T, w *watched) {
		health := func(answer string, after time.Duration) endpoint.Endpoint {
			a.set("/v2/a/health", answer)
			return w.after(after)[0]
		}
		w.after(time.Second)
		if ep := health(`{"jobs":{"inQueue":1},"workers":{"initializing":1}}`, 31*time.Second); ep.State != endpoint.Starting || ep.Dialect != endpoint.RunPodJobs {
			t.Errorf("%v, %v", ep.State, ep.Dialect)
		}
		ep := health(readyHealth, 6*time.Second)
		if ep.State != endpoint.Ready || ep.Dialect != endpoint.OpenAI || ep.Hardware.GPU != "RTX 4090" || !strings.Contains(ep.Price.Source, "workers") {
			t.Errorf("%+v", ep)
		}
		if ep := health(asleepHealth, 6*time.Second); ep.State != endpoint.Cold || ep.Workers != 0 || ep.Hardware.GPU != "ADA_24" {
			t.Errorf("%+v", ep)
		}
		health(readyHealth, 60*time.Second)
		if ep := health(`503 {}`, 20*time.Second); ep.State != endpoint.Ready {
			t.Errorf("a few lost looks made it %v", ep.State)
		}
		if ep := health(`503 {}`, 5*time.Minute); ep.State != endpoint.StateUnknown || ep.Dialect != endpoint.RunPodJobs {
			t.Errorf("minutes without /health: %v, %v", ep.State, ep.Dialect)
		}
		if ep := health(readyHealth, time.Minute); ep.State != endpoint.Ready {
			t.Errorf("%v after /health came back", ep.State)
		}
		if ep := health(`401 {}`, time.Minute); ep.State != endpoint.Gone {
			t.Errorf("%v where the key is refused", ep.State)
		}
		if ep := health(`{"workers":{"ready":"2","idle":"x"},"jobs":{"inQueue":null}}`, time.Minute); ep.State != endpoint.Ready || ep.Workers != 2 {
			t.Errorf("counters in quotes: %v, %d workers", ep.State, ep.Workers)
		}
		for _, odd := range []string{`[]`, `{}`, `{"workers":[]}`, `nonsense`, `{"workers":null,"jobs":{}}`} {
			if ep := health(odd, 10*time.Second); ep.State != endpoint.Ready {
				t.Errorf("%s made it %v", odd, ep.State)
			}
			health(readyHealth, time.Minute)
		}
		if o := w.Status().Oddities; o["health: an answer that cannot be read"] == 0 || o["health: a number in another form"] == 0 {
			t.Errorf("oddities %v", o)
		}
	})
}

func TestNudge(t *testing.T) {
	a := newAccount()
	a.set("/v2/serverless", listOf(entry("a"), entry("b")))
	inBubble(t, a, Options{}, func(t *testing.T, w *watched) {
		w.after(10*time.Minute + 20*time.Second) // both sleep deeply, and are looked at twice a minute
		before, others := a.count("/v2/a/health"), a.count("/v2/b/health")
		a.set("/v2/a/health", `404 {"status":404,"title":"Not Found","detail":"endpoint not found"}`)
		lists := a.count("/v2/serverless")
		for range 1000 {
			w.Nudge("runpod:a")
			w.Nudge("runpod:nobody")
		}
		if eps := w.after(0); eps[0].State != endpoint.Gone {
			t.Errorf("%v after the nudge", eps[0].State)
		}
		for range 20 {
			w.Nudge("runpod:a")
			w.after(100 * time.Millisecond)
		}
		if n := a.count("/v2/a/health") - before; n < 2 || n > 4 {
			t.Errorf("nudges for two seconds made %d looks, want about one a second", n)
		}
		if n := a.count("/v2/b/health") - others; n > 1 {
			t.Errorf("%d looks at another endpoint", n)
		}
		if n := a.count("/v2/serverless") - lists; n != 1 {
			t.Errorf("an endpoint that is not found made %d looks at the list, want 1", n)
		}
	})
}

func TestLearnedAndReport(t *testing.T) {
	a := newAccount()
	plain := strings.Replace(entry("a"), `"MODEL_NAME":"org/model",`, "", 1)
	a.set("/v2/serverless", listOf(plain, entry("b")))
	inBubble(t, a, Options{}, func(t *testing.T, w *watched) {
		if s := w.after(time.Second)[0].Served; len(s) != 1 || s[0].Name != "name-a" || !s[0].Unnamed {
			t.Fatalf("served %+v", s)
		}
		w.Learned("runpod:a", "org/told")
		w.Learned("runpod:b", "org/other")
		w.Learned("runpod:a", "")
		w.Learned("runpod:a", strings.Repeat("x", 1000))
		eps := w.after(time.Second)
		if s := eps[0].Served; s[0].Name != "org/told" || s[0].Unnamed {
			t.Errorf("served %+v", s)
		}
		if s := eps[1].Served; s[0].Name != "org/model" {
			t.Errorf("an answer overrode the settings: %+v", s)
		}
		a.set("/v2/a/health", readyHealth)
		w.after(time.Minute) // it is up when the report comes, and was not when the job came
		w.Report("runpod:a", endpoint.WorkerReport{Delayed: 100 * time.Second, Executed: 2 * time.Second})
		if p := w.after(time.Second)[0].Price; p.ColdStart != 100*time.Second {
			t.Errorf("cold start %v after a job that waited 100 s", p.ColdStart)
		}
		w.after(5 * time.Minute)
		w.Report("runpod:a", endpoint.WorkerReport{Delayed: 10 * time.Second, Executed: 2 * time.Second})
		if p := w.after(time.Second)[0].Price; p.ColdStart != 100*time.Second {
			t.Errorf("cold start %v after a job that waited for its turn only", p.ColdStart)
		}
		a.set("/v2/serverless", listOf(strings.Replace(plain, "v2.25.2", "v2.26", 1), entry("b")))
		if s := w.after(2 * time.Minute)[0].Served; !s[0].Unnamed {
			t.Errorf("runpod_9.8: another image, and the name that the old one told is still in use: %+v", s)
		}
	})
}

// TestInherit lets a new Provider, as after a reload of the config, know what the last one has learned.
func TestInherit(t *testing.T) {
	a := newAccount()
	plain := strings.Replace(entry("a"), `"MODEL_NAME":"org/model",`, "", 1)
	a.set("/v2/serverless", listOf(plain))
	var old *Provider
	inBubble(t, a, Options{}, func(t *testing.T, w *watched) {
		w.after(time.Second)
		w.Learned("runpod:a", "org/told")
		w.after(time.Second)
		a.set("/v2/a/health", `{"jobs":{"inQueue":1},"workers":{"initializing":1}}`)
		w.after(31 * time.Second)
		w.after(60 * time.Second)
		a.set("/v2/a/health", readyHealth)
		ep := w.after(31 * time.Second)[0]
		if p := ep.Price; ep.Served[0].Name != "org/told" || p.ColdStart < 60*time.Second || p.ColdStart > 100*time.Second {
			t.Fatalf("learned nothing: %+v", ep)
		}
		old = w.Provider
	})
	wantCold := old.services["a"].seen.coldStart()
	late := New(Options{Key: testKey}) // one that another reload ended before its first list
	late.Inherit(old)
	late.Learned("runpod:a", "org/late")
	for name, tc := range map[string]struct {
		old   *Provider
		list  string
		o     Options
		told  string // to the new one before its first list
		model string
		cold  time.Duration
	}{
		"nothing has changed": {old, plain, Options{}, "", "org/told", wantCold},
		"told early":          {old, plain, Options{}, "org/new", "org/new", wantCold},
		"two reloads":         {late, plain, Options{}, "", "org/late", wantCold},
		"another image":       {old, strings.Replace(plain, "v2.25.2", "v2.26", 1), Options{}, "", "name-a", wantCold},
		"configured":          {old, plain, Options{Models: map[string][]string{"a": {"mine"}}}, "", "mine", wantCold},
		"another account":     {New(Options{Key: "rpa_other"}), plain, Options{}, "", "name-a", assumedCold},
		"asked elsewhere":     {old, plain, Options{ManagementURL: "https://other.example.com/v2"}, "", "name-a", assumedCold},
	} {
		t.Run(name, func(t *testing.T) {
			a.set("/v2/serverless", listOf(tc.list))
			inBubbleAfter(t, tc.old, a, tc.o, func(t *testing.T, w *watched) {
				if tc.told != "" {
					w.Learned("runpod:a", tc.told)
				}
				ep := w.after(3 * time.Second)[0]
				if ep.Served[0].Name != tc.model || ep.Price.ColdStart != tc.cold {
					t.Errorf("served %+v, cold start %v; want %s, %v", ep.Served, ep.Price.ColdStart, tc.model, tc.cold)
				}
			})
		})
	}
}

func TestOptions(t *testing.T) {
	a := newAccount()
	cpu := strings.Replace(entry("cpu"), `"gpu":{"pools":["ADA_24"],"excludedTypes":[],"count":1}`, `"gpu":null,"cpu":[{"id":"cpu5c","vcpuCount":4,"memory":8}]`, 1)
	stranger := strings.ReplaceAll(entry("d"), "api.runpod.ai", "api.runpod.ai.example.com")
	a.set("/v2/serverless", listOf(entry("a"), entry("b"), cpu, stranger))
	t.Run("patterns", func(t *testing.T) {
		inBubble(t, a, Options{Endpoints: []string{"name-a*", "cpu"}, Models: map[string][]string{"name-*": {"mine", "ours"}}, Native: map[string]bool{"a": true}}, func(t *testing.T, w *watched) {
			a.set("/v2/a/health", readyHealth)
			eps := w.after(time.Second)
			if len(eps) != 2 || eps[0].ID != "runpod:a" || eps[1].ID != "runpod:cpu" {
				t.Fatalf("sent %+v", eps)
			}
			if eps[0].Dialect != endpoint.RunPodJobs || eps[0].State != endpoint.Ready || !w.Native(&eps[0]) || w.Native(&eps[1]) {
				t.Errorf("native: %+v", eps[0])
			}
			if ep := &eps[0]; !ep.Plain || !ep.TextOnly || ep.Continues != endpoint.ContinuesNever || !slices.Equal(ep.Routes, []string{"/chat/completions", "/completions"}) {
				t.Errorf("what is asked of it: %+v", ep)
			}
			if ep := &eps[1]; ep.Plain || ep.TextOnly || ep.Routes != nil {
				t.Errorf("what is asked of the other one: %+v", ep)
			}
			if s := eps[0].Served; len(s) != 2 || s[0].Name != "mine" || s[1].Name != "ours" {
				t.Errorf("served %+v", s)
			}
			if p := eps[1].Price; p.Basis != endpoint.BasisUnknown {
				t.Errorf("price of CPUs: %+v", p)
			}
			if sk := w.Status().Skipped; len(sk) != 2 || sk[0].ID != "b" {
				t.Errorf("skipped %+v", sk)
			}
		})
	})
	t.Run("all", func(t *testing.T) {
		inBubble(t, a, Options{}, func(t *testing.T, w *watched) {
			eps := w.after(time.Second)
			if len(eps) != 3 || eps[2].ID != "runpod:d" {
				t.Fatalf("sent %+v", eps)
			}
			if eps[2].BaseURL != "https://api.runpod.ai/v2/d/openai/v1" {
				t.Errorf("the key would go to %s", eps[2].BaseURL)
			}
			if sk := w.Status().Skipped; len(sk) != 1 || sk[0].ID != "cpu" || !strings.Contains(sk[0].Why, "GPU") {
				t.Errorf("skipped %+v", sk)
			}
		})
	})
	t.Run("a configured address wins", func(t *testing.T) {
		inBubble(t, a, Options{QueueURL: "http://proxy/rp/"}, func(t *testing.T, w *watched) {
			if eps := w.after(5 * time.Second); len(eps) == 0 || eps[0].BaseURL != "http://proxy/rp/a/openai/v1" {
				t.Errorf("sent %+v", eps)
			}
			if a.count("/rp/a/health") == 0 {
				t.Error("/health was asked elsewhere")
			}
		})
	})
}

// What the list leaves out is asked for by id.
func TestDetail(t *testing.T) {
	a := newAccount()
	short := `{"id":"a","name":"n","type":"QUEUE","gpu":{"pools":["ADA_24"],"count":1},"workers":{"min":0,"max":3}}`
	a.set("/v2/serverless", listOf(short))
	a.set("/v2/serverless/a", entry("a"))
	inBubble(t, a, Options{}, func(t *testing.T, w *watched) {
		if eps := w.after(time.Second); eps[0].Served[0].Name != "org/model" {
			t.Errorf("served %+v", eps[0].Served)
		}
		a.set("/v2/serverless", listOf(strings.Replace(short, `"max":3`, `"max":4`, 1)))
		a.set("/v2/serverless/a", `500 {}`)
		if eps := w.after(5 * time.Minute); eps[0].Served[0].Name != "org/model" {
			t.Errorf("what was known is forgotten: %+v", eps[0].Served)
		}
		if n := a.count("/v2/serverless/a"); n != 2 {
			t.Errorf("asked %d times, want once for each version of the entry", n)
		}
	})
}

func TestRegion(t *testing.T) {
	for _, tc := range []struct {
		centers string
		want    string
	}{
		{`["US-KS-2"]`, "US-KS-2"}, {`["US-KS-2","US-TX-3"]`, "US"}, {`["EU-RO-1","US-KS-2"]`, ""}, {`[]`, ""}, {`null`, ""}, {`"US-KS-2,US-KS-3"`, ""},
	} {
		a := newAccount()
		a.set("/v2/serverless", listOf(strings.Replace(entry("a"), `"dataCenterIds":["US-KS-2"]`, `"dataCenterIds":`+tc.centers, 1)))
		a.set("/v2/a/health", readyHealth)
		inBubble(t, a, Options{}, func(t *testing.T, w *watched) {
			ep := w.after(time.Second)[0]
			if ep.Region != tc.want || ep.Labels["data_centers"] != "US-KS-2" {
				t.Errorf("confined to %s: region %q, workers at %q; want %q", tc.centers, ep.Region, ep.Labels["data_centers"], tc.want)
			}
		})
	}
}

func TestPriceMoves(t *testing.T) {
	a := newAccount()
	a.set("/v2/serverless", listOf(entry("a")))
	inBubble(t, a, Options{}, func(t *testing.T, w *watched) {
		w.after(time.Second)
		a.set("/v2/catalog/gpus", strings.Replace(`{"gpus":[`+join(sampleCatalog)+`]}`, `"serverless":1.08`, `"serverless":2.16`, 1))
		p := w.after(10 * time.Minute)[0].Price
		if math.Abs(p.USDPerWorkerSecond-2.16/3600) > 1e-12 || time.Since(p.AsOf) > 10*time.Minute {
			t.Errorf("%+v", p)
		}
	})
	if n := strings.Count(logOf(t, a), "price changed"); n != 0 {
		t.Errorf("a price that stays is logged %d times", n)
	}
}

// logOf returns what a Provider logs in an hour of an account that stays as it is.
func logOf(t *testing.T, a *account) string {
	t.Helper()
	var text string
	inBubble(t, a, Options{}, func(_ *testing.T, w *watched) {
		w.after(time.Hour)
		text = w.log.String()
	})
	return text
}

func TestLogsChangesOnly(t *testing.T) {
	a := newAccount()
	a.set("/v2/serverless", listOf(entry("a"), entry("b")))
	a.set("/v2/b/health", `500 {}`)
	lines := strings.Split(strings.TrimSpace(logOf(t, a)), "\n")
	if len(lines) != 3 { // two found, one price in quotes, one whose /health does not answer
		for _, l := range lines {
			var m map[string]any
			_ = json.Unmarshal([]byte(l), &m)
			delete(m, "time")
			t.Logf("%v", m)
		}
		t.Errorf("%d lines in an hour in which nothing has changed", len(lines))
	}
}

func TestStatusHoldsNoSecret(t *testing.T) {
	a := newAccount()
	a.set("/v2/serverless", listOf(entry("a"), strings.Replace(entry("b"), `"type":"QUEUE"`, `"type":"`+strings.Repeat("ODD ", 20)+`"`, 1)))
	a.set("/v2/catalog/gpus", `500 {"detail":"key `+testKey+` is not known"}`)
	inBubble(t, a, Options{}, func(t *testing.T, w *watched) {
		eps := w.after(time.Minute)
		if s := fmt.Sprintf("%+v %v", w.Status(), eps); strings.Contains(s, testKey) || strings.Contains(s, envCode) {
			t.Errorf("a secret is shown: %s", s)
		}
		if !slices.ContainsFunc(eps, func(e endpoint.Endpoint) bool { return e.ID == "runpod:b" }) {
			t.Error("an endpoint of an unknown type is left out")
		}
	})
}

func TestWatchAskedForWhileBusy(t *testing.T) {
	t0 := time.Unix(1000, 0)
	w := watch{begun: t0, next: t0, busy: true}
	w.soon(time.Second)
	w.ended(30*time.Second, time.Second)
	if w.busy || !w.next.Equal(t0.Add(time.Second)) {
		t.Errorf("the next look is at %v, want a second after the last began", w.next.Sub(t0))
	}
	w.begun = w.next
	w.ended(30*time.Second, time.Second)
	if got := w.next.Sub(w.begun); got != 30*time.Second {
		t.Errorf("the look after that is %v later, want 30s", got)
	}
}
