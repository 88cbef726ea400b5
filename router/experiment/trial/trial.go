// Package trial runs made-up experiments through headrace/router/experiment/stats, looking all the time, and counts what it says of
// them: how often it raises an alarm although there is nothing, and how soon it finds what there is. Nothing in it is
// measured; the same seed gives the same result.
package trial

import (
	"math"
	"math/rand/v2"
	"sort"
	"strconv"

	"headrace/router/experiment/stats"
)

// Step is a canary's weight from a number of requests on.
type Step struct {
	After  int
	Weight float64
}

// Trial is a made-up experiment of one canary against a control.
type Trial struct {
	Requests int
	Users    int     // who send them; 0 draws a unit for every request
	Activity float64 // exponent of the Pareto distribution of how much users send; 0 means 1.3, where a tenth of users send most of it
	Steps    []Step  // the first from request 0 on
	Careful  bool    // a step is only taken when nothing speaks against it: what was seen decides what will be
	Every    int     // requests between two looks; 0 means 16
	Replicas int     // of the gateway, any of which may get any request, and the first of which looks; 0 means 1
	// Part is the one of alpha that is looked by, as by one of several replicas (stats.Experiment.VerdictOf); 0 means all of it.
	Part float64

	// The canary's harm.
	TTFT, TPS, USD float64 // factors; 0 means 1
	Failures       float64 // probability that a request fails in addition, once it goes to the canary

	Hosts   [2]int  // the control's and the canary's own; none of its own: both run on the control's
	HostSD  float64 // by which hosts of the one kind differ, log scale
	Slowest bool    // the canary's are the slowest of all
	Idle    float64 // by how much the load of the canary's is lower than that of the control's; if not 0, requests tell the load

	// Watch, if set, is called at every look, with the number of requests until then.
	Watch func(requests int, e *stats.Experiment)

	Design stats.Design // Arms, Control, Weights and Sticky are filled in
}

// Result is how a trial ended.
type Result struct {
	Action   stats.Action // Stop, Promote where that was asked for, or what the last look said
	By       int          // stats.Metric that decided, -1 for none
	Requests int          // sent until then
	Units    [2]int       // the control's and the canary's until then
	Hosts    bool         // some look blamed hosts
	Last     stats.Verdict
}

// user is one who comes again.
type user struct {
	mood   float64 // of first tokens, log
	fails  float64 // factor
	prompt float64
}

// Run runs a trial until it is stopped or, if promote is set, promoted, and to its end otherwise.
func Run(t *Trial, seed uint64, promote bool) Result {
	r := rand.New(rand.NewPCG(seed, 0x7472_6961_6c)) //nolint:gosec // not secret
	d := t.Design
	d.Arms, d.Control, d.Sticky = []string{"control", "canary"}, 0, t.Users > 0
	d.Weights = []float64{1 - t.Steps[0].Weight, t.Steps[0].Weight}
	es := make([]*stats.Experiment, max(1, t.Replicas))
	for i := range es {
		e, err := stats.New(d)
		if err != nil {
			panic("BUG: " + err.Error())
		}
		es[i] = e
	}
	e := es[0]
	hosts, own := t.hosts(r)
	users, share := t.users(r)
	every := t.Every
	if every == 0 {
		every = 16
	}
	part := t.Part
	if part == 0 {
		part = 1
	}
	factor := func(f float64) float64 {
		if f == 0 {
			return 1
		}
		return f
	}
	ttft, tps, usd := factor(t.TTFT), factor(t.TPS), factor(t.USD)
	res := Result{By: -1}
	step, incident := 0, 0.0
	for i := range t.Requests {
		if step+1 < len(t.Steps) && i >= t.Steps[step+1].After && (!t.Careful || res.Action >= stats.Advance) {
			step++
			for _, e := range es {
				if err := e.Reweigh([]float64{1 - t.Steps[step].Weight, t.Steps[step].Weight}); err != nil {
					panic("BUG: " + err.Error())
				}
			}
		}
		// Two days pass. Requests come by their number, so that the day is in what they meet rather than in how many there are.
		day := 0.5 + 0.4*math.Sin(4*math.Pi*float64(i)/float64(t.Requests))
		if incident > 0 {
			incident--
		} else if r.Float64() < 1.0/1500 {
			incident = 40 // of requests, a third of which fail everywhere
		}
		unit, u := r.Uint64(), user{mood: 0.3 * r.NormFloat64(), fails: 1, prompt: 300 * math.Exp(r.NormFloat64())}
		if t.Users > 0 {
			k := sort.SearchFloat64s(share, r.Float64()*share[len(share)-1])
			unit, u = uint64(k), users[k]
			unit = unit*0x9e3779b97f4a7c15 ^ seed
		}
		place := float64(mixed(unit^seed)>>11) / (1 << 53)
		arm := 0
		if place < t.Steps[step].Weight {
			arm = 1
		}
		o := t.answer(r, u, unit, arm, day, incident > 0, hosts, own, ttft, tps, usd)
		if len(es) > 1 {
			es[r.IntN(len(es))].Record(&o)
		} else {
			e.Record(&o)
		}
		if (i+1)%every != 0 && i+1 != t.Requests {
			continue
		}
		for k, other := range es[1:] {
			if err := e.Merge(strconv.Itoa(k), other.Snapshot()); err != nil {
				panic("BUG: " + err.Error())
			}
		}
		if t.Watch != nil {
			t.Watch(i+1, e)
		}
		v := e.PeekOf(part)
		c := &v.Arms[1]
		res.Action, res.By, res.Requests, res.Units = c.Action, c.By, i+1, [2]int{v.Arms[0].Units, c.Units}
		for k := range c.Estimates {
			res.Hosts = res.Hosts || c.Estimates[k].Guard && c.Estimates[k].Finding == stats.Hosts
		}
		if c.Action == stats.Stop || promote && c.Action == stats.Promote {
			break
		}
	}
	res.Last = e.VerdictOf(part)
	return res
}

// answer makes up what became of a request.
func (t *Trial) answer(r *rand.Rand, u user, unit uint64, arm int, day float64, incident bool, hosts []float64, own int, ttft, tps, usd float64) stats.Observation {
	o := stats.Unknown(unit, arm)
	first, n := 0, len(hosts)
	if own > 0 {
		if n -= own; arm == 1 {
			first, n = n, own
		}
	}
	h := first + r.IntN(n)
	o.Host = uint32(h + 1) //nolint:gosec // few
	use := max(0, day+0.15*r.NormFloat64())
	if t.Idle != 0 {
		if arm == 1 {
			use = max(0, use-t.Idle)
		}
		o.Load = use
	}
	prompt := u.prompt * math.Exp(0.5*r.NormFloat64())
	o.Block = stats.BlockOf(1, int64(prompt)+1, use)
	o.TTFT = 0.25 * (1 + prompt/2000) * math.Exp(u.mood+hosts[h]+0.6*use+0.4*r.NormFloat64())
	o.TPS = 35 * math.Exp(-hosts[h]-0.5*use+0.15*r.NormFloat64())
	o.USDPerMtok = 1.2 * math.Exp(hosts[h]-0.4*use+0.1*r.NormFloat64())
	fails := 0.01 * u.fails * (0.5 + day)
	if incident {
		fails = 1.0 / 3
	}
	o.Failed = r.Float64() < fails
	if arm == 1 {
		o.TTFT *= ttft
		o.TPS *= tps
		o.USDPerMtok *= usd
		o.Failed = o.Failed || t.Failures > 0 && r.Float64() < t.Failures
	}
	o.OutputTokens, o.SpentUSD = 200, 200e-6*o.USDPerMtok
	if arm == 1 {
		o.SpentUSD *= usd
	}
	o.Cold = r.Float64() < 0.002
	o.Metered = o.Cold // on a worker that was started for it
	o.Missed = o.Failed || o.TTFT > 1.5
	if o.Failed {
		o.TTFT, o.TPS, o.USDPerMtok = math.NaN(), math.NaN(), math.NaN()
	}
	return o
}

// hosts draws what hosts of the kind differ by; the last own ones are the canary's alone.
func (t *Trial) hosts(r *rand.Rand) (hosts []float64, own int) {
	n := max(1, t.Hosts[0]) + t.Hosts[1]
	for range n {
		hosts = append(hosts, t.HostSD*r.NormFloat64())
	}
	if t.Slowest {
		sort.Float64s(hosts)
	}
	return hosts, t.Hosts[1]
}

func (t *Trial) users(r *rand.Rand) (users []user, share []float64) {
	activity := t.Activity
	if activity == 0 {
		activity = 1.3
	}
	sum := 0.0
	for range t.Users {
		// Who often fails is one in ten, at five times the rate.
		u := user{mood: 0.3 * r.NormFloat64(), fails: 0.5, prompt: 300 * math.Exp(r.NormFloat64())}
		if r.Float64() < 0.1 {
			u.fails = 5.5
		}
		users = append(users, u)
		sum += math.Pow(1-r.Float64(), -1/activity)
		share = append(share, sum)
	}
	return users, share
}

// mixed is a hash of x.
func mixed(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
