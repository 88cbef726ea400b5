package runpod

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

const (
	defaultPodPort = 8000
	// stoppedUSDPerGBMonth is what the volume disk of a stopped pod costs (docs.runpod.io/pods/pricing).
	stoppedUSDPerGBMonth = 0.20
	hoursPerMonth        = 730
)

// podDescription is what the list of pods tells of one, without its secrets.
type podDescription struct {
	id, name   string
	status     string
	cloud      string
	gpuType    string
	gpus       int
	usdPerHour float64
	volumeGB   float64
	dataCenter string
	started    string
	base       string // where its server is reached, "" while that is not known
	engine     engine
}

// pod is a rented machine with a server of its own inside.
type pod struct {
	desc  podDescription
	sum   uint64
	opt   *PodOptions
	state endpoint.State
	why   string
	asOf  time.Time // when the price was told
	usd   float64   // the last price that was one: it is 0 while the pod does not run

	base   string // where it is looked into
	look   watch
	served []endpoint.Served // as the server told

	ep endpoint.Endpoint
}

// gotPods takes the account's pods in.
func (p *Provider) gotPods(a *api.Answer, err error) {
	p.reading = false
	now := p.opt.Now()
	var entries []json.RawMessage
	if err == nil {
		if entries, err = list(a, "pods", podsOf); err != nil {
			p.odd("pods: no list in the answer")
		}
	}
	if err == nil {
		err = p.takePods(entries, a.At)
	}
	p.podsKnown = true
	if err != nil {
		p.podFails++
		p.podsAt = p.budget.urgent(now.Add(retry(p.podFails, p.opt.Poll)), now)
		if p.podFails == 1 {
			p.opt.Log.Warn("pods cannot be listed; those known stay in use", "error", err)
		}
		return
	}
	p.podFails = 0
	p.podsAt = p.budget.next(p.podsReadAt, now, p.fixedCalls(), p.opt.Poll)
	if p.podsEmptied {
		p.podsAt = earlier(p.podsAt, p.budget.urgent(now.Add(confirmWait), now))
	}
}

// takePods compares the list with what is known, as takeList does. The next one has to confirm one that is suddenly empty.
func (p *Provider) takePods(entries []json.RawMessage, at time.Time) error {
	if p.podsEmptied = len(entries) == 0 && len(p.pods) > 0 && !p.podsEmptied; p.podsEmptied {
		p.odd("pods: the list is suddenly empty")
		return nil
	}
	var skipped []api.Skipped
	listed := map[string]bool{}
	nameless := 0
	for _, raw := range entries {
		id, sum := idOf(raw), maphash.Bytes(p.seed, raw)
		if pd := p.pods[id]; pd != nil && pd.sum == sum {
			listed[id] = true
			continue
		}
		var j podJSON
		if err := p.decode(raw, &j, "pod"); err != nil || j.ID == "" {
			p.odd("pod: an entry that cannot be read")
			if listed[id] = true; id == "" {
				nameless++
			}
			continue
		}
		if j.EndpointID != "" {
			continue // a worker of an endpoint, which stands for it
		}
		o, why := p.podOptions(&j)
		if why != "" {
			skipped = append(skipped, api.Skipped{ID: podPrefix + j.ID, Name: j.Name, Why: why})
			continue
		}
		listed[j.ID] = true
		p.takePod(&j, o, sum, at)
	}
	if nameless > 0 && nameless == len(entries) {
		return errShape
	}
	for id, pd := range p.pods {
		if !listed[id] && nameless == 0 {
			delete(p.pods, id)
			p.audit.Book.Gone(podPrefix+id, at)
			p.opt.Log.Info("pod is gone from the account", "endpoint", pd.ep.ID, "name", pd.desc.name)
			p.changed()
		}
	}
	for _, pd := range p.pods {
		if listed[pd.desc.id] {
			p.bookPod(pd, at)
		}
	}
	p.update(func(s *api.Status) {
		s.Skipped = slices.DeleteFunc(s.Skipped, isPod)
		s.Skipped = append(s.Skipped, skipped...)
	})
	return nil
}

func isPod(k api.Skipped) bool { return strings.HasPrefix(k.ID, podPrefix) }

// podOptions finds how a pod is used, or why it is not.
func (p *Provider) podOptions(j *podJSON) (o *PodOptions, why string) {
	i := slices.IndexFunc(p.opt.Pods, func(o PodOptions) bool { return fits(o.Match, j.ID, j.Name) })
	if i < 0 {
		return nil, "it is not among the pods to use"
	}
	o = &p.opt.Pods[i]
	kind := "http"
	if o.TCP {
		kind = "tcp"
	}
	if exposed := strconv.Itoa(o.Port) + "/" + kind; j.Ports != nil && !slices.Contains(j.Ports, exposed) {
		return nil, fmt.Sprintf("it does not expose %s", exposed)
	}
	return o, ""
}

func (p *Provider) takePod(j *podJSON, o *PodOptions, sum uint64, at time.Time) {
	p.numbers("pod", j.Cost, j.GPU.Count)
	pd := p.pods[j.ID]
	if pd == nil {
		pd = &pod{}
		p.pods[j.ID] = pd
	}
	restarted := j.StartedAt != pd.desc.started
	pd.opt, pd.sum = o, sum
	pd.desc = podDescription{
		id: j.ID, name: j.Name, status: strings.ToUpper(j.Status), cloud: strings.ToUpper(j.Cloud), gpuType: j.GPU.ID, gpus: j.GPU.Count.count(),
		usdPerHour: max(j.Cost.v, 0), volumeGB: max(j.Mounts.Persistent.Size.v, 0), dataCenter: j.DataCenterID, started: j.StartedAt, engine: j.engine(),
	}
	pd.desc.base = p.podBase(j, o)
	if pd.desc.name == "" {
		pd.desc.name = j.ID
	}
	if pd.desc.usdPerHour > 0 {
		pd.usd, pd.asOf = pd.desc.usdPerHour, at
	}
	moved := pd.base != pd.desc.base
	switch pd.desc.status {
	case "RUNNING":
		pd.base = pd.desc.base
		switch {
		case pd.base == "":
			pd.state, pd.why = endpoint.Starting, "its TCP port is not published yet"
		case moved || restarted || pd.state != endpoint.Ready: // another server may answer there
			pd.state, pd.why = endpoint.Starting, "its server has not answered yet"
			pd.look.soon(0)
		}
	case "PROVISIONING", "STARTING":
		pd.base = ""
		pd.state, pd.why = endpoint.Starting, "RunPod starts it"
	case "EXITED":
		pd.base = ""
		pd.state, pd.why = endpoint.Preempted, "it was stopped"
	case "ERROR":
		pd.base = ""
		pd.state, pd.why = endpoint.Preempted, "RunPod reports an error of it"
	case "TERMINATED":
		pd.base = ""
		pd.state, pd.why = endpoint.Gone, "it was terminated"
	default:
		p.odd("pod: unknown status " + word(j.Status))
		pd.base = pd.desc.base // whether it answers will show
		if pd.state != endpoint.Ready || moved {
			pd.state, pd.why = endpoint.Starting, "RunPod gives a status that is not known: "+word(j.Status)
			pd.look.soon(0)
		}
	}
	p.buildPod(pd)
}

// podBase is where a pod's server is reached.
func (p *Provider) podBase(j *podJSON, o *PodOptions) string {
	if !o.TCP {
		return strings.NewReplacer("{id}", j.ID, "{port}", strconv.Itoa(o.Port)).Replace(p.opt.PodURL) + "/v1"
	}
	if j.Runtime == nil {
		return ""
	}
	for _, port := range j.Runtime.Ports {
		if port.Private.count() == o.Port && strings.EqualFold(port.Type, "tcp") && port.Public.count() > 0 && net.ParseIP(port.IP) != nil {
			return "http://" + net.JoinHostPort(port.IP, strconv.Itoa(port.Public.count())) + "/v1"
		}
	}
	return ""
}

// errOpen says that a server answers anybody, where the pod's own asks for a key.
var errOpen = errors.New("what answers there asks for no key")

// lookInside asks a pod's server for its models, which tells too whether it is up: RunPod says "running" minutes before. A TCP port
// changes with each restart, and the old one may be published for a while when it is another tenant's already: who answers there
// has to refuse a key that nobody has before it is shown the pod's.
func (p *Provider) lookInside(ctx context.Context, pd *pod) {
	base, key, strict := pd.base, pd.opt.Key, pd.opt.TCP && pd.opt.Key != ""
	ask := func(key endpoint.Secret) (*api.Answer, error) {
		return p.inside.Do(ctx, api.Call{Name: "GET /v1/models of pods", URL: base + "/models", Key: key})
	}
	p.task(ctx, func() func() {
		var a *api.Answer
		var err error
		if strict {
			if _, err = ask(endpoint.Secret(rand.Text())); err == nil {
				err = errOpen
			} else if e, ok := errors.AsType[*api.Error](err); ok && e.Denied() {
				err = nil
			}
		}
		if err == nil {
			a, err = ask(key)
		}
		return func() {
			p.looks--
			if p.pods[pd.desc.id] == pd && pd.base == base {
				p.gotInside(pd, a, err)
			} else {
				pd.look.ended(0, 0) // what has answered is no longer where the pod is
			}
		}
	})
}

func (p *Provider) gotInside(pd *pod, a *api.Answer, err error) {
	if err == nil {
		var served []endpoint.Served
		if served, err = models(a.Body); err == nil {
			pd.served = served
			if pd.state, pd.why = endpoint.Ready, ""; pd.opt.TCP && pd.opt.Key == "" {
				pd.why = "no key is set for it, so that another server at its address would be taken for it"
			}
			pd.look.failing = 0
			pd.look.ended(p.opt.Poll, p.nudgeGap())
			p.buildPod(pd)
			return
		}
	}
	pd.look.failing++
	pd.look.ended(p.opt.HealthPoll, p.nudgeGap())
	e, ok := errors.AsType[*api.Error](err)
	// What answers as the pod's own server never does is no lost answer. RunPod's proxy has 404s of its own.
	another := !ok || e.Denied() || pd.opt.TCP && e.Status == http.StatusNotFound
	if pd.state == endpoint.Ready && pd.look.failing == 1 && !another {
		return // one lost answer is no news
	}
	pd.state = endpoint.Starting
	switch {
	case errors.Is(err, errOpen):
		pd.why = "what answers there asks for no key, which its own server does: it is another"
	case ok && e.Denied():
		pd.why = "its server refuses the key: set api_key of the pod"
	case ok && e.Status == http.StatusNotFound:
		pd.why = "its server, or RunPod's proxy, knows no /v1/models there (404)"
	case ok && e.Status != 0:
		pd.why = fmt.Sprintf("its server does not answer yet (%d)", e.Status)
	case ok:
		pd.why = "its server cannot be reached"
	default:
		pd.why = "what answers there is no OpenAI server"
	}
	p.buildPod(pd)
}

// models reads a list of models (https://platform.openai.com/docs/api-reference/models/list).
func models(body []byte) ([]endpoint.Served, error) {
	var list struct {
		Data []json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, errShape
	}
	var out []endpoint.Served
	for _, card := range list.Data {
		var m struct {
			ID     string `json:"id"`
			MaxLen number `json:"max_model_len"`
		}
		if json.Unmarshal(card, &m) == nil && m.ID != "" {
			out = append(out, endpoint.Served{Name: m.ID, MaxContext: m.MaxLen.count(), Card: withoutMoving(card)})
		}
	}
	if len(out) == 0 {
		return nil, errShape
	}
	slices.SortFunc(out, func(a, b endpoint.Served) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// withoutMoving takes out of a card what vLLM makes anew for every answer, so that the same card is no news.
func withoutMoving(card json.RawMessage) json.RawMessage {
	var m map[string]json.RawMessage
	if json.Unmarshal(card, &m) != nil {
		return card
	}
	delete(m, "created")
	delete(m, "permission")
	b, _ := json.Marshal(m) // what was just read
	return b
}

// startOf reads when a pod was started, zero where that is not told.
func startOf(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

// buildPod makes the pod's endpoint anew.
func (p *Provider) buildPod(pd *pod) {
	d := &pd.desc
	ep := endpoint.Endpoint{
		ID: podID(d.id), Provider: provider, BaseURL: d.base, APIKey: pd.opt.Key, Tenure: endpoint.OnDemand,
		Started: startOf(d.started), State: pd.state, StateReason: pd.why, Region: d.dataCenter, MaxNumSeqs: d.engine.seqs,
		Hardware: endpoint.Hardware{GPU: p.gpuName(d.gpuType), GPUCount: d.gpus},
		Labels:   map[string]string{"name": d.name, "type": "pod"},
	}
	if ep.BaseURL == "" { // it needs one, and is not used in this state
		ep.BaseURL = "http://" + d.id + ".invalid/v1"
	}
	if pd.opt.Spot {
		ep.Tenure = endpoint.Interruptible
	}
	switch d.cloud {
	case "SECURE":
		ep.Trust = endpoint.TrustSecure
	case "COMMUNITY":
		ep.Trust = endpoint.TrustCommunity
	}
	switch {
	case len(pd.opt.Models) == 0 && pd.served != nil:
		ep.Served = slices.Clone(pd.served)
	default:
		ep.Served = served(pd.opt.Models, &d.engine, "", d.name)
	}
	if pd.usd > 0 {
		ep.Price = endpoint.Price{
			Basis: endpoint.PerHour, USDPerHour: pd.usd, USDPerHourStopped: d.volumeGB * stoppedUSDPerGBMonth / hoursPerMonth,
			AsOf: pd.asOf, Source: "runpod pod cost", Accrues: endpoint.AccruesRent,
		}
		switch d.status {
		case "TERMINATED":
			ep.Price.Accrues = endpoint.AccruesNothing
		case "EXITED":
			ep.Price.Accrues = endpoint.AccruesDisk
		}
	} else {
		ep.Price.Source = "unknown: RunPod has not told the pod's cost"
	}
	if reflect.DeepEqual(ep, pd.ep) {
		return
	}
	switch {
	case pd.ep.ID == "":
		p.opt.Log.Info("pod found", "endpoint", ep.ID, "name", d.name, "state", ep.State, "reason", ep.StateReason, "usd_per_hour", ep.Price.USDPerHour)
	case pd.ep.State != ep.State:
		p.opt.Log.Info("pod's state changed", "endpoint", ep.ID, "from", pd.ep.State, "to", ep.State, "reason", ep.StateReason)
	}
	pd.ep = ep
	p.changed()
}
