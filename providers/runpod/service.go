package runpod

import (
	"cmp"
	"encoding/json"
	"math"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"headrace/router/endpoint"
)

// description is what the list of endpoints tells of one, without its secrets.
type description struct {
	id, name    string
	balancer    bool
	cpu         bool   // its workers have no GPU
	base        string // where the list says that it is reached, "" when that is not to be used
	pools       []string
	excluded    []string // GPU type ids
	gpus        int      // of one worker
	maxWorkers  int      // -1 when unknown
	idleTimeout time.Duration
	dataCenters []string // it is confined to; empty means anywhere
	image       string
	engine      engine
	told        bool // the entry has said what runs inside
}

// service is a serverless endpoint of the account.
type service struct {
	desc   description
	sum    uint64 // of the list's entry that desc was read from
	seen   sight
	time   *workTime
	booked endpoint.Reading // of its meter, as the audit has it; At is when it was read

	state   endpoint.State
	reason  string
	workers []worker
	learned string // the model's id, told by an answer

	look   watch     // looks at /health
	goodAt time.Time // last one that told something
	calm   int       // looks in a row that found it asleep

	askAt    time.Time // when its workers are to be asked for, zero for not at all
	askedAt  time.Time
	upAsked  int // how many were up then
	asking   bool
	detailAt time.Time // when GET /v2/serverless/{id} is due, zero for never: the list has told

	ep        endpoint.Endpoint // as it was built last
	announced bool              // in the log
	price     priceKey          // as it was logged last
}

// watch is when a thing is looked at.
type watch struct {
	next, begun time.Time
	failing     int // looks in a row that told nothing
	busy        bool
	again       bool // asked for while busy
}

// priceKey is what makes a price news worth a line in the log.
type priceKey struct {
	usd    float64
	source string
}

// worker is one that is up.
type worker struct {
	gpuType    string
	gpus       int
	dataCenter string
}

// up are the workers that bill now. Those of an endpoint that has gone to sleep since they were asked for are no more.
func (s *service) up() []worker {
	if !s.seen.up && s.seen.any {
		return nil
	}
	return s.workers
}

const (
	defaultIdle = 5 * time.Second // RunPod's default, which it leaves out for queues that scale by the count of requests

	// What RunPod lets through (docs: send-requests, load-balancing overview). Where "MB" may mean either, it is taken for 1e6.
	maxRouteBody    = 20e6
	maxJobBody      = 10e6
	maxBalancerBody = 30e6
	maxBalancerTime = 5*time.Minute + 30*time.Second
	ratePer         = 10 * time.Second
	routeRate       = 2000 // /openai/*, and /stream of jobs
	routeConcurrent = 400
	jobRate         = 1000 // /run
	jobConcurrent   = 200
	// ratePerWorker is the "requests per worker" of an earlier example in RunPod's documentation; today's names no figure.
	ratePerWorker = 50
)

// describe reads an entry of the list. ok is false when it says nothing usable.
func (p *Provider) describe(raw json.RawMessage) (d description, ok bool) {
	var e endpointJSON
	if err := p.decode(raw, &e, "endpoint"); err != nil || e.ID == "" {
		p.odd("endpoint: an entry that cannot be read")
		return d, false
	}
	p.numbers("endpoint", e.Workers.Min, e.Workers.Max, e.Workers.IdleTimeout)
	d = description{
		id: e.ID, name: cmp.Or(e.Name, e.ID), gpus: 1, maxWorkers: -1, idleTimeout: defaultIdle,
		dataCenters: e.DataCenterIDs, image: e.Image, engine: e.engine(), told: e.Env != nil || e.Image != "" || e.Args != nil,
	}
	switch strings.ToUpper(e.Type) {
	case "QUEUE":
	case "LOAD_BALANCER", "LB":
		d.balancer = true
	default: // of endpoints made before there were two kinds it may be missing
		if e.Type != "" {
			p.odd("endpoint: unknown type " + word(e.Type))
		}
		d.balancer = e.RequestURLs.Base != "" && e.RequestURLs.Run == ""
	}
	if d.balancer {
		d.base = p.suggested(e.RequestURLs.Base, p.opt.BalancerURL == DefaultBalancerURL)
	} else if run, ok := strings.CutSuffix(e.RequestURLs.Run, "/run"); ok {
		d.base = p.suggested(run, p.opt.QueueURL == DefaultQueueURL)
	}
	if e.GPU != nil {
		d.pools, d.excluded, d.gpus = e.GPU.Pools, e.GPU.ExcludedTypes, max(1, e.GPU.Count.count())
	}
	d.cpu = e.GPU == nil && len(e.CPU) > 2
	if e.Workers.Max.set {
		d.maxWorkers = e.Workers.Max.count()
	}
	if e.Workers.IdleTimeout.v > 0 {
		d.idleTimeout = seconds(e.Workers.IdleTimeout.v)
	}
	return d, true
}

// suggested is an address that RunPod's answer names, "" when it is not to be used: a configured one wins, and the key goes
// to RunPod's own domains only.
func (p *Provider) suggested(address string, unconfigured bool) string {
	if address == "" || !unconfigured {
		return ""
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.RawQuery != "" || u.User != nil || !runpodHost(u.Hostname()) {
		p.odd("endpoint: an address outside of RunPod")
		return ""
	}
	return strings.TrimRight(address, "/")
}

func runpodHost(host string) bool {
	return slices.ContainsFunc([]string{".runpod.ai", ".runpod.io", ".runpod.net"}, func(d string) bool { return strings.HasSuffix(host, d) })
}

// word cuts a vendor's word to what is safe to count and to log.
func word(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '_' || r == '-' || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' {
			return r
		}
		return '?'
	}, s)
	return s[:min(len(s), 32)]
}

// build makes the endpoint anew and tells whether that is news.
func (p *Provider) build(s *service) bool {
	d := &s.desc
	ep := endpoint.Endpoint{
		ID: serviceID(d.id), Provider: provider, APIKey: p.opt.Key, Tenure: endpoint.Serverless,
		State: s.state, StateReason: s.reason, Trust: endpoint.TrustDatacenter, Lumpy: !d.balancer,
		Labels: map[string]string{"name": d.name, "type": kindOf(d)},
	}
	configured, _ := lookup(p.opt.Models, d.id, d.name)
	ep.Served = served(configured, &d.engine, s.learned, d.name)
	ep.Workers, ep.MaxWorkers = s.upCount(), max(0, s.desc.maxWorkers)
	ep.MaxNumSeqs = d.engine.seqs // of one worker: the router counts workers itself
	p.place(s, &ep)
	ep.Price = p.price(s)
	ep.Meter = s.time.meter
	if d.balancer {
		ep.BaseURL = cmp.Or(d.base, strings.ReplaceAll(p.opt.BalancerURL, "{id}", d.id)) + "/v1"
		ep.Limits = endpoint.Limits{MaxBodyBytes: maxBalancerBody, MaxDuration: maxBalancerTime}
	} else {
		ep.BaseURL = cmp.Or(d.base, p.opt.QueueURL+"/"+d.id) + "/openai/v1"
		native, _ := lookup(p.opt.Native, d.id, d.name)
		if native { // what the translator can make of a request
			ep.Plain, ep.TextOnly, ep.Routes, ep.Continues = true, true, []string{"/chat/completions", "/completions"}, endpoint.ContinuesNever
		}
		// A cold OpenAI route is held without a byte and cut off at about 100 s, so that it is used while a worker is known to be up.
		if native || s.state != endpoint.Ready && s.state != endpoint.Saturated {
			ep.Dialect = endpoint.RunPodJobs
			ep.Limits = endpoint.Limits{MaxBodyBytes: maxJobBody, Requests: jobRate, Per: ratePer, Concurrent: jobConcurrent}
		} else {
			ep.Limits = endpoint.Limits{MaxBodyBytes: maxRouteBody, Requests: routeRate, Per: ratePer, Concurrent: routeConcurrent}
		}
		ep.Limits.Requests = max(ep.Limits.Requests, ep.Workers*ratePerWorker)
	}
	if reflect.DeepEqual(ep, s.ep) {
		return false
	}
	p.note(s, &ep)
	s.ep = ep
	return true
}

func kindOf(d *description) string {
	if d.balancer {
		return balancerKind
	}
	return queueKind
}

// upCount is how many workers are up: as /health has it, since the list of workers is seldom read. Ready counts
// the idle ones too, and a worker that runs may be counted as ready or not, so that the sum might be too high.
func (s *service) upCount() int {
	if !s.seen.up {
		return 0
	}
	g := &s.seen.last
	return max(g.ready, g.idle, g.running)
}

// place says on what and where the service runs.
func (p *Provider) place(s *service, ep *endpoint.Endpoint) {
	var types, centers []string
	for _, w := range s.up() {
		if n := p.gpuName(w.gpuType); n != "" && !slices.Contains(types, n) {
			types = append(types, n)
		}
		if w.dataCenter != "" && !slices.Contains(centers, w.dataCenter) {
			centers = append(centers, w.dataCenter)
		}
	}
	if len(types) == 0 {
		types = slices.Clone(s.desc.pools)
	}
	slices.Sort(types)
	slices.Sort(centers)
	ep.Hardware.GPU = strings.Join(types, ", ")
	if !s.desc.cpu {
		ep.Hardware.GPUCount = s.desc.gpus
	}
	if len(centers) > 0 {
		ep.Labels["data_centers"] = strings.Join(centers, ",")
	}
	// The next worker may start in any data centre that the endpoint is confined to, so that all of them decide, not only those
	// of the workers seen last: who asks for a region must get it.
	if len(s.desc.dataCenters) > 0 {
		ep.Region = shared(append(slices.Clone(s.desc.dataCenters), centers...))
	}
}

// shared is what names of data centres have in common: "US-KS" for US-KS-2 and US-KS-3, "" for US-KS-2 and EU-RO-1.
func shared(centers []string) string {
	parts := strings.Split(centers[0], "-")
	for _, c := range centers[1:] {
		other := strings.Split(c, "-")
		n := 0
		for n < min(len(parts), len(other)) && parts[n] == other[n] {
			n++
		}
		parts = parts[:n]
	}
	return strings.Join(parts, "-")
}

// note logs what an operator wants to know of a change.
func (p *Provider) note(s *service, ep *endpoint.Endpoint) {
	if !s.announced {
		if s.announced = p.priced && (s.seen.any || s.look.failing > 0); s.announced {
			p.opt.Log.Info("endpoint found", "endpoint", ep.ID, "name", s.desc.name, "type", kindOf(&s.desc), "state", ep.State, "reason", ep.StateReason,
				"model", ep.Served[0].Name, "usd_per_worker_second", ep.Price.USDPerWorkerSecond, "price_source", ep.Price.Source)
			s.price = keyOf(&ep.Price)
		}
		return
	}
	if ep.State != s.ep.State {
		p.opt.Log.Info("endpoint's state changed", "endpoint", ep.ID, "from", s.ep.State, "to", ep.State, "reason", ep.StateReason)
	}
	if k := keyOf(&ep.Price); k != s.price {
		p.opt.Log.Info("endpoint's price changed", "endpoint", ep.ID, "from_usd_per_worker_second", s.price.usd, "to_usd_per_worker_second", k.usd, "price_source", ep.Price.Source)
		s.price = k
	}
}

// keyOf leaves out what a mean may differ by in its last bits, and on which GPUs the source rests.
func keyOf(pr *endpoint.Price) priceKey {
	from, _, _ := strings.Cut(pr.Source, ",")
	return priceKey{math.Round(pr.USDPerWorkerSecond*1e9) / 1e9, from}
}
