package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/http"
	"time"

	"headrace/gateway/config"
	"headrace/gateway/state"
	"headrace/providers"
	"headrace/providers/api"
	"headrace/providers/runpod"
	"headrace/providers/runpod/jobs"
	"headrace/providers/vast"
	"headrace/providers/vast/serverless"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// account is something rented, whose hosts are discovered.
type account struct {
	name     string // for people: "runpod", "vast", "vast serverless"
	provider string // of its endpoints
	providers.Discoverer
	status func() api.Status // nil for hosts of the config
}

// clouds are the accounts of one config. A nil one is not asked.
type clouds struct {
	runpod     *runpod.Provider
	vast       *vast.Provider
	serverless *serverless.Provider

	console *api.Client // asks Vast.ai for both of its providers: what must lie between two calls is counted by the key
	asks    consoleKey
}

// consoleKey is what one client of Vast.ai's console is for.
type consoleKey struct {
	url string
	key endpoint.Secret
}

// newClouds sets the accounts up. shared may be nil: then each replica polls for itself.
func newClouds(cfg *config.Config, shared *state.Redis, log *slog.Logger) *clouds {
	return (*clouds)(nil).next(cfg, shared, log)
}

// next sets the accounts of another config up. What c counts of calls to an account that stays goes on. c may be nil.
func (c *clouds) next(cfg *config.Config, shared *state.Redis, log *slog.Logger) *clouds {
	old := c
	c = &clouds{}
	if r := cfg.Providers.RunPod; r != nil {
		c.runpod = runpod.New(runpodOptions(r, log))
	}
	if v := cfg.Providers.Vast; v != nil {
		c.asks = consoleKey{v.ConsoleURL, v.APIKey}
		if old != nil && old.console != nil && old.asks == c.asks {
			c.console = old.console
		} else {
			c.console = api.New(api.Options{Provider: "vast", Key: v.APIKey})
		}
		o := vastOptions(v, log)
		o.Client = c.console
		if shared != nil {
			o.Share = shared
		}
		c.vast = vast.New(o)
		if len(v.Serverless) > 0 {
			o := serverlessOptions(v, log)
			o.Client = c.console
			if shared != nil {
				o.Share = shared
			}
			c.serverless = serverless.New(o)
		}
	}
	return c
}

// inherit takes over what old has learned of accounts that are the same. old's rounds must have ended, and c's not begun.
func (c *clouds) inherit(old *clouds) {
	if c.runpod != nil && old.runpod != nil {
		c.runpod.Inherit(old.runpod)
	}
	if c.vast != nil && old.vast != nil {
		c.vast.Inherit(old.vast)
	}
	if c.serverless != nil && old.serverless != nil {
		c.serverless.Inherit(old.serverless)
	}
}

func runpodOptions(r *config.RunPod, log *slog.Logger) runpod.Options {
	o := runpod.Options{
		Key: r.APIKey, ManagementURL: r.ManagementURL, QueueURL: r.QueueURL, BalancerURL: r.BalancerURL, PodURL: r.PodURL,
		Models: map[string][]string{}, Native: map[string]bool{}, Prices: r.Prices,
		Poll: r.Poll, HealthPoll: r.HealthPoll, CatalogPoll: r.CatalogPoll, Log: log,
	}
	for _, e := range r.Endpoints {
		o.Endpoints = append(o.Endpoints, e.Match)
		if len(e.Models) > 0 {
			o.Models[e.Match] = e.Models
		}
		if e.Native {
			o.Native[e.Match] = true
		}
	}
	for _, p := range r.Pods {
		o.Pods = append(o.Pods, runpod.PodOptions{Match: p.Match, Port: p.Port, TCP: p.TCP, Spot: p.Spot, Key: p.APIKey, Models: p.Models})
	}
	return o
}

// actorOptions say what may be done to the account's endpoints, and where it is remembered.
func (a *app) actorOptions(cfg *config.Config) runpod.ActorOptions {
	o := runpod.ActorOptions{Log: a.log, Acted: func(id endpoint.ID) { a.rented.Load().look(id) }}
	r := cfg.Providers.RunPod
	if r == nil {
		return o
	}
	o.Key, o.ManagementURL, o.Native, o.MaxHeld = r.APIKey, r.ManagementURL, map[string]bool{}, r.MaxHeld
	for _, e := range r.Endpoints {
		o.Permits = append(o.Permits, runpod.Permit{Match: e.Match, Permission: map[string]runpod.Permission{"wake": runpod.MayWake, "hold": runpod.MayHold}[e.Actions]})
		if e.Native {
			o.Native[e.Match] = true
		}
	}
	switch {
	case a.redis != nil:
		turn := a.redis.Turn(turnName(r))
		o.Turn, o.Memory = turn, turn
	case r.HeldFile != "":
		o.Memory = runpod.File(r.HeldFile)
	}
	return o
}

// turnName names the account's capacity actions for replicas.
func turnName(r *config.RunPod) string {
	account := sha256.Sum256([]byte(r.ManagementURL + "\x00" + r.APIKey.Reveal()))
	return "runpod:actions:" + hex.EncodeToString(account[:16])
}

func vastOptions(v *config.Vast, log *slog.Logger) vast.Options {
	i := &v.Instances
	o := vast.Options{
		Key: v.APIKey, ConsoleURL: v.ConsoleURL, InstanceURL: v.InstanceURL, Labels: i.Labels, Templates: i.Templates,
		Port: i.Port, Bearer: i.APIKey, Models: i.Models, TLS: vast.TLSMode(i.TLS), Poll: v.Poll, WebhookSecret: v.WebhookSecret,
		LeaveBefore: i.LeaveBefore, MaxUSDPerHour: i.MaxUSDPerHour, Log: log,
	}
	for _, id := range i.IDs {
		o.IDs = append(o.IDs, int64(id))
	}
	return o
}

func serverlessOptions(v *config.Vast, log *slog.Logger) serverless.Options {
	o := serverless.Options{
		Key: v.APIKey, ConsoleURL: v.ConsoleURL, RunURL: v.RunURL, OpenAIURL: v.OpenAIURL, Poll: v.Poll, Log: log,
		Way: map[string]serverless.Way{}, Payload: map[string]serverless.PayloadForm{}, Models: map[string][]string{},
	}
	for _, e := range v.Serverless {
		o.Endpoints = append(o.Endpoints, e.Match)
		if e.Way == "route" {
			o.Way[e.Match] = serverless.Route
		}
		switch e.Payload {
		case "wrapped":
			o.Payload[e.Match] = serverless.Wrapped
		case "bare":
			o.Payload[e.Match] = serverless.Bare
		}
		if len(e.Models) > 0 {
			o.Models[e.Match] = e.Models
		}
	}
	return o
}

// all returns the accounts that are asked.
func (c *clouds) all() []account {
	var as []account
	if c.runpod != nil {
		as = append(as, account{"runpod", "runpod", c.runpod, c.runpod.Status})
	}
	if c.vast != nil {
		as = append(as, account{"vast", "vast", c.vast, c.vast.Status})
	}
	if c.serverless != nil {
		as = append(as, account{"vast serverless", "vast", c.serverless, c.serverless.Status})
	}
	return as
}

// owner is which account an endpoint belongs to; both of Vast.ai's have its name.
func (c *clouds) owns(a account, ep *endpoint.Endpoint) bool {
	return ep.Provider == a.provider && (ep.Provider != "vast" || (ep.Tenure == endpoint.Serverless) == (a.name == "vast serverless"))
}

// look has the endpoint's account look at it now: a request there has failed, or something was done to it.
func (c *clouds) look(id endpoint.ID) {
	if c.runpod != nil {
		c.runpod.Nudge(id)
	}
	if c.vast != nil {
		c.vast.Nudge(id)
	}
	if c.serverless != nil {
		c.serverless.Nudge(id)
	}
}

func (c *clouds) learned(id endpoint.ID, model string) {
	if c.runpod != nil {
		c.runpod.Learned(id, model)
	}
}

func (c *clouds) worked(id endpoint.ID, w endpoint.WorkerReport) {
	if c.runpod != nil {
		c.runpod.Report(id, w)
	}
}

func (c *clouds) busy(id endpoint.ID, ended time.Time) {
	if c.runpod != nil {
		c.runpod.Busy(id, ended)
	}
}

// webhook takes what is posted to /webhooks/NAME.
func (c *clouds) webhook(name string, header func(string) string, body []byte) int {
	if name != "vast" || c.vast == nil {
		return http.StatusNotFound
	}
	return c.vast.Webhook(header, body, time.Now())
}

// classify asks the adapter of the endpoint's provider what an answer means.
func classify(ep *endpoint.Endpoint, status int, contentType string, body []byte) (outcome.Class, bool) {
	switch {
	case ep.Provider == "runpod":
		return runpod.Classify(ep, status, contentType, body)
	case ep.Provider == "vast" && ep.Tenure == endpoint.Serverless:
		return serverless.Classify(ep, status, contentType, body)
	case ep.Provider == "vast":
		return vast.Classify(ep, status, contentType, body)
	}
	return 0, false
}

// refusal finds the engine's own words in an answer that speaks against the request.
func refusal(ep *endpoint.Endpoint, body []byte) (outcome.Refusal, bool) {
	if ep.Provider == "runpod" {
		return jobs.Refusal(body)
	}
	return outcome.Refusal{}, false
}

// translators stand for endpoints that do not speak plain OpenAI HTTP.
type translators struct {
	clouds func() *clouds
	jobs   *jobs.Translator
}

func newTranslators(cfg *config.Config, log *slog.Logger, current func() *clouds) *translators {
	t := &translators{clouds: current}
	t.jobs = jobs.New(jobs.Options{Log: log, TTL: jobTTL(cfg), Native: func(ep *endpoint.Endpoint) bool {
		c := current()
		return c != nil && c.runpod != nil && c.runpod.Native(ep)
	}})
	return t
}

func jobTTL(cfg *config.Config) time.Duration {
	if r := cfg.Providers.RunPod; r != nil {
		return r.JobTTL
	}
	return 0
}

// configure changes what another config says of requests to come.
func (t *translators) configure(cfg *config.Config) { t.jobs.SetTTL(jobTTL(cfg)) }

// handler returns what stands for ep, nil for endpoints that are spoken to as they are.
func (t *translators) handler(ep *endpoint.Endpoint) http.Handler {
	switch ep.Dialect {
	case endpoint.RunPodJobs:
		return t.jobs.Handler(*ep)
	case endpoint.VastRoute:
		if c := t.clouds(); c != nil && c.serverless != nil {
			return c.serverless.Handler(*ep)
		}
	case endpoint.OpenAI:
	}
	return nil
}

// cancelWithin is how long the cancelling of jobs that nobody waits for may take at shutdown.
const cancelWithin = 10 * time.Second

// close waits until jobs that lost their callers are cancelled.
func (t *translators) close(log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), cancelWithin)
	defer cancel()
	if err := t.jobs.Close(ctx); err != nil {
		log.Warn("some RunPod jobs may run on until their time to live ends", "error", err)
	}
}

// providerStatus is what the admin API shows of an account.
type providerStatus struct {
	Account string `json:"account"`
	api.Status
	Actions *runpod.ActionStatus `json:"actions,omitempty"` // of RunPod
}

func (a *app) statuses() []providerStatus {
	out := []providerStatus{}
	c := a.rented.Load()
	for _, acc := range c.all() {
		s := providerStatus{acc.name, acc.status(), nil}
		if c.runpod != nil && acc.Discoverer == c.runpod {
			actions := a.actor.Status()
			s.Actions = &actions
		}
		out = append(out, s)
	}
	return out
}
