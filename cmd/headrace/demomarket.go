package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"headrace/gateway/config"
	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/script"
	"headrace/providers/vast"
	"headrace/router/endpoint"
)

// Models of the demo.
const (
	demoLlama   = "llama-70b"
	demoMixtral = "mixtral-8x7b"
	demoCoder   = "coder-32b"
)

// The market as the demo's article tells it, in its own time.
const (
	outbidEvery = 6 * time.Hour // each interruptible instance, on average
	awayFor     = 10 * time.Minute
)

// market is a fake RunPod and a fake Vast.ai with a fleet, and other people who bid for its instances.
type market struct {
	*script.Clouds
	scale       float64 // market seconds in a second
	runpodScale float64 // the same for cold starts, which have to last long enough to be seen
	env         map[string]string
}

// demoScript is the fleet: hosts of a model differ in price more than in kind, so that a load of a few requests a second keeps
// more than one busy. Bids are drawn from the fake's figures for each class of hosts.
func demoScript(o *demoOptions) *script.Script {
	scale, one := o.scale(), 1.0
	cold := min(scale, 15)
	price := func(class string, n uint64) float64 {
		c, ok := fakecloud.ClassNamed(class)
		if !ok {
			panic("BUG: no class " + class)
		}
		return fakecloud.Draw(o.seed+n, 2, c)[1].USDPerHour // the second is Vast.ai's
	}
	bid := func(name, class, model string, n uint64) script.Instance {
		return script.Instance{Name: name, Class: class, Models: []string{model}, Bid: price(class, n)}
	}
	s := &script.Script{
		Seed: o.seed, TimeScale: &scale, EngineScale: &one,
		RunPod: &script.RunPod{
			Key: "rpa_DEMO", TimeScale: &cold,
			Endpoints: []script.Endpoint{{
				Name: "coder", Class: "h100-mixtral", Models: []string{demoCoder}, WorkersMax: 2,
				ColdStart: script.Duration(45 * time.Second), IdleTimeout: script.Duration(time.Minute),
			}},
			Pods: []script.Pod{{Name: "mixtral", Class: "a100-mixtral", Models: []string{demoMixtral}}},
		},
		Vast: &script.Vast{
			Key: "vast-demo",
			Instances: []script.Instance{
				bid("llama-a", "2x4090-llama-70b", demoLlama, 1),
				bid("llama-b", "2x4090-llama-70b", demoLlama, 2),
				bid("llama-c", "2x4090-llama-70b", demoLlama, 3),
				bid("mixtral-a", "h100-mixtral", demoMixtral, 4),
				bid("mixtral-b", "a100-mixtral", demoMixtral, 5),
				{Name: "llama-steady", Class: "2x4090-llama-70b", Models: []string{demoLlama}}, // on demand
			},
		},
	}
	if !o.calm {
		s.Vast.BidWar = &script.BidWar{Every: script.Duration(outbidEvery), Away: script.Duration(awayFor)}
	}
	return s
}

// scale is how many times faster than in life the market's time goes.
func (o *demoOptions) scale() float64 { return float64(time.Hour) / float64(o.hour) }

// startMarket starts both clouds; Run plays the bid war. They end with ctx, or by Stop.
func startMarket(ctx context.Context, o *demoOptions) (*market, error) {
	s := demoScript(o)
	c, err := s.Start(ctx)
	if err != nil {
		return nil, fmt.Errorf("start the fake clouds: %w", err)
	}
	m := &market{Clouds: c, scale: o.scale(), runpodScale: *s.RunPod.TimeScale, env: map[string]string{}}
	for _, v := range c.Env() {
		m.env[v.Name] = v.Value
	}
	// What takes 15 s and a minute in life, in the market's time.
	m.env[config.EnvVastPoll] = max(vastPoll, brought(15*time.Second, m.scale)).String()
	m.env[config.EnvRunPodPoll] = brought(time.Minute, m.runpodScale).String()
	return m, nil
}

const vastPoll = 100 * time.Millisecond // the least: an outbid instance is seen before, by its webhook and by what fails there

func brought(d time.Duration, scale float64) time.Duration {
	return time.Duration(float64(d) / scale).Round(time.Millisecond)
}

// demoFile is all the config there is: the market runs faster than life, so that a breaker's ten seconds would be hours.
const demoFile = "breaker: {open_for: 1s}\nlog: {format: text}\n"

// config is what the gateway makes of the keys in the environment, as "headrace serve" does. Of the real environment it sees where
// telemetry goes and nothing else.
func (m *market) config(o *demoOptions) (*config.Config, error) {
	over := config.Overrides{Listen: o.listen, Admin: o.admin}
	if o.open {
		over.AllowUnauthenticated = &o.open
	}
	cfg, err := config.Parse("demo.yaml", []byte(demoFile), over, func(name string) (string, bool) {
		if strings.HasPrefix(name, "OTEL_") {
			return os.LookupEnv(name)
		}
		v, ok := m.env[name]
		return v, ok
	})
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		return nil, &exitError{2, badConfig(err)}
	}
	cfg.Providers.RunPod.HealthPoll = brought(cfg.Providers.RunPod.HealthPoll, m.runpodScale)
	return cfg, nil
}

// hurry has a watch the accounts in the market's time: Vast.ai's intervals between calls, which no config changes, are those of life.
func (m *market) hurry(a *app, cfg *config.Config) {
	a.rented.Store(hurried(cfg, max(1/m.scale, 1.0/60), a.log))
}

func hurried(cfg *config.Config, pace float64, log *slog.Logger) *clouds {
	c := newClouds(cfg, nil, log)
	o := vastOptions(cfg.Providers.Vast, log)
	o.Pace = pace
	c.vast = vast.New(o)
	return c
}

// subscribe has Vast.ai post its events to the gateway at base.
func (m *market) subscribe(ctx context.Context, base string) (endpoint.Secret, error) {
	return subscribe(ctx, m.Vast.ConsoleURL(), m.env[config.EnvVastKey], base)
}

// subscribe has Vast.ai post its events to the gateway at base, as one does in its console. The secret proves them.
func subscribe(ctx context.Context, console, key, base string) (endpoint.Secret, error) {
	body, err := json.Marshal(map[string]any{
		"name": "headrace", "webhook_url": base + "/webhooks/vast", "event_types": []string{"client:outbid", "client:instance_started"},
	})
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, console+"/api/v0/webhooks/", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	var answer struct {
		Webhook struct {
			Secret endpoint.Secret `json:"webhook_secret"`
		} `json:"webhook"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || answer.Webhook.Secret == "" {
		return "", fmt.Errorf("the fake Vast.ai takes no webhook: status %d", res.StatusCode)
	}
	return answer.Webhook.Secret, nil
}
