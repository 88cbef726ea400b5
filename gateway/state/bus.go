package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Bus carries events to the other replicas: at once, at most once, and to nobody who comes later. What must not be lost belongs into a
// Store as well.
type Bus interface {
	// Publish sends an event to all other replicas. An error says that it reached nobody, as far as is known.
	Publish(ctx context.Context, kind string, payload []byte) error
	// Subscribe has take called with the events of a kind from other replicas, one after another, in the order in which each of them
	// published them. take must not block, and may keep payload. stop returns once take is not called any more; take must not call it.
	Subscribe(kind string, take func(from string, payload []byte)) (stop func())
}

// Alone is the Bus of the only replica.
type Alone struct{}

// Publish implements Bus: there is nobody.
func (Alone) Publish(context.Context, string, []byte) error { return nil }

// Subscribe implements Bus: nothing comes.
func (Alone) Subscribe(string, func(string, []byte)) (stop func()) { return func() {} }

// docEvent begins the kind of an event that says that documents of the kind behind it have changed.
const docEvent = "docs:"

// events are those who are subscribed here.
type events struct {
	channel string
	live    atomic.Bool // they come

	mu    sync.RWMutex // guards all below; held while somebody takes an event
	takes map[string]map[*subscription]struct{}
	join  map[*subscription]struct{} // called when events begin to come
}

type subscription struct {
	take func(from string, payload []byte)
}

// Subscribe implements Bus.
func (r *Redis) Subscribe(kind string, take func(from string, payload []byte)) (stop func()) {
	if err := checkKind(kind); err != nil {
		panic("BUG: " + err.Error())
	}
	s, e := &subscription{take}, &r.events
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.takes == nil {
		e.takes = map[string]map[*subscription]struct{}{}
	}
	if e.takes[kind] == nil {
		e.takes[kind] = map[*subscription]struct{}{}
	}
	e.takes[kind][s] = struct{}{}
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.takes[kind], s)
	}
}

// Joined has call called each time that the stream of events begins, at first and after it broke: some may have been missed. The rules of
// Subscribe hold for it.
func (r *Redis) Joined(call func()) (stop func()) {
	s, e := &subscription{func(string, []byte) { call() }}, &r.events
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.join == nil {
		e.join = map[*subscription]struct{}{}
	}
	e.join[s] = struct{}{}
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.join, s)
	}
}

// Hears tells whether events come.
func (r *Redis) Hears() bool { return r.events.live.Load() }

// publishScript publishes at the node of a Cluster that the key belongs to: through different ones, events would overtake each other.
//
//nolint:gochecknoglobals // a table
var publishScript = redis.NewScript(`return redis.call("PUBLISH", ARGV[1], ARGV[2])`)

// Publish implements Bus.
func (r *Redis) Publish(ctx context.Context, kind string, payload []byte) error {
	if err := checkKind(kind); err != nil {
		return err
	}
	c, cancel := context.WithTimeout(ctx, r.opt.Timeout)
	defer cancel()
	if err := publishScript.Run(c, r.client, []string{r.opt.Prefix + "order:" + kind}, r.channel(), r.event(kind, payload)).Err(); err != nil {
		if ctx.Err() == nil && !isReply(err) {
			r.report(err)
		}
		return fmt.Errorf("publish by Redis: %w", err)
	}
	return nil
}

// channel is the one that all events of all replicas go through. Channels are those of the server, whatever the database.
func (r *Redis) channel() string { return r.events.channel }

// event is one as it is sent: sender, kind and payload.
func (r *Redis) event(kind string, payload []byte) []byte {
	b := make([]byte, 0, len(r.me)+len(kind)+len(payload)+2)
	b = append(append(b, r.me...), ' ')
	b = append(append(b, kind...), ' ')
	return append(b, payload...)
}

// taken hands an event to those who want it.
func (r *Redis) taken(message string) {
	from, rest, ok := bytes.Cut([]byte(message), []byte(" "))
	kind, payload, ok2 := bytes.Cut(rest, []byte(" "))
	if !ok || !ok2 || string(from) == r.me {
		return
	}
	if k, ok := bytes.CutPrefix(kind, []byte(docEvent)); ok {
		r.docs.tell(string(k))
		return
	}
	r.events.mu.RLock()
	defer r.events.mu.RUnlock()
	for s := range r.events.takes[string(kind)] {
		s.take(string(from), payload)
	}
}

const (
	beat    = time.Second             // between two signs of life, of this replica and of the connection that events come by
	silence = 3500 * time.Millisecond // after which a replica is not counted any more
	away    = 250 * time.Millisecond  // between two looks at a Redis that is slow or gone
)

// Run keeps this replica among those that share the Redis, takes their events, and watches how Redis fares, until ctx is done.
func (r *Redis) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { r.listen(ctx) })
	r.live(ctx)
	wg.Wait()
	return ctx.Err()
}

// listen takes events, through one connection after another.
func (r *Redis) listen(ctx context.Context) {
	for ctx.Err() == nil {
		ps := r.client.Subscribe(ctx) // connects to nothing yet
		stop := context.AfterFunc(ctx, func() { _ = ps.Close() })
		err := r.take(ctx, ps)
		stop()
		_ = ps.Close()
		r.events.live.Store(false)
		if ctx.Err() == nil && !errors.Is(err, errSilent) {
			r.errors.Add(1)
		}
		_ = pause(ctx, away)
	}
}

// errSilent says that the connection that events come by gave no sign of life.
var errSilent = errors.New("no sign of life")

// take takes events from one connection until that fails.
func (r *Redis) take(ctx context.Context, ps *redis.PubSub) error {
	c, cancel := context.WithTimeout(ctx, r.opt.Timeout)
	err := ps.Subscribe(c, r.channel())
	cancel()
	if err != nil {
		return err
	}
	asked, wait := true, r.opt.Timeout // for the answer to the subscription
	for {
		m, err := ps.ReceiveTimeout(ctx, wait)
		if err != nil {
			if !timedOut(err) {
				return err
			}
			if asked {
				return errSilent
			}
			if err := ps.Ping(ctx); err != nil {
				return err
			}
			asked = true
			continue
		}
		asked, wait = false, beat
		switch m := m.(type) {
		case *redis.Subscription:
			r.joins.Add(1)
			r.events.live.Store(true)
			r.docs.tell("")
			r.events.mu.RLock()
			for s := range r.events.join {
				s.take("", nil)
			}
			r.events.mu.RUnlock()
		case *redis.Message:
			r.taken(m.Payload)
		}
	}
}

func timedOut(err error) bool {
	e, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && e.Timeout()
}
