package script

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"headrace/providers/fakecloud"
	"headrace/providers/fakecloud/fakevast"
)

// Run plays the events and the bid war until ctx is done. say is told of each thing that has happened, one at a time,
// and may be nil. It may be called once.
func (c *Clouds) Run(ctx context.Context, say func(News)) {
	c.mu.Lock()
	c.say = say
	c.mu.Unlock()
	var wg sync.WaitGroup
	for i := range c.script.Events {
		wg.Go(func() { c.play(ctx, &c.script.Events[i]) })
	}
	if v := c.script.Vast; v != nil && v.BidWar != nil {
		var bidders []*host
		for _, h := range c.hosts {
			if h.instance != nil && h.instance.Config().IsBid {
				bidders = append(bidders, h)
			}
		}
		for i, h := range bidders {
			rng := rand.New(rand.NewPCG(c.script.Seed, uint64(i))) //nolint:gosec // wars are to be repeatable
			wg.Go(func() { c.war(ctx, h, rng) })
		}
	}
	wg.Wait()
	<-ctx.Done()
}

func (c *Clouds) tell(h *host, what, text string, undo bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.say != nil {
		c.say(News{ID: h.id, What: what, Text: text, Undo: undo})
	}
}

func (c *Clouds) play(ctx context.Context, e *Event) {
	if fakecloud.Pause(ctx, scaled(e.At, c.script.scale())) != nil {
		return
	}
	a, h := actions[e.what], c.host(e.on)
	says := a.says
	if e.usd > 0 {
		says = fmt.Sprintf("costs $%.2f/h from now on", e.usd)
	}
	c.tell(h, e.what, says, false)
	a.do(c, h, e)
	if e.For == 0 || fakecloud.Pause(ctx, scaled(e.For, c.script.scale())) != nil {
		return
	}
	a.undo(c, h)
	c.tell(h, e.what, a.after, true)
}

// strike draws how long an instance is left alone: rivals come whenever they like, so that the times between are
// exponential with the mean every, and no instance is safer for having been spared so far.
func strike(rng *rand.Rand, every Duration) Duration {
	return Duration(rng.ExpFloat64() * float64(every))
}

// war outbids one instance again and again. Its owner bids again, higher, and lowers the bid when it is calm.
func (c *Clouds) war(ctx context.Context, h *host, rng *rand.Rand) {
	w, scale := c.script.Vast.BidWar, c.script.vastScale()
	calm := h.instance.Config().DPHBase // USD per hour
	// Between half as long and half as long again; the mean is d.
	about := func(d Duration) time.Duration { return scaled(Duration(float64(d)*(0.5+rng.Float64())), scale) }
	next := scaled(strike(rng, w.Every), scale)
	for fakecloud.Pause(ctx, next) == nil {
		bid := h.instance.Config().DPHBase
		rival := bid * (1.08 + 0.3*rng.Float64())
		c.tell(h, "outbid", fmt.Sprintf("is outbid: somebody pays $%.2f/h for its GPU, we $%.2f; its connections are reset", rival, bid), false)
		h.instance.Update(func(k *fakevast.InstanceConfig) { k.MinBid = rival })
		h.instance.Outbid(fakevast.ExitedStopped)
		away := about(w.Away) - scaled(Duration(boot.Provision+boot.Ports+boot.Model), scale)
		if fakecloud.Pause(ctx, away) != nil {
			return
		}
		raised := rival * (0.85 + 0.2*rng.Float64()) // the rival has left, for less or more than it had paid
		h.instance.Update(func(k *fakevast.InstanceConfig) { k.DPHBase, k.MinBid = raised, raised*0.9 })
		h.instance.Resume()
		c.tell(h, "outbid", fmt.Sprintf("gets its GPU again for a bid of $%.2f/h, and boots", raised), true)
		rest := scaled(strike(rng, w.Every), scale)
		if fakecloud.Pause(ctx, rest/2) != nil {
			return
		}
		h.instance.Update(func(k *fakevast.InstanceConfig) { k.DPHBase, k.MinBid = calm, calm*0.9 })
		c.tell(h, "price", fmt.Sprintf("costs $%.2f/h again: few others bid", calm), false)
		next = rest / 2
	}
}
