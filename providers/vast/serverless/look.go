package serverless

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

// The least time between calls of one kind, in Vast.ai's words of its API descriptions (x-rate-limit). None is printed
// for the worker list.
const (
	jobsEvery      = 3 * time.Second
	instancesEvery = time.Second
	instancesPage  = 25 // rows of an answer at most
)

// columns are what instanceRow reads.
const columns = `["id","dph_total","gpu_name","num_gpus","extra_env"]`

// job is what is known of an endpoint from one look to the next.
type job struct {
	row     jobRow
	workers []workerRow
	read    bool   // the workers have been read once
	why     string // the workers' list could not be read, or there is none: in the engine's words
	own     bool   // the engine wants the endpoint's own key for the list, not the account's
	price   endpoint.Price
	served  []endpoint.Served
}

// rate is what an instance costs and holds.
type rate struct {
	usdPerHour float64
	gpu        string
	gpus       int
	model      string
	context    int
	asOf       time.Time // when its row said so
	asked      time.Time
}

// look reads the account's endpoints, their workers and what those cost. Only the first is needed: what cannot be
// read of the others stays as it was.
func (p *Provider) look(ctx context.Context) ([]endpoint.Endpoint, error) {
	a, err := p.ask(ctx, p.console, api.Call{
		Name: "GET /api/v0/endptjobs/", URL: p.opt.ConsoleURL + "/api/v0/endptjobs/", Key: p.opt.Key, MinInterval: p.paced(jobsEvery),
	}, p.within)
	if err != nil {
		return nil, err
	}
	nameless := 0 // rows that do not say which endpoint they are
	list, err := decodeJobs(a.Body, func(what string) { nameless++; p.odd(what) })
	named := slices.DeleteFunc(slices.Clone(list), func(r jobRow) bool { return r.Name == "" })
	if nameless += len(list) - len(named); err == nil && nameless > 0 && len(named) == 0 {
		err = errors.New("no row of the list of endpoints can be read")
	}
	if err != nil {
		return nil, fmt.Errorf("vast: GET /api/v0/endptjobs/: %s", redact(err.Error(), p.opt.Key))
	}
	jobs, skipped := p.choose(list, nameless > 0)
	p.mu.Lock()
	p.status.Skipped = skipped
	if !a.Date.IsZero() {
		p.status.ClockSkew = a.Date.Sub(a.At).Truncate(time.Second) // a Date header knows no fractions
	}
	p.mu.Unlock()
	for _, j := range jobs {
		p.readWorkers(ctx, j)
	}
	p.readRates(ctx, jobs)
	p.readRoot(ctx, jobs)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	eps := make([]endpoint.Endpoint, 0, len(jobs))
	for _, j := range jobs {
		eps = append(eps, p.endpoint(j))
	}
	return eps, nil
}

func (p *Provider) paced(d time.Duration) time.Duration {
	return time.Duration(float64(d) * p.opt.Pace)
}

// choose returns the endpoints to use, by name, and why the others are not. In a list with gaps those that no row names stay: any of
// the rows that cannot be read may be theirs.
func (p *Provider) choose(list []jobRow, gaps bool) (jobs []*job, skipped []api.Skipped) {
	next := map[string]*job{}
	named := map[string]bool{}
	skip := func(r *jobRow, why string) {
		skipped = append(skipped, api.Skipped{ID: strconv.FormatInt(int64(r.ID), 10), Name: clip(string(r.Name)), Why: why})
	}
	for _, r := range list {
		name := string(r.Name)
		named[name] = true
		switch state := strings.ToLower(string(r.State)); state {
		case "active", "":
		case "suspended", "stopped":
			skip(&r, "the endpoint is "+state)
			continue
		default:
			p.odd("endpoint state " + clip(state))
		}
		switch {
		case name == "" || name != url.PathEscape(name):
			p.odd("endpoint name that does not fit into a path")
			skip(&r, "its name does not fit into a path")
		case p.opt.Endpoints != nil && !slices.ContainsFunc(p.opt.Endpoints, func(pattern string) bool { return matches(pattern, name) }):
			skip(&r, "not among the endpoints to use")
		case next[name] != nil:
			p.odd("two endpoints of one name")
			skip(&r, "another endpoint has the same name")
		case r.APIKey == "" && of(p.opt.Way, name) == Route:
			skip(&r, "its own key, which routing needs, is not in the list")
		default:
			j := p.known[name]
			if j == nil || j.row.ID != r.ID { // of the same name, but made anew
				j = &job{}
			}
			j.row = r
			next[name] = j
		}
	}
	for name, j := range p.known {
		if gaps && !named[name] {
			next[name] = j
		}
	}
	p.known = next
	return slices.SortedFunc(maps.Values(next), func(a, b *job) int { return cmp.Compare(a.row.Name, b.row.Name) }), skipped
}

// readWorkers asks the engine who works for j. Vast.ai's client sends the account's key, its documentation is silent;
// so the endpoint's own is tried where that one does not do.
func (p *Provider) readWorkers(ctx context.Context, j *job) {
	ask := func(key endpoint.Secret) ([]workerRow, error) {
		a, err := p.ask(ctx, p.engine, api.Call{
			Name: "POST /get_endpoint_workers/", Method: http.MethodPost, URL: p.opt.RunURL + "/get_endpoint_workers/", Key: key, Repeat: true,
			Body: struct {
				ID     int64  `json:"id"`
				APIKey string `json:"api_key"`
			}{int64(j.row.ID), key.Reveal()},
		}, p.within)
		if err != nil {
			return nil, err
		}
		return decodeWorkers(a.Body, p.odd)
	}
	account, own := p.opt.Key, endpoint.Secret(j.row.APIKey)
	if j.own {
		account, own = own, account
	}
	list, err := ask(account)
	if err != nil && ctx.Err() == nil && own != "" && keyRefused(err) {
		if l, e := ask(own); e == nil {
			list, err = l, nil
			j.own = !j.own
		}
	}
	switch {
	case ctx.Err() != nil:
	case err == nil:
		j.workers, j.why, j.read = list, "", true
	default:
		if e, ok := errors.AsType[errNoWorkers](err); ok {
			j.workers, j.why, j.read = nil, "Vast.ai lists no workers: "+redact(e.msg, account, own), true
			break
		}
		p.odd("worker list that cannot be read")
		if j.why == "" {
			p.opt.Log.Warn("workers of a serverless endpoint cannot be read; what was known of them stays in use", "endpoint", id(j), "error", err)
		}
		if j.why = "its workers cannot be read"; j.read {
			j.why += "; this is how they were last seen"
		}
	}
}

// redact takes keys out of what Vast.ai says.
func redact(text string, keys ...endpoint.Secret) string {
	for _, k := range keys {
		if k != "" {
			text = strings.ReplaceAll(text, k.Reveal(), k.String())
		}
	}
	return text
}

func keyRefused(err error) bool {
	if _, ok := errors.AsType[errNoWorkers](err); ok {
		return true
	}
	e, ok := errors.AsType[*api.Error](err)
	return ok && e.Denied()
}

// readRates reads what the workers cost, once for all endpoints, when one is new or what is known has aged.
func (p *Provider) readRates(ctx context.Context, jobs []*job) {
	now := p.opt.Now()
	var ids []int64
	due := false
	for _, j := range jobs {
		for _, w := range j.workers {
			id := int64(w.ID)
			if id <= 0 || slices.Contains(ids, id) {
				continue
			}
			ids = append(ids, id)
			due = due || now.Sub(p.rates[id].asked) >= p.opt.Prices
		}
	}
	if !due {
		return
	}
	slices.Sort(ids)
	next := map[int64]rate{}
	for _, id := range ids {
		if r, known := p.rates[id]; known {
			next[id] = r
		}
	}
	p.rates = next
	for part := range slices.Chunk(ids, instancesPage) {
		if err := p.readInstances(ctx, part); err != nil {
			if ctx.Err() == nil {
				p.odd("workers' prices that cannot be read")
				p.opt.Log.Debug("workers' prices cannot be read", "error", redact(err.Error(), p.opt.Key))
			}
			return
		}
		for _, id := range part { // one that has no row is asked for again when prices age, not at each look
			r := p.rates[id]
			r.asked = p.opt.Now()
			p.rates[id] = r
		}
	}
}

func (p *Provider) readInstances(ctx context.Context, ids []int64) error {
	filter, err := json.Marshal(map[string]any{"id": map[string]any{"in": ids}})
	if err != nil {
		return err
	}
	q := url.Values{"limit": {strconv.Itoa(instancesPage)}, "select_cols": {columns}, "select_filters": {string(filter)}}
	for range ids { // one page should do; more than one a row never ends
		a, err := p.ask(ctx, p.console, api.Call{
			Name: "GET /api/v1/instances/", URL: p.opt.ConsoleURL + "/api/v1/instances/?" + q.Encode(), Key: p.opt.Key, MinInterval: p.paced(instancesEvery),
		}, p.opt.Prices*9/10)
		if err != nil {
			return err
		}
		list, next, err := decodeInstances(a.Body, p.odd)
		if err != nil {
			return err
		}
		for _, r := range list {
			if !slices.Contains(ids, int64(r.ID)) {
				continue
			}
			name, length := model(r.Env)
			p.rates[int64(r.ID)] = rate{
				usdPerHour: float64(max(0, r.DPHTotal)), gpu: string(r.GPU), gpus: int(max(0, min(r.GPUs, 1024))),
				model: name, context: length, asOf: a.At,
			}
		}
		if next == "" {
			return nil
		}
		q.Set("after_token", next)
	}
	return nil
}

// readRoot fetches Vast.ai's root certificate, which signs the workers', once it is needed.
func (p *Provider) readRoot(ctx context.Context, jobs []*job) {
	routed := slices.ContainsFunc(jobs, func(j *job) bool { return of(p.opt.Way, string(j.row.Name)) == Route })
	if p.root != "" || p.opt.TLS != (endpoint.TLS{}) || !routed {
		return
	}
	a, err := p.console.Do(ctx, api.Call{Name: "GET /static/jvastai_root.cer", URL: p.opt.ConsoleURL + "/static/jvastai_root.cer", Key: p.opt.Key})
	if err == nil {
		text := a.Body
		if !bytes.Contains(text, []byte("-----BEGIN CERTIFICATE-----")) {
			text = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Body})
		}
		tls := endpoint.TLS{Roots: string(text), AnyName: true}
		if _, err = tls.Config(""); err == nil {
			p.root = tls.Roots
		}
	}
	if err != nil && ctx.Err() == nil {
		p.odd("root certificate that cannot be read")
		p.opt.Log.Warn("Vast.ai's root certificate cannot be read: its workers cannot prove who they are and get nothing", "error", err)
	}
}

// idPrefix begins the ID of every endpoint.
const idPrefix = "vast:serverless-"

func id(j *job) endpoint.ID { return endpoint.ID(idPrefix + string(j.row.Name)) }

// endpoint describes j as a host.
func (p *Provider) endpoint(j *job) endpoint.Endpoint {
	name := string(j.row.Name)
	ep := endpoint.Endpoint{
		ID: id(j), Provider: "vast", Tenure: endpoint.Serverless,
		// The next worker may be anybody's who rents out, whoever the present ones belong to.
		Trust:  endpoint.TrustCommunity,
		Routes: []string{"/chat/completions", "/completions"},
		Labels: map[string]string{nameLabel: name, "vast_endpoint_id": strconv.FormatInt(int64(j.row.ID), 10)},
	}
	if of(p.opt.Way, name) == Route {
		ep.Dialect, ep.BaseURL, ep.APIKey, ep.TLS = endpoint.VastRoute, p.opt.RunURL, endpoint.Secret(j.row.APIKey), p.opt.TLS
		if ep.TLS == (endpoint.TLS{}) && p.root != "" {
			ep.TLS = endpoint.TLS{Roots: p.root, AnyName: true}
		}
	} else {
		ep.BaseURL, ep.APIKey, ep.TextOnly = p.opt.OpenAIURL+"/"+name+"/v1", p.opt.Key, true
	}
	c := p.census(j.workers)
	if j.read {
		ep.State = c.state()
	}
	ep.Workers, ep.StateReason = c.up, j.why
	if ep.StateReason == "" {
		ep.StateReason = c.reason()
	}
	p.learn(j)
	ep.Served = j.served
	if models := of(p.opt.Models, name); len(models) > 0 {
		ep.Served = nil
		for _, m := range models {
			ep.Served = append(ep.Served, endpoint.Served{Name: m})
		}
	} else if len(ep.Served) == 0 {
		ep.Served = []endpoint.Served{{Name: name, Unnamed: true}}
	}
	ep.Price = j.price
	if s := float64(j.row.Inactivity); ep.Price.Basis != endpoint.BasisUnknown && s > 0 && s < 1e6 {
		ep.Price.IdleTimeout = time.Duration(s * float64(time.Second))
	}
	for i, w := range j.workers { // what all of them have
		r := p.rates[int64(w.ID)]
		if i > 0 && (ep.Hardware.GPU != r.gpu || ep.Hardware.GPUCount != r.gpus) {
			ep.Hardware = endpoint.Hardware{}
			break
		}
		ep.Hardware = endpoint.Hardware{GPU: r.gpu, GPUCount: r.gpus}
	}
	return ep
}

// learn takes price and model from the workers' instances. Without any, what they were last stays.
func (p *Provider) learn(j *job) {
	var sum, upSum float64
	var n, upN int
	var asOf, upAsOf time.Time
	var served []endpoint.Served
	for _, w := range j.workers {
		r := p.rates[int64(w.ID)]
		if r.model != "" && !slices.ContainsFunc(served, func(s endpoint.Served) bool { return s.Name == r.model }) {
			served = append(served, endpoint.Served{Name: r.model, MaxContext: r.context})
		}
		if r.usdPerHour <= 0 {
			continue
		}
		sum, n, asOf = sum+r.usdPerHour, n+1, older(asOf, r.asOf)
		if ph := phaseOf(string(w.Status)); ph == up || ph == loading {
			upSum, upN, upAsOf = upSum+r.usdPerHour, upN+1, older(upAsOf, r.asOf)
		}
	}
	if upN > 0 {
		sum, n, asOf = upSum, upN, upAsOf
	}
	if n > 0 {
		j.price = endpoint.Price{Basis: endpoint.PerWorkerSecond, USDPerWorkerSecond: sum / float64(n) / 3600, AsOf: asOf, Source: "vast dph_total of its workers"}
	}
	switch len(served) {
	case 0:
	case 1:
		j.served = served
	default: // any of them may get the request, so it has no one name
		p.odd("workers of one endpoint that serve different models")
		j.served = nil
	}
}

func older(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
