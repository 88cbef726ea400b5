package fakevast

import (
	"cmp"
	"net/http"
	"regexp"
	"slices"
	"time"

	"headrace/providers/fakecloud"
)

// PayloadForm is what a worker takes for the payload of a request.
type PayloadForm uint8

// Forms.
const (
	PayloadBoth    PayloadForm = iota // {"input":…} is unwrapped when it is there
	PayloadWrapped                    // {"input":…} only, as old workers
	PayloadBare                       // the model's own body; {"input":…} goes to the model as it is
)

// ServerlessConfig sets a serverless endpoint up. The zero value is one without workers, which gets one when asked.
type ServerlessConfig struct {
	ID     int64
	Name   string // default "endpoint-ID"
	APIKey string // of the endpoint itself; default drawn
	State  string // default "active"

	MinLoad, MinColdLoad, TargetUtil, ColdMult  float64
	ColdWorkers, MaxWorkers                     int           // default 0 and 3
	MaxQueueTime, TargetQueueTime, InactiveTime time.Duration // default 30 s, 10 s, never
	Ready                                       int           // workers that are idle when it is added
	Stopped                                     int           // workers that are there and cold
	WakeTakes                                   time.Duration // until a cold worker is idle; default 15 s
	CreateTakes                                 time.Duration // until a new worker is idle; default 10 min

	Old         bool // pyworker of old: the whole of auth_data is signed, a second use is refused, answers lose error bodies
	Payload     PayloadForm
	Unsecured   bool // signatures are not looked at
	TLS         bool // workers speak https
	Certificate Certificate
	UpperWords  bool    // states of workers are in capitals
	Perf        float64 // tokens per second of one worker, measured; default TPS of the host times its batch

	Worker InstanceConfig // what its workers are made of
}

// Serverless is an endpoint with its workers. Its methods may be called from any goroutine.
type Serverless struct {
	c *Cloud

	// Guarded by c.mu.
	cfg      ServerlessConfig
	created  float64
	group    int64
	workers  []*Worker
	starting int // workers on their way
	queue    map[int64]float64
	served   map[int64]bool // queued once, and given a worker since
	nextIdx  int64
	reqnum   int64
	routed   int       // requests that were given a worker
	counted  int       // requests that were ever in the queue, each once
	notReady int       // answers without a worker still to be given
	unlisted bool      // the worker list answers error_msg
	used     time.Time // wall clock
	gone     bool
}

// AddServerless adds an endpoint. It panics when its workers find no address.
func (c *Cloud) AddServerless(cfg ServerlessConfig) *Serverless {
	c.mu.Lock()
	c.lastEndpoint++
	cfg.ID = cmp.Or(cfg.ID, c.lastEndpoint)
	cfg.Name = cmp.Or(cfg.Name, "endpoint-"+itoa(cfg.ID))
	cfg.APIKey = cmp.Or(cfg.APIKey, c.hex(64))
	cfg.State = cmp.Or(cfg.State, "active")
	cfg.TargetUtil = cmp.Or(cfg.TargetUtil, 0.9)
	cfg.ColdMult = cmp.Or(cfg.ColdMult, 2.5)
	cfg.MaxWorkers = cmp.Or(cfg.MaxWorkers, 3)
	cfg.MaxQueueTime = cmp.Or(cfg.MaxQueueTime, 30*time.Second)
	cfg.TargetQueueTime = cmp.Or(cfg.TargetQueueTime, 10*time.Second)
	cfg.WakeTakes = cmp.Or(cfg.WakeTakes, 15*time.Second)
	cfg.CreateTakes = cmp.Or(cfg.CreateTakes, 10*time.Minute)
	s := &Serverless{
		c: c, cfg: cfg, created: unix(c.cfg.Now()), group: cfg.ID + 500000, queue: map[int64]float64{}, served: map[int64]bool{}, used: time.Now(),
	}
	c.endpoints = append(c.endpoints, s)
	c.mu.Unlock()
	for range cfg.Ready {
		s.AddWorker()
	}
	for range cfg.Stopped {
		s.AddWorker().Sleep()
	}
	return s
}

// Config returns the settings with all that was left out filled in.
func (s *Serverless) Config() ServerlessConfig {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.cfg
}

// Update changes the settings, except the id.
func (s *Serverless) Update(change func(*ServerlessConfig)) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	id := s.cfg.ID
	change(&s.cfg)
	s.cfg.ID = id
}

// Workers returns the workers.
func (s *Serverless) Workers() []*Worker {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return slices.Clone(s.workers)
}

// AddWorker adds a worker that is idle. It panics when there is no address for it.
func (s *Serverless) AddWorker() *Worker {
	w, err := s.addWorker()
	if err != nil {
		panic("fakevast: " + err.Error())
	}
	return w
}

func (s *Serverless) addWorker() (*Worker, error) {
	k := s.Config()
	w := &Worker{s: s, old: k.Old, status: "idle", loaded: unix(s.c.cfg.Now()), seen: map[string]bool{}}
	ic := k.Worker
	ic.ID, ic.APIKey, ic.Template = 0, "", PlainVLLM
	ic.Image = cmp.Or(ic.Image, "vastai/vllm:latest")
	ic.ContainerPort = cmp.Or(ic.ContainerPort, 3000)
	ic.front = w.wrap
	ic.frontTLS, ic.Portal.Certificate = k.TLS, k.Certificate
	i, err := s.c.add(ic)
	if err != nil {
		return nil, err
	}
	w.i = i
	h := w.i.host.Config()
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	w.perf = cmp.Or(k.Perf, h.TPS*float64(h.MaxNumSeqs))
	s.workers = append(s.workers, w)
	return w, nil
}

// NotReady makes the next n questions for a worker go without one, whatever is there.
func (s *Serverless) NotReady(n int) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.notReady = n
}

// Unlisted makes the list of workers answer error_msg, or no longer.
func (s *Serverless) Unlisted(on bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.unlisted = on
}

// Load is what the endpoint has seen.
type Load struct {
	Routed  int // requests that were given a worker
	Counted int // requests that ever waited or were given one, each counted once
	Queued  int // requests that wait for a worker now
	Workers int
}

// Load returns what the endpoint has seen.
func (s *Serverless) Load() Load {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return Load{s.routed, s.counted, len(s.queue), len(s.workers)}
}

// recruit wakes or creates a worker when one is lacking. The caller holds c.mu.
func (s *Serverless) recruit() {
	if s.cfg.State != "active" || s.starting > 0 {
		return
	}
	for _, w := range s.workers {
		if w.status == "stopped" {
			w.status = "loading"
			s.starting++
			s.c.wake(s.cfg.WakeTakes, func() {
				w.Wake()
				s.started()
			})
			return
		}
	}
	if len(s.workers) < s.cfg.MaxWorkers {
		s.starting++
		s.c.wake(s.cfg.CreateTakes, func() {
			_, _ = s.addWorker() // fails when the cloud is stopped
			s.started()
		})
	}
}

// started notes that a worker is no longer on its way.
func (s *Serverless) started() {
	s.c.mu.Lock()
	s.starting--
	s.c.mu.Unlock()
	s.c.books.update(func(*Stats) {})
}

// wake runs f after a duration of the service. The caller holds mu.
func (c *Cloud) wake(d time.Duration, f func()) {
	if c.stopped {
		return
	}
	c.wg.Go(func() {
		if fakecloud.Pause(c.ctx, c.scaled(d)) == nil {
			f()
		}
	})
}

// Worker is one worker of an endpoint.
type Worker struct {
	s   *Serverless
	i   *Instance
	old bool

	// Guarded by Cloud.mu.
	status   string
	perf     float64
	load     float64 // cost of what it works on
	working  int
	loaded   float64
	seen     map[string]bool // messages of auth_data, for Old
	lastReq  int64           // highest reqnum, for Old
	failures []int
	refuses  bool
}

// Instance returns the rented instance that the worker is: its row, its price, its end.
func (w *Worker) Instance() *Instance { return w.i }

// Host returns the model's server, with its books and faults.
func (w *Worker) Host() *fakecloud.Host { return w.i.host }

// Fail makes the next calls of the worker end with these statuses, without a body: 401, 429, 499, 500.
func (w *Worker) Fail(statuses ...int) {
	w.s.c.mu.Lock()
	defer w.s.c.mu.Unlock()
	w.failures = slices.Clone(statuses)
}

// RefuseSignatures makes the worker answer 401 to all that is properly signed, or no longer.
func (w *Worker) RefuseSignatures(on bool) {
	w.s.c.mu.Lock()
	defer w.s.c.mu.Unlock()
	w.refuses = on
}

// SetStatus changes the word that the list of workers shows: "error", "destroying", "creating" and the like. Only
// "idle" is given requests.
func (w *Worker) SetStatus(word string) {
	w.s.c.mu.Lock()
	defer w.s.c.mu.Unlock()
	w.status = word
}

// Sleep makes the worker cold: stopped, and quick to come back.
func (w *Worker) Sleep() {
	w.SetStatus("stopped")
	w.i.op.Lock()
	defer w.i.op.Unlock()
	w.i.begin(step{do: func() { w.i.level(off) }, tell: func(v *view) { w.i.halt(v, "exited") }})
}

// Wake makes the worker idle.
func (w *Worker) Wake() {
	w.i.op.Lock()
	w.i.begin(step{do: func() { w.i.level(model) }, tell: func(v *view) {
		*v = serving
		v.ip, v.port = w.i.where()
	}})
	w.i.op.Unlock()
	c := w.s.c
	c.mu.Lock()
	w.status, w.loaded = "idle", unix(c.cfg.Now())
	c.mu.Unlock()
	c.books.update(func(*Stats) {})
}

// idle makes workers cold that had nothing to do for long enough.
func (s *Serverless) idle(since time.Time) {
	s.c.mu.Lock()
	busy := slices.ContainsFunc(s.workers, func(w *Worker) bool { return w.working > 0 })
	if !s.used.Equal(since) || s.gone || s.cfg.MinLoad > 0 || busy {
		s.c.mu.Unlock()
		return
	}
	ws := slices.Clone(s.workers)
	s.c.mu.Unlock()
	for _, w := range ws {
		w.Sleep()
	}
}

// use notes that the endpoint did something. The caller holds c.mu.
func (s *Serverless) use() {
	s.used = time.Now()
	if since := s.used; s.cfg.InactiveTime > 0 && s.c.cfg.TimeScale > 0 {
		s.c.wake(s.cfg.InactiveTime, func() { s.idle(since) })
	}
}

func (s *Serverless) json() map[string]any {
	k := &s.cfg
	return map[string]any{
		"id": k.ID, "endpoint_name": k.Name, "api_key": k.APIKey, "user_id": s.c.cfg.UserID, "created_at": s.created,
		"endpoint_state": k.State, "min_load": k.MinLoad, "min_cold_load": k.MinColdLoad, "target_util": k.TargetUtil,
		"cold_mult": k.ColdMult, "cold_workers": k.ColdWorkers, "max_workers": k.MaxWorkers, "max_queue_time": k.MaxQueueTime.Seconds(),
		"target_queue_time": k.TargetQueueTime.Seconds(), "inactivity_timeout": k.InactiveTime.Seconds(), "auto_delete_in_seconds": nil,
		"auto_delete_due_24h": false,
	}
}

// endpointByID finds an endpoint. The caller holds mu.
func (c *Cloud) endpointByID(id int64) *Serverless {
	at := slices.IndexFunc(c.endpoints, func(s *Serverless) bool { return s.cfg.ID == id })
	if at < 0 {
		return nil
	}
	return c.endpoints[at]
}

// endpointNamed finds an endpoint. The caller holds mu.
func (c *Cloud) endpointNamed(name string) *Serverless {
	at := slices.IndexFunc(c.endpoints, func(s *Serverless) bool { return s.cfg.Name == name })
	if at < 0 {
		return nil
	}
	return c.endpoints[at]
}

// listEndpoints is GET /api/v0/endptjobs/.
func (c *Cloud) listEndpoints(a *asked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := []any{}
	for _, s := range c.endpoints {
		list = append(list, s.json())
	}
	a.json(map[string]any{"success": true, "results": list})
}

func (c *Cloud) oneEndpoint(a *asked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.endpointByID(a.id)
	if s == nil {
		a.fail(http.StatusNotFound, "not_found", "Endpoint not found")
		return
	}
	a.json(map[string]any{"success": true, "result": s.json()})
}

// endpointBody creates or changes an endpoint.
type endpointBody struct {
	Name         *string  `json:"endpoint_name"`
	State        *string  `json:"endpoint_state"`
	MinLoad      *float64 `json:"min_load"`
	ColdWorkers  *int     `json:"cold_workers"`
	MaxWorkers   *int     `json:"max_workers"`
	MaxQueueTime *float64 `json:"max_queue_time"`
	Inactivity   *float64 `json:"inactivity_timeout"`
}

var endpointName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`) //nolint:gochecknoglobals // compiled once; of at most maxEndpointName bytes

const maxEndpointName = 255 // a count in the expression would take a millisecond of every start of the program

func (b *endpointBody) apply(k *ServerlessConfig) {
	set(&k.Name, b.Name)
	set(&k.State, b.State)
	set(&k.MinLoad, b.MinLoad)
	set(&k.ColdWorkers, b.ColdWorkers)
	set(&k.MaxWorkers, b.MaxWorkers)
	seconds := func(into *time.Duration, v *float64) {
		if v != nil {
			*into = time.Duration(*v * float64(time.Second))
		}
	}
	seconds(&k.MaxQueueTime, b.MaxQueueTime)
	seconds(&k.InactiveTime, b.Inactivity)
}

func set[T any](into, v *T) {
	if v != nil {
		*into = *v
	}
}

func (c *Cloud) createEndpoint(a *asked) {
	var b endpointBody
	if !a.decode(&b) {
		return
	}
	if b.Name == nil || len(*b.Name) > maxEndpointName || !endpointName.MatchString(*b.Name) {
		a.fail(http.StatusBadRequest, "invalid_args", "endpoint_name is missing or not of A-Z a-z 0-9 _ -")
		return
	}
	c.mu.Lock()
	poor := c.credit < 5
	c.mu.Unlock()
	if poor {
		a.fail(http.StatusForbidden, "insufficient_credit", "Your credit is too low to create an endpoint.")
		return
	}
	var k ServerlessConfig
	b.apply(&k)
	a.json(map[string]any{"success": true, "result": c.AddServerless(k).Config().ID})
}

func (c *Cloud) changeEndpoint(a *asked) {
	var b endpointBody
	if !a.decode(&b) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.endpointByID(a.id)
	if s == nil {
		a.fail(http.StatusNotFound, "not_found", "Endpoint not found")
		return
	}
	b.apply(&s.cfg)
	a.json(map[string]any{"success": true})
}

func (c *Cloud) deleteEndpoint(a *asked) {
	c.mu.Lock()
	s := c.endpointByID(a.id)
	if s != nil {
		s.gone = true
		c.endpoints = slices.DeleteFunc(c.endpoints, func(o *Serverless) bool { return o == s })
	}
	c.mu.Unlock()
	if s == nil {
		a.fail(http.StatusNotFound, "not_found", "Endpoint not found")
		return
	}
	for _, w := range s.Workers() {
		w.i.Destroy()
	}
	a.json(map[string]any{"success": true})
}

// listGroups is GET /api/v0/workergroups/ and its older name: one group for each endpoint.
func (c *Cloud) listGroups(a *asked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := []any{}
	for _, s := range c.endpoints {
		k := s.cfg.Worker
		list = append(list, map[string]any{
			"id": s.group, "endpoint_id": s.cfg.ID, "endpoint_name": s.cfg.Name, "template_hash": orNull(k.TemplateHash), "template_id": nil,
			"search_params": "gpu_name=RTX_4090 num_gpus=1 verified=true rentable=true rented=false", "launch_args": "", "gpu_ram": 24.0,
			"test_workers": 1, "cold_workers": s.cfg.ColdWorkers, "min_load": s.cfg.MinLoad, "target_util": s.cfg.TargetUtil,
			"cold_mult": s.cfg.ColdMult, "search_query": map[string]any{}, "user_id": c.cfg.UserID, "created_at": s.created,
		})
	}
	a.json(map[string]any{"success": true, "results": list})
}

func (c *Cloud) createGroup(a *asked) {
	var b struct {
		Name *string `json:"endpoint_name"`
		ID   *int64  `json:"endpoint_id"`
	}
	if !a.decode(&b) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var s *Serverless
	if b.ID != nil {
		s = c.endpointByID(*b.ID)
	} else if b.Name != nil {
		s = c.endpointNamed(*b.Name)
	}
	if s == nil {
		a.fail(http.StatusBadRequest, "invalid_args", "no such endpoint")
		return
	}
	a.json(map[string]any{"success": true, "id": s.group})
}
