// Package vast finds the instances that an account has rented at Vast.ai: where each is reached, whether it is the instance
// it is taken for, what it serves, costs, and whether it may be used now.
//
// An instance's address is a value with an age. It is read anew at each poll, and who answers there is checked before any prompt goes
// to it and again whenever address, state or start time changed, after traffic failed there (Nudge), and every four polls. An instance
// whose server asks for no key is used as well, marked "vast_identity: open": between two checks another tenant's server at a
// reused address would be taken for it. A key for each instance closes that for checks, TLS with a pin for every connection.
package vast

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"headrace/providers/api"
	"headrace/router/endpoint"
)

// TLSMode says how instances are spoken to. The words are those of the config.
type TLSMode string

// Modes.
const (
	TLSAuto     TLSMode = "auto"     // plain HTTP, or, where the port speaks TLS, as TLSVast; the default
	TLSPlain    TLSMode = "plain"    // as InstanceURL says
	TLSSystem   TLSMode = "system"   // TLS below the system's roots, for the address
	TLSVast     TLSMode = "vast"     // TLS below Vast.ai's root, whatever the certificate's name
	TLSPin      TLSMode = "pin"      // TLS with the certificate that was met first, until the instance starts anew
	TLSInsecure TLSMode = "insecure" // TLS with any certificate
)

// Share lets replicas share one poller. Poll returns what fetch returned, to whichever replica, at most every ago, or calls it.
// What is shared is sealed under a key that only holders of the account's key have: it holds the instances' secrets.
type Share interface {
	Poll(ctx context.Context, key string, every time.Duration, fetch func(context.Context) ([]byte, error)) ([]byte, error)
}

// Options set up a Provider; zero values but Key mean the defaults named here.
type Options struct {
	Key         endpoint.Secret // of the account; instance_read is enough, and billing_read for Charges
	ConsoleURL  string          // default https://console.vast.ai
	InstanceURL string          // where a mapped port is reached; default "http://{ip}:{port}"

	Labels    []string // of the instances to use, "" for those without; none for all
	Templates []string // ids, hashes or names of templates; none for all
	IDs       []int64  // none for all

	Port     int             // of the container on which models are served; 0 finds out
	Bearer   endpoint.Secret // key that model servers ask for; "" for what each instance's own settings say
	Models   []string        // ids to offer of those that are served; none for all
	TLS      TLSMode
	VastRoot string // Vast.ai's root certificate as PEM; "" fetches it from ConsoleURL/static/jvastai_root.cer when it is needed

	// Poll is the time between the begins of two looks at the whole account; default 15 s. A look takes a call for each
	// 25 instances, 1.2 s apart, and the next one waits for it: 1,000 instances are looked at every 48 s. Instances on which
	// traffic failed are looked at by themselves meanwhile.
	Poll          time.Duration
	ProbeTimeout  time.Duration // of one question to an instance; default 5 s
	LeaveBefore   time.Duration // an instance whose contract ends within that time gets nothing new; default 10 min, below 0 for never
	MaxUSDPerHour float64       // an instance whose price is above that gets nothing new for as long as it is; 0 for no such limit
	WebhookSecret endpoint.Secret
	Share         Share // nil: this replica polls alone
	// Client asks the console, so that the intervals are kept together with the account's other users; default one of its own.
	Client *api.Client

	// Pace multiplies the least times between calls and before a repeated one; default 1. Below 1 is for fakes.
	Pace      float64
	Log       *slog.Logger
	Now       func() time.Time
	Transport http.RoundTripper // to the console, where there is no Client
}

const (
	// The least times between the begins of two calls. Vast.ai says 1, 2 and 1 s between two arrivals; the rest is for connecting.
	listEvery = 1200 * time.Millisecond // GET /api/v1/instances/
	readEvery = 2200 * time.Millisecond // GET /api/v0/instances/{id}/
	billEvery = 1200 * time.Millisecond // GET /api/v0/charges/

	backoff = 500 * time.Millisecond // before a call that failed is tried again
)

// Provider is the discoverer of an account's instances.
type Provider struct {
	opt    Options
	log    *slog.Logger
	now    func() time.Time
	client *api.Client
	check  checker
	wake   chan struct{} // holds one: something below asks Run to look
	hooks  hooks

	hosts    map[int64]*host // what Run knew at its end
	books    *books
	heritage map[int64]*host // what an earlier Provider knew; Run's, until its first list

	rootMu sync.Mutex // held while the root is fetched; guards root
	root   string

	mu      sync.Mutex // guards all below
	nudged  map[int64]struct{}
	pollNow bool
	simple  bool // the API refused our columns or filters: it is asked for everything
	status  api.Status
}

// New returns a Provider. It asks nobody until Run.
func New(o Options) *Provider {
	orText := func(s *string, def string) {
		if *s == "" {
			*s = def
		}
		*s = strings.TrimRight(*s, "/")
	}
	orTime := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	orText(&o.ConsoleURL, "https://console.vast.ai")
	orText(&o.InstanceURL, "http://{ip}:{port}")
	orTime(&o.Poll, 15*time.Second)
	orTime(&o.ProbeTimeout, 5*time.Second)
	orTime(&o.LeaveBefore, 10*time.Minute)
	if o.TLS == "" {
		o.TLS = TLSAuto
	}
	if o.Pace <= 0 {
		o.Pace = 1
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Provider{
		opt: o, log: o.Log, now: o.Now, wake: make(chan struct{}, 1), root: o.VastRoot, nudged: map[int64]struct{}{},
		status: api.Status{Provider: "vast", Oddities: map[string]int64{}},
		hooks:  hooks{secret: o.WebhookSecret}, books: &books{},
	}
	if p.client = o.Client; p.client == nil {
		p.client = api.New(api.Options{Provider: "vast", Key: o.Key, Transport: o.Transport, Now: o.Now, Backoff: p.paced(backoff)})
	}
	p.check = checker{pattern: o.InstanceURL, mode: o.TLS, timeout: o.ProbeTimeout, root: p.vastRoot}
	return p
}

func (p *Provider) paced(d time.Duration) time.Duration {
	return time.Duration(float64(d) * p.opt.Pace)
}

// idPrefix begins the ID of every instance.
const idPrefix = "vast:"

func endpointID(id int64) endpoint.ID { return endpoint.ID(idPrefix + strconv.FormatInt(id, 10)) }

// Nudge says that traffic failed at an instance: who answers there is checked again, and the account is looked at as soon as
// Vast.ai's intervals allow. Other providers' IDs are ignored. It never blocks.
func (p *Provider) Nudge(id endpoint.ID) {
	s, ok := strings.CutPrefix(string(id), idPrefix)
	n, err := strconv.ParseInt(s, 10, 64)
	if !ok || err != nil {
		return
	}
	p.mu.Lock()
	p.nudged[n] = struct{}{}
	p.mu.Unlock()
	p.rouse()
}

// Inherit takes over what old has learned of instances: which port serves what, who asks for a key, pins of certificates. It does
// nothing if old asks another account, or asks it elsewhere. old's Run must have ended, and p's not begun.
func (p *Provider) Inherit(old *Provider) {
	if old.opt.Key != p.opt.Key || old.opt.ConsoleURL != p.opt.ConsoleURL {
		return
	}
	p.books, p.books.Busy = old.books, false
	p.status.Bill = old.Status().Bill
	p.heritage = map[int64]*host{}
	maps.Copy(p.heritage, old.heritage)
	maps.Copy(p.heritage, old.hosts)
	if !slices.Equal(old.opt.Models, p.opt.Models) {
		for id, h := range p.heritage { // which of its models are offered has changed
			c := *h
			c.served = nil
			p.heritage[id] = &c
		}
	}
}

// look asks for a look at the whole account.
func (p *Provider) look() {
	p.mu.Lock()
	p.pollNow = true
	p.mu.Unlock()
	p.rouse()
}

func (p *Provider) rouse() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// asked takes what Nudge and look left.
func (p *Provider) asked() (nudged map[int64]struct{}, look bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.nudged) > 0 {
		nudged, p.nudged = p.nudged, map[int64]struct{}{}
	}
	look, p.pollNow = p.pollNow, false
	return nudged, look
}

// Status tells how discovery fares.
func (p *Provider) Status() api.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.status
	s.Oddities = maps.Clone(s.Oddities)
	s.Skipped = slices.Clone(s.Skipped)
	s.Calls = p.client.Stats()
	s.Bill = s.Bill.Aged(p.now())
	return s
}

const maxOddities = 64 // words that are counted; a provider gone mad must not fill the memory

// odd counts what was met and not understood.
func (p *Provider) odd(what string) {
	if what == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.status.Oddities[what]; !known && len(p.status.Oddities) >= maxOddities {
		what = "others"
	}
	p.status.Oddities[what]++
}

// account names the account and what is asked of it without telling the key.
func (p *Provider) account(what string) string {
	h := sha256.New()
	for _, s := range append([]string{p.opt.ConsoleURL, p.opt.Key.Reveal(), what}, p.opt.Labels...) {
		h.Write([]byte(s + "\x00"))
	}
	for _, id := range p.opt.IDs {
		h.Write([]byte(strconv.FormatInt(id, 10) + "\x00"))
	}
	return "vast:" + what + ":" + hex.EncodeToString(h.Sum(nil)[:16])
}
