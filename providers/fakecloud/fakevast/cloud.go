package fakevast

import (
	"context"
	"crypto/rsa"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"headrace/providers/fakecloud"
)

// Cloud is the fake. Its methods may be called from any goroutine.
type Cloud struct {
	cfg    Config
	ctx    context.Context // done when the Cloud is stopped
	cancel context.CancelFunc
	doors  [numDoors]door
	ca     *authority
	books  books

	courier *http.Client           // brings events to webhooks
	inner   *http.Client           // asks workers for the proxy
	signer  func() *rsa.PrivateKey // of routes; made when it is needed first

	mu        sync.Mutex // guards all below; a lock of an instance is taken before it
	stopped   bool
	wg        sync.WaitGroup // goroutines; nothing is added once stopped
	rng       *rand.Rand
	nextID    int64
	instances map[int64]*Instance
	limits    limiter
	troubles  []*Trouble
	credit    float64
	billing   float64 // what charges tell of what was used
	offers    map[int64]*offer
	webhooks  []*webhook
	logsAsked map[string]int
	endpoints []*Serverless

	lastOffer, lastWebhook, lastIncrease, lastEndpoint int64
}

// door is one of the Cloud's own addresses.
type door struct {
	addr string
	srv  *http.Server
}

// The doors.
const (
	console = iota
	run
	openAI
	numDoors
)

// Start starts a Cloud without instances. It ends with ctx, or by Stop.
func Start(ctx context.Context, cfg Config) (*Cloud, error) {
	cfg.fill()
	ca, err := newAuthority(cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("start fake vast: %w", err)
	}
	c := &Cloud{
		cfg: cfg, ca: ca, nextID: 20000001, instances: map[int64]*Instance{}, credit: cfg.Credit, billing: 1, offers: map[int64]*offer{},
		lastOffer: 10000000, lastWebhook: 41, lastIncrease: 900, lastEndpoint: 1200, logsAsked: map[string]int{},
		inner: newInner(), signer: sync.OnceValue(newSigner),
		courier: &http.Client{
			Transport:     &http.Transport{DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		rng: rand.New(rand.NewPCG(cfg.Seed, 0x76617374)), //nolint:gosec // what happens is to be repeatable
	}
	c.limits.next = map[string]time.Time{}
	c.ctx, c.cancel = context.WithCancel(ctx) //nolint:gosec // Stop cancels
	handlers := [numDoors]http.Handler{console: c.consoleRoutes(), run: c.runRoutes(), openAI: c.openAIRoutes()}
	for i, h := range handlers {
		if err := c.open(i, h); err != nil {
			c.Stop()
			return nil, fmt.Errorf("start fake vast: %w", err)
		}
	}
	context.AfterFunc(ctx, c.Stop)
	return c, nil
}

func (c *Cloud) open(i int, h http.Handler) error {
	l, err := (&net.ListenConfig{}).Listen(c.ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	d := &c.doors[i]
	d.addr = l.Addr().String()
	d.srv = &http.Server{
		Handler: h, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(discard{}, "", 0),
		BaseContext: func(net.Listener) context.Context { return c.ctx },
	}
	c.wg.Go(func() { _ = d.srv.Serve(l) })
	return nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// Stop ends the Cloud and all its instances. It returns when nothing of them runs any more.
func (c *Cloud) Stop() {
	c.mu.Lock()
	c.stopped = true
	is := c.all()
	c.mu.Unlock()
	c.cancel()
	var ending sync.WaitGroup
	for _, i := range is {
		ending.Go(i.end)
	}
	for i := range c.doors {
		if s := c.doors[i].srv; s != nil {
			_ = s.Close()
		}
	}
	c.inner.CloseIdleConnections()
	ending.Wait()
	c.wg.Wait()
}

// ConsoleURL stands for https://console.vast.ai.
func (c *Cloud) ConsoleURL() string { return "http://" + c.doors[console].addr }

// RunURL stands for https://run.vast.ai.
func (c *Cloud) RunURL() string { return "http://" + c.doors[run].addr }

// OpenAIURL stands for https://openai.vast.ai.
func (c *Cloud) OpenAIURL() string { return "http://" + c.doors[openAI].addr }

// all returns the instances by id. The caller holds mu.
func (c *Cloud) all() []*Instance {
	is := make([]*Instance, 0, len(c.instances))
	for _, i := range c.instances {
		if i != nil { // not one that is being added
			is = append(is, i)
		}
	}
	slices.SortFunc(is, func(a, b *Instance) int { return int(a.cfg.ID - b.cfg.ID) })
	return is
}

// Instances returns the instances by id.
func (c *Cloud) Instances() []*Instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all()
}

// Instance returns the instance of that id, nil when there is none.
func (c *Cloud) Instance(id int64) *Instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.instances[id]
}

// scaled turns a duration of the service into one of the wall clock.
func (c *Cloud) scaled(d time.Duration) time.Duration {
	if c.cfg.TimeScale <= 0 {
		return 0
	}
	return time.Duration(float64(d) / c.cfg.TimeScale)
}

// elapsed turns a duration of the wall clock into one of the service.
func (c *Cloud) elapsed(d time.Duration) time.Duration {
	if c.cfg.TimeScale <= 0 {
		return d
	}
	return time.Duration(float64(d) * c.cfg.TimeScale)
}

// spawn runs f in a goroutine that Stop waits for; f ends with c.ctx.
func (c *Cloud) spawn(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stopped {
		c.wg.Go(f)
	}
}

// after runs f once d, of the wall clock, is over.
func (c *Cloud) after(d time.Duration, f func()) {
	c.spawn(func() {
		if fakecloud.Pause(c.ctx, d) == nil {
			f()
		}
	})
}

// hex returns n random hexadecimal digits. The caller holds mu.
func (c *Cloud) hex(n int) string {
	var b strings.Builder
	for b.Len() < n {
		fmt.Fprintf(&b, "%016x", c.rng.Uint64())
	}
	return b.String()[:n]
}
