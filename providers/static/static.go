// Package static offers the hosts written in the config. A host that names no models is asked for
// them, again and again until it answers, and now and then afterwards.
package static

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"headrace/router/endpoint"
)

// Options set up a Provider; zero durations mean the defaults named here.
type Options struct {
	Log     *slog.Logger
	Timeout time.Duration // of one question; default 5 s
	First   time.Duration // wait after the first failure, doubled up to Refresh; default 500 ms
	Refresh time.Duration // between questions to a host that answers; default 60 s
	// Known is what was learned before, by ID: a host at the same address serves that until it says otherwise.
	Known map[endpoint.ID]endpoint.Endpoint
}

// Provider is the discoverer of static hosts.
type Provider struct {
	hosts []endpoint.Endpoint
	asked []bool // by host: its models are to be asked for
	opt   Options
}

// New returns a Provider of hosts, which it owns from now on. Hosts without Served are asked.
func New(hosts []endpoint.Endpoint, o Options) *Provider {
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.First <= 0 {
		o.First = 500 * time.Millisecond
	}
	if o.Refresh <= 0 {
		o.Refresh = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	hosts = slices.Clone(hosts)
	asked := make([]bool, len(hosts))
	for i := range hosts {
		if u, err := url.Parse(hosts[i].BaseURL); err == nil && u.Path == "" {
			hosts[i].BaseURL += "/v1" // where OpenAI servers are, unless the operator wrote a path
		}
		if asked[i] = len(hosts[i].Served) == 0; asked[i] {
			if k, ok := o.Known[hosts[i].ID]; ok && k.BaseURL == hosts[i].BaseURL {
				hosts[i].Served = k.Served
			}
		}
	}
	return &Provider{hosts: hosts, asked: asked, opt: o}
}

// Hosts returns the hosts as they are known before anyone was asked. It is not to be changed, nor
// called once Run has begun.
func (p *Provider) Hosts() []endpoint.Endpoint { return p.hosts }

type learned struct {
	host   int
	served []endpoint.Served
}

// Run sends the hosts, then again whenever one has told what it serves, until ctx is done.
func (p *Provider) Run(ctx context.Context, out chan<- []endpoint.Endpoint) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan learned)
	asking := 0
	for i := range p.hosts {
		h := &p.hosts[i]
		if !p.asked[i] {
			continue
		}
		if h.Tenure == endpoint.Serverless {
			p.opt.Log.Warn("serverless host is not asked for its models, since that would wake and bill a worker: list them under models:", "endpoint", h.ID)
			continue
		}
		client, err := httpClient(h, p.opt.Timeout)
		if err != nil { // one host that cannot be asked takes none of the others away
			p.opt.Log.Error("host is not asked for its models", "endpoint", h.ID, "error", err)
			continue
		}
		asking++
		go func() {
			p.ask(ctx, i, client, answers)
			client.CloseIdleConnections()
			answers <- learned{host: -1}
		}()
	}
	defer func() { // wait for the askers: they own connections
		cancel()
		for asking > 0 {
			if (<-answers).host < 0 {
				asking--
			}
		}
	}()
	for {
		select {
		case out <- slices.Clone(p.hosts):
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case l := <-answers:
			if l.host < 0 {
				asking--
				continue
			}
			p.hosts[l.host].Served = l.served
			p.hosts[l.host].State = endpoint.Ready
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ask learns one host's models until ctx is done.
func (p *Provider) ask(ctx context.Context, i int, client *http.Client, answers chan<- learned) {
	h := p.hosts[i] // a copy: the slice is the other goroutine's
	wait := p.opt.First
	var last []endpoint.Served
	for {
		served, err := models(ctx, client, &h)
		switch {
		case err != nil && ctx.Err() != nil:
			return
		case err != nil:
			p.opt.Log.Warn("host does not tell its models", "endpoint", h.ID, "error", err, "again_in", wait.String())
		default:
			if !slices.EqualFunc(served, last, equal) {
				last = served
				p.opt.Log.Info("host serves", "endpoint", h.ID, "models", names(served))
				answers <- learned{i, served}
			}
			wait = p.opt.Refresh
		}
		t := time.NewTimer(wait + time.Duration(rand.Int64N(int64(wait/8)+1))) //nolint:gosec // spreads questions, guards nothing
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		wait = min(2*wait, p.opt.Refresh)
	}
}

func equal(a, b endpoint.Served) bool {
	return a.Name == b.Name && a.MaxContext == b.MaxContext && bytes.Equal(withoutCreated(a.Card), withoutCreated(b.Card))
}

// withoutCreated drops what vLLM makes anew for every answer: creation time and permission ids.
func withoutCreated(card json.RawMessage) []byte {
	var m map[string]json.RawMessage
	if json.Unmarshal(card, &m) != nil {
		return card
	}
	delete(m, "created")
	delete(m, "permission")
	b, _ := json.Marshal(m) // what was just unmarshalled
	return b
}

func names(served []endpoint.Served) []string {
	var out []string
	for _, s := range served {
		out = append(out, s.Name)
	}
	return out
}

const maxModelsBytes = 4 << 20

// models reads GET /models (https://platform.openai.com/docs/api-reference/models/list).
func models(ctx context.Context, client *http.Client, h *endpoint.Endpoint) ([]endpoint.Served, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.BaseURL+"/models", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "headrace")
	if h.APIKey != "" {
		req.Header.Set("Authorization", "Bearer "+h.APIKey.Reveal())
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s/models: status %d", h.BaseURL, res.StatusCode)
	}
	var list struct {
		Data []json.RawMessage `json:"data"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxModelsBytes)).Decode(&list); err != nil {
		return nil, fmt.Errorf("GET %s/models: %w", h.BaseURL, err)
	}
	var served []endpoint.Served
	for _, card := range list.Data {
		var m struct {
			ID     string `json:"id"`
			MaxLen int    `json:"max_model_len"`
		}
		if err := json.Unmarshal(card, &m); err != nil || m.ID == "" {
			continue // one odd entry does not hide the others
		}
		served = append(served, endpoint.Served{Name: m.ID, MaxContext: m.MaxLen, Card: card})
	}
	if len(served) == 0 {
		return nil, fmt.Errorf("GET %s/models: no model in the answer", h.BaseURL)
	}
	slices.SortFunc(served, func(a, b endpoint.Served) int { return strings.Compare(a.Name, b.Name) })
	return served, nil
}

func httpClient(h *endpoint.Endpoint, timeout time.Duration) (*http.Client, error) {
	u, err := url.Parse(h.BaseURL)
	if err != nil {
		return nil, errors.New("base URL cannot be parsed")
	}
	cfg, err := h.TLS.Config(u.Hostname())
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Timeout:   timeout,
		Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("redirected: base_url must be where the host itself answers") // and the key goes nowhere else
		},
	}, nil
}
