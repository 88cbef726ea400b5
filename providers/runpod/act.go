package runpod

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

// Permission is what an operator lets an Actor do to an endpoint.
type Permission uint8

// Permissions, each with those before it.
const (
	ActNot  Permission = iota // nothing
	MayWake                   // start a worker by a request of one token: costs a start, the token and the idle timeout
	MayHold                   // keep workers up by the endpoint's own setting: costs their price as long as they are held
)

// Permit gives a permission to endpoints.
type Permit struct {
	Match string // id or name, exact or with "*" at the end
	Permission
}

// Memory keeps what an Actor must know after a crash: what it has changed, and how it was before. Two that are equal are the
// same memory.
type Memory interface {
	Load(ctx context.Context) ([]byte, error) // nil when nothing is kept
	Save(ctx context.Context, b []byte) error // nil deletes
}

// Turn lets one of several replicas act.
type Turn interface {
	// Take tells whether the turn is ours for at least the next 15 s, and whether it was not before.
	Take(ctx context.Context) (ours, anew bool, err error)
	Give(ctx context.Context)
}

// ActorOptions set up an Actor; zero values mean the defaults named here.
type ActorOptions struct {
	Key           endpoint.Secret // of the account; none for an account that is not used
	ManagementURL string          // REST v2
	Permits       []Permit        // the first that fits an endpoint counts
	Native        map[string]bool // endpoints whose handler has no OpenAI route, by pattern
	MaxHeld       int             // workers held at once, over what the operator has set; default 1

	Memory Memory // without one nothing is held
	Turn   Turn   // without one every turn is ours

	Spacing        time.Duration // between two actions at one endpoint; default 20 s
	LetGoAfter     time.Duration // how long fewer workers must be wanted before they are let go; default 1 min
	RecheckAfter   time.Duration // how often it is looked whether what is held is still as it was set; default 5 min
	RequestTimeout time.Duration // of one call; default 10 s

	Acted     func(endpoint.ID) // told after each action, so that the endpoint is looked at; may be nil
	Log       *slog.Logger
	Now       func() time.Time
	Transport http.RoundTripper
}

func (o *ActorOptions) fill() {
	if o.MaxHeld <= 0 {
		o.MaxHeld = 1
	}
	if o.Spacing <= 0 {
		o.Spacing = 20 * time.Second
	}
	if o.LetGoAfter <= 0 {
		o.LetGoAfter = time.Minute
	}
	if o.RecheckAfter <= 0 {
		o.RecheckAfter = 5 * time.Minute
	}
	if o.RequestTimeout <= 0 {
		o.RequestTimeout = 10 * time.Second
	}
	if o.Acted == nil {
		o.Acted = func(endpoint.ID) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// same tells whether what one Actor holds under o is known to one under n.
func (o *ActorOptions) same(n *ActorOptions) bool {
	return o.Key == n.Key && o.ManagementURL == n.ManagementURL && o.Memory == n.Memory && o.Turn == n.Turn
}

func (o *ActorOptions) permission(id, name string) Permission {
	for i := range o.Permits {
		if fits(o.Permits[i].Match, id, name) {
			return o.Permits[i].Permission
		}
	}
	return ActNot
}

// Want is what would help at one endpoint now.
type Want struct {
	Endpoint *endpoint.Endpoint // not kept
	Wake     bool               // a worker should be started
	Hold     int                // workers that should be up all the time
	Why      string             // "" for the reason that was given last
}

// aim is an endpoint that an Actor may act on, and what is wanted of it.
type aim struct {
	id, name   string // RunPod's
	ep         endpoint.ID
	base       string // where it is reached
	balancer   bool
	model      string // "" when it is not known
	key        endpoint.Secret
	permission Permission
	hold       int
	why        string
}

func aimOf(ep *endpoint.Endpoint) aim {
	t := aim{
		id: strings.TrimPrefix(string(ep.ID), provider+":"), name: ep.Labels["name"], ep: ep.ID, key: ep.APIKey,
		balancer: ep.Labels["type"] == balancerKind, base: strings.TrimSuffix(ep.BaseURL, "/openai/v1"),
	}
	if len(ep.Served) > 0 && !ep.Served[0].Unnamed {
		t.model = ep.Served[0].Name
	}
	return t
}

// Actor carries out what is advised for an account's serverless endpoints, as far as the operator allows it: it wakes workers, and
// holds them up and lets them go. Its methods may be called from any goroutine.
type Actor struct {
	news chan struct{}

	mu     sync.Mutex // guards all below
	next   *ActorOptions
	opt    ActorOptions // as configured last; Run follows at its next step
	aims   map[string]aim
	wakes  map[string]wish
	status ActionStatus
	deeds  map[deed]Outcome

	run acting // Run's own
}

// acting is what only Run touches.
type acting struct {
	opt      ActorOptions
	client   *api.Client // nil without an account
	held     map[string]*holding
	marks    map[string]*mark
	loaded   bool
	loadNext time.Time
	loadFail int
	ours     bool
	taken    time.Time // when the turn was last asked for
	wg       sync.WaitGroup
}

// wish is a worker that is to be started soon, or not at all.
type wish struct {
	aim
	at time.Time
}

// mark is when an endpoint may be acted on again.
type mark struct {
	next    time.Time // an action
	look    time.Time // a look whether there is something to do
	failing int
}

type deed struct {
	id, action string
}

// Outcome is what came of an advice.
type Outcome struct {
	Done bool
	At   time.Time // of the last time it was done, or tried
	Note string    // why it was not, "" when there is nothing to say
}

// ActionStatus tells operators what an Actor does.
type ActionStatus struct {
	Acting      bool            `json:"acting"` // false: another replica's turn, or nothing is allowed
	Wakes       int64           `json:"wakes"`  // requests that were sent to start a worker
	Holds       int64           `json:"holds"`  // times that an endpoint's least number of workers was raised
	LetGo       int64           `json:"let_go"` // times that it was put back
	Failed      int64           `json:"failed"` // actions, and looks before them
	LastError   string          `json:"last_error,omitempty"`
	LastErrorAt *time.Time      `json:"last_error_at,omitempty"`
	Held        []Held          `json:"held"`
	Calls       []api.CallStats `json:"calls"`
}

// Held is an endpoint of which workers are held.
type Held struct {
	Endpoint endpoint.ID `json:"endpoint"`
	Was      int         `json:"workers_min_was"` // the operator's own setting
	Set      int         `json:"workers_min"`
	Since    time.Time   `json:"since"`
	Why      string      `json:"why"`
}

// NewActor returns an Actor that does nothing yet.
func NewActor(o ActorOptions) *Actor {
	a := &Actor{
		news: make(chan struct{}, 1), aims: map[string]aim{}, wakes: map[string]wish{}, deeds: map[deed]Outcome{},
		run: acting{held: map[string]*holding{}, marks: map[string]*mark{}},
	}
	a.status.Held = []Held{}
	a.Configure(o)
	return a
}

// Configure puts other options in force. What they do not allow is not begun any more, and let go if it was.
func (a *Actor) Configure(o ActorOptions) {
	o.fill()
	a.mu.Lock()
	a.next, a.opt = &o, o
	for id, w := range a.wakes {
		if w.permission = o.permission(id, w.name); w.permission < MayWake {
			delete(a.wakes, id)
		}
	}
	for id, t := range a.aims {
		t.permission = o.permission(id, t.name)
		a.aims[id] = t
	}
	a.mu.Unlock()
	a.signal()
}

func (a *Actor) signal() {
	select {
	case a.news <- struct{}{}:
	default: // Run has been told and not yet looked
	}
}

// Seek tells what is wanted now of all endpoints. It is to be called every second or so, since Run acts on being told; it never
// blocks. What it leaves out is not wanted any more, but for workers that were to be woken within the last seconds.
func (a *Actor) Seek(wants []Want) {
	a.mu.Lock()
	now := a.opt.Now()
	aims := map[string]aim{}
	for i := range wants {
		w := &wants[i]
		if w.Endpoint.Provider != provider || w.Endpoint.Tenure != endpoint.Serverless {
			continue
		}
		id := strings.TrimPrefix(string(w.Endpoint.ID), provider+":")
		may := a.opt.permission(id, w.Endpoint.Labels["name"])
		if may == ActNot {
			continue
		}
		t := aimOf(w.Endpoint)
		t.permission, t.hold, t.why = may, w.Hold, cmp.Or(w.Why, a.aims[id].why)
		aims[id] = t
		if w.Wake {
			a.wakes[id] = wish{t, now}
		}
	}
	a.aims = aims
	a.mu.Unlock()
	a.signal()
}

// Outcome tells what came of an advice: action is "wake" or "hold".
func (a *Actor) Outcome(ep *endpoint.Endpoint, action string) Outcome {
	need := map[string]Permission{"wake": MayWake, "hold": MayHold}[action]
	id, name := strings.TrimPrefix(string(ep.ID), provider+":"), ep.Labels["name"]
	a.mu.Lock()
	defer a.mu.Unlock()
	switch may := a.opt.permission(id, name); {
	case need == ActNot || ep.Provider != provider:
		return Outcome{Note: "left to you"}
	case may < need:
		return Outcome{Note: fmt.Sprintf("left to you: actions is %q for it in providers.runpod.endpoints", [...]string{"off", "wake", "hold"}[may])}
	}
	return a.deeds[deed{id, action}]
}

// Status tells what was done and what is held.
func (a *Actor) Status() ActionStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.status
	s.Held, s.Calls = slices.Clone(s.Held), slices.Clone(s.Calls)
	return s
}

const partingTime = 10 * time.Second // for letting go at the end

// Run acts until ctx is done, and then lets go of what it holds. It may be called once.
func (a *Actor) Run(ctx context.Context) error {
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), partingTime)
		defer cancel()
		a.part(end, "the gateway stops")
		a.run.wg.Wait()
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.news:
			a.step(ctx)
			a.publish()
		}
	}
}

// step does what is due.
func (a *Actor) step(ctx context.Context) {
	r := &a.run
	a.mu.Lock()
	next := a.next
	a.next = nil
	aims, wakes := maps.Clone(a.aims), maps.Clone(a.wakes)
	a.mu.Unlock()
	if next != nil {
		a.change(ctx, next)
	}
	if r.client == nil || !a.concerned(aims, wakes) || !a.take(ctx) {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(wakes)) {
		a.tryWake(ctx, wakes[id])
	}
	if r.opt.Memory == nil || !a.load(ctx) {
		return
	}
	for _, id := range a.endpoints(aims) {
		if ctx.Err() == nil && a.take(ctx) {
			a.settle(ctx, id, aims)
		}
	}
}

// change puts next in force. Another account's workers, and those of which next would know nothing, are let go first.
func (a *Actor) change(ctx context.Context, next *ActorOptions) {
	r := &a.run
	if r.client == nil || !r.opt.same(next) {
		if r.client != nil {
			end, cancel := context.WithTimeout(ctx, partingTime)
			a.part(end, "the config has changed")
			cancel()
		}
		r.held, r.marks = map[string]*holding{}, map[string]*mark{}
		r.loaded, r.loadNext, r.loadFail, r.ours, r.taken = false, time.Time{}, 0, false, time.Time{}
		r.client = nil
		if next.Key != "" {
			r.client = api.New(api.Options{Provider: provider, Key: next.Key, Timeout: next.RequestTimeout, Tries: 1, Transport: next.Transport, Now: next.Now})
		}
	}
	r.opt = *next
	if next.Memory == nil && slices.ContainsFunc(next.Permits, func(p Permit) bool { return p.Permission == MayHold }) {
		next.Log.Warn("workers are not held, although that is allowed: there is nowhere to remember it")
	}
}

// concerned tells whether there is anything to do: now, or for what an earlier run may have left.
func (a *Actor) concerned(aims map[string]aim, wakes map[string]wish) bool {
	r := &a.run
	if len(wakes) > 0 || len(r.held) > 0 {
		return true
	}
	if r.opt.Memory == nil {
		return false
	}
	if !r.loaded {
		return true
	}
	for _, t := range aims {
		if t.permission == MayHold {
			return true
		}
	}
	return false
}

const takeEvery = 5 * time.Second

// take tells whether it is this replica's turn.
func (a *Actor) take(ctx context.Context) bool {
	r := &a.run
	if r.opt.Turn == nil {
		r.ours = true
		return true
	}
	now := r.opt.Now()
	if d := now.Sub(r.taken); d >= 0 && d < takeEvery && !r.taken.IsZero() {
		return r.ours
	}
	r.taken = now
	ours, anew, err := r.opt.Turn.Take(ctx)
	if err != nil {
		r.ours = false // what is held stays: nobody else can take the turn either
		return false
	}
	if !ours && r.ours {
		r.opt.Log.Info("another replica carries out capacity actions now")
	}
	if !ours || anew {
		r.loaded = false
	}
	if !ours {
		clear(r.held) // whoever has the turn has read it
	}
	r.ours = ours
	return ours
}

// endpoints lists what is held or wanted to be.
func (a *Actor) endpoints(aims map[string]aim) []string {
	ids := slices.Collect(maps.Keys(a.run.held))
	for id, t := range aims {
		if a.run.held[id] == nil && t.hold > 0 && t.permission == MayHold {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (a *Actor) mark(id string) *mark {
	m := a.run.marks[id]
	if m == nil {
		m = &mark{}
		a.run.marks[id] = m
	}
	return m
}

// publish shows the figures.
func (a *Actor) publish() {
	r := &a.run
	held := make([]Held, 0, len(r.held))
	for _, id := range slices.Sorted(maps.Keys(r.held)) {
		h := r.held[id]
		held = append(held, Held{serviceID(id), h.Was, h.Set, h.Since, h.Why})
	}
	var calls []api.CallStats
	if r.client != nil {
		calls = r.client.Stats()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status.Held, a.status.Calls = held, calls
	a.status.Acting = r.ours && len(r.opt.Permits) > 0
}

// did notes an action that was carried out.
func (a *Actor) did(id, action, note string, count func(s *ActionStatus)) {
	r := &a.run
	now := r.opt.Now()
	m := a.mark(id)
	m.failing, m.next = 0, now.Add(r.opt.Spacing)
	a.mu.Lock()
	count(&a.status)
	a.deeds[deed{id, action}] = Outcome{Done: true, At: now, Note: note}
	a.mu.Unlock()
	r.opt.Acted(serviceID(id))
}

const (
	longestPause = 10 * time.Minute // after failures
	letGoPause   = 2 * time.Minute  // the same, while workers that nobody wants cost money
)

// failed notes an action that was not, and lets the endpoint rest, the longer the more often in a row.
func (a *Actor) failed(id, action string, err error) {
	r := &a.run
	now := r.opt.Now()
	m := a.mark(id)
	m.failing++
	longest := longestPause
	if action == letGo {
		longest = letGoPause
	}
	pause := max(min(r.opt.Spacing<<min(m.failing-1, 6), longest), retryAfter(err))
	m.next = now.Add(pause)
	m.look = m.next
	a.count(now, err)
	a.mu.Lock()
	a.deeds[deed{id, action}] = Outcome{At: now, Note: "failed: " + err.Error()}
	a.mu.Unlock()
	r.opt.Log.Warn("capacity action failed", "action", action, "endpoint", serviceID(id), "error", err, "again_in", pause)
}

func (a *Actor) count(now time.Time, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status.Failed++
	a.status.LastError, a.status.LastErrorAt = err.Error(), &now
}

// skipped notes why there is nothing to do, or nothing more, until it is looked at again.
func (a *Actor) skipped(id, action, why string) {
	r := &a.run
	now := r.opt.Now()
	a.mark(id).look = now.Add(3 * r.opt.Spacing)
	a.mu.Lock()
	defer a.mu.Unlock()
	o := Outcome{At: now, Note: why}
	if h := r.held[id]; h != nil {
		if o.Done, o.At = true, h.Since; a.deeds[deed{id, action}].Done {
			o.At = a.deeds[deed{id, action}].At
		}
	}
	a.deeds[deed{id, action}] = o
}
