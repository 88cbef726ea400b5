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
	Units    int     // of the canary, after which it ends; 0 for none
	Users    int     // who send them; 0 draws a unit for every request
	Activity float64 // exponent of the Pareto distribution of how much users send; 0 means 1.3, where a tenth of users send most of it
	Steps    []Step  // the first from request 0 on
	Careful  bool    // a step is only taken when nothing speaks against it: what was seen decides what will be
	Every    int     // requests between two looks; 0 means 16. Of a gateway's first replica, each request is looked at until the canary has had 20 units
	Replicas int     // of the gateway, any of which may get any request, and the first of which looks at what all have seen; 0 means 1
	// Everyone has each replica look, the others at their own figures, all of them by their parts of alpha; any of them ends the experiment.
	Everyone bool
	// Silent is the share of the time in which replicas do not hear of each other, a few hundred requests at once.
	Silent float64
	// Drift has times change for both arms, step by step and within steps: more fails by factors, all is slower and dearer, answers are liked less, and
	// one step in four is an incident from end to end.
	Drift bool

	// The canary's harm.
	TTFT, TPS, USD float64 // factors; 0 means 1
	Failures       float64 // probability that a request fails in addition, once it goes to the canary

	// Base is the probability that a request fails anyway, whoever sends it and whenever; less than 0 means never. With 0 it is 0.01 on the average of users
	// and days, and a few more in incidents.
	Base float64

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

// times are what both arms meet alike, as long as a step lasts.
type times struct {
	fails, slow   float64 // logs of factors
	trend, slower float64 // by which they change until the end of the step
}

func (t *Trial) times(r *rand.Rand) times {
	if !t.Drift {
		return times{}
	}
	w := times{r.NormFloat64(), 0.4 * r.NormFloat64(), r.NormFloat64(), 0.4 * r.NormFloat64()}
	if r.IntN(4) == 0 {
		w.fails += math.Log(10)
	}
	return w
}

// at is what a part of the step that has passed meets.
func (w times) at(part float64) times {
	return times{fails: w.fails + w.trend*(part-0.5), slow: w.slow + w.slower*(part-0.5)}
}

// firstLooks is how many units of the canary are looked at one by one.
const firstLooks = 20

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
	part, others := 1.0, 0.0
	if t.Everyone && len(es) > 1 {
		part, others = 0.5, 0.5/float64(len(es)-1)
	}
	silent := 0
	factor := func(f float64) float64 {
		if f == 0 {
			return 1
		}
		return f
	}
	ttft, tps, usd := factor(t.TTFT), factor(t.TPS), factor(t.USD)
	res := Result{By: -1}
	step, begun, incident := 0, 0, 0.0
	now := t.times(r)
	for i := range t.Requests {
		if step+1 < len(t.Steps) && i >= t.Steps[step+1].After && (!t.Careful || res.Action >= stats.Advance) {
			step++
			begun, now = i, t.times(r)
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
		} else if t.Base == 0 && r.Float64() < 1.0/1500 {
			incident = 40 // of requests, a third of which fail everywhere
		}
		unit, u := r.Uint64(), user{mood: 0.3 * r.NormFloat64(), fails: 1, prompt: 300 * math.Exp(r.NormFloat64())}
		if t.Users > 0 {
			k := sort.SearchFloat64s(share, r.Float64()*share[len(share)-1])
			u = users[k]
			unit = mixed(uint64(k) + mixed(seed+1)) // others than of any other seed, and so are their places
		}
		place := float64(mixed(unit+0x9e3779b97f4a7c15)>>11) / (1 << 53)
		arm := 0
		if place < t.Steps[step].Weight {
			arm = 1
		}
		o := t.answer(r, u, unit, arm, day, incident > 0, hosts, own, ttft, tps, usd, now.at(float64(i-begun)/float64(t.until(step)-begun)))
		if len(es) > 1 {
			es[r.IntN(len(es))].Record(&o)
		} else {
			e.Record(&o)
		}
		if (i+1)%every != 0 && i+1 != t.Requests && (len(es) > 1 || res.Units[1] >= firstLooks) {
			continue
		}
		if i%300 < every && t.Silent > 0 {
			if silent--; silent <= 0 && r.Float64() < t.Silent {
				silent = 1
			}
		}
		if silent <= 0 {
			for k, other := range es[1:] {
				if err := e.Merge(strconv.Itoa(k), other.Snapshot()); err != nil {
					panic("BUG: " + err.Error())
				}
			}
		}
		if t.Watch != nil {
			t.Watch(i+1, e)
		}
		v := e.PeekOf(part)
		if t.Everyone {
			for _, other := range es[1:] {
				if own := other.PeekOf(others); own.Arms[1].Action == stats.Stop {
					v.Arms[1] = own.Arms[1]
				}
			}
		}
		c := &v.Arms[1]
		res.Action, res.By, res.Requests, res.Units = c.Action, c.By, i+1, [2]int{v.Arms[0].Units, c.Units}
		for k := range c.Estimates {
			res.Hosts = res.Hosts || c.Estimates[k].Guard && c.Estimates[k].Finding == stats.Hosts
		}
		if c.Action == stats.Stop || promote && c.Action == stats.Promote || t.Units > 0 && c.Units >= t.Units {
			break
		}
	}
	res.Last = e.VerdictOf(part)
	if t.Everyone && res.Action == stats.Stop { // by whoever it was
		for _, other := range es[1:] {
			if v := other.VerdictOf(others); v.Arms[1].Action == stats.Stop {
				res.Last = v
			}
		}
	}
	return res
}

// answer makes up what became of a request.
func (t *Trial) answer(r *rand.Rand, u user, unit uint64, arm int, day float64, incident bool, hosts []float64, own int, ttft, tps, usd float64, now times) stats.Observation {
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
	o.TTFT = 0.25 * (1 + prompt/2000) * math.Exp(u.mood+hosts[h]+0.6*use+0.4*r.NormFloat64()+now.slow)
	o.TPS = 35 * math.Exp(-hosts[h]-0.5*use+0.15*r.NormFloat64()-now.slow)
	o.USDPerMtok = 1.2 * math.Exp(hosts[h]-0.4*use+0.1*r.NormFloat64()+now.slow)
	fails := 0.01 * u.fails * (0.5 + day)
	if t.Base != 0 {
		fails = max(0, t.Base)
	}
	if t.Drift {
		fails = min(0.5, fails*math.Exp(now.fails))
		o.Truncated = r.Float64() < fails/2
		o.Score = 0.7 - 0.3*now.slow + 0.3*u.mood + 0.2*r.NormFloat64()
	}
	if incident {
		fails = max(fails, 1.0/3)
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

// until is the request at which a step is over, at the latest.
func (t *Trial) until(step int) int {
	if step+1 < len(t.Steps) {
		return t.Steps[step+1].After
	}
	return t.Requests
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
