package sim

import (
	"math"
	"math/rand/v2"
)

// call is a request as it comes.
type call struct {
	at             float64 // seconds since the start
	prompt, output int     // tokens
	session        int
	shared         int   // tokens of the prompt that the session's turn before had, its answer included
	most           int   // max_tokens; 0 for none
	ends           []int // of the session's prompts up to this one, in tokens
	resumable      bool
	door           float64 // in [0,1): which gateway gets it
}

// arrivals hands out calls by time.
type arrivals interface {
	next() (call, bool)
}

// Shape of generated traffic.
const (
	promptMedianLog = 5.7  // median 300 tokens
	promptSigma     = 0.9  //
	outputMedianLog = 5.15 // median 172 tokens
	outputSigma     = 0.75
	mostPrompt      = 6000
	mostOutput      = callersMax
	followUps       = 0.45 // share of calls that go on a conversation
	conversations   = 300  // that are open at once
	fewest          = 50   // before there are any follow-ups
	resumables      = 0.8
	burstSeconds    = 60.0
	lullSeconds     = 600.0
	highestBurst    = 3.0
	keptTurns       = 23 // ends of earlier prompts that are remembered
)

type conversation struct {
	session, tokens int
	ends            []int
}

// generator is the daily traffic of a service: a sine, bursts, log-normal lengths, conversations.
type generator struct {
	load       Load
	rand       *rand.Rand
	speed      float64 // of the scenario
	t          float64
	burst      float64
	burstUntil float64
	sessions   int
	open       []conversation
}

func newGenerator(l Load, speed float64, seed uint64) *generator {
	return &generator{load: l, speed: speed, rand: dice(seed, "load", 0), burst: 1}
}

func (g *generator) next() (call, bool) {
	r := g.rand
	if g.t > g.burstUntil {
		if g.burst == 1 && g.load.Bursts > 1 {
			g.burst = min(highestBurst, 1+(g.load.Bursts-1)*r.ExpFloat64())
			g.burstUntil = g.t + burstSeconds/g.speed*r.ExpFloat64()
		} else {
			g.burst = 1
			g.burstUntil = g.t + lullSeconds/g.speed*r.ExpFloat64()
		}
	}
	rate := g.load.PerSecond * (1 + g.load.Diurnal*math.Sin(2*math.Pi*((g.t*g.speed/3600+g.load.From)/day-0.25))) * g.burst
	g.t += r.ExpFloat64() / rate
	c := call{
		at:     g.t,
		prompt: min(mostPrompt, 10+int(math.Exp(promptMedianLog+promptSigma*r.NormFloat64()))),
		output: min(mostOutput, 5+int(math.Exp(outputMedianLog+outputSigma*r.NormFloat64()))),
	}
	g.converse(&c, r.Float64() < followUps)
	c.resumable = r.Float64() < resumables
	c.door = r.Float64()
	return c, true
}

// converse makes the call a conversation's next turn, or the first of a new one.
func (g *generator) converse(c *call, follow bool) {
	var v *conversation
	if follow && len(g.open) > fewest {
		v = &g.open[g.rand.IntN(len(g.open))]
		c.prompt = min(mostPrompt, v.tokens+c.prompt/3)
		c.shared = min(v.tokens, c.prompt)
	} else {
		if len(g.open) == conversations {
			copy(g.open, g.open[1:])
			g.open = g.open[:len(g.open)-1]
		}
		g.sessions++
		g.open = append(g.open, conversation{session: g.sessions})
		v = &g.open[len(g.open)-1]
	}
	c.session = v.session
	v.turn(c)
	c.most = callersMax
}

// turn notes a call as the conversation's newest.
func (v *conversation) turn(c *call) {
	v.tokens = c.prompt + c.output
	from := max(0, len(v.ends)-keptTurns)
	v.ends = append(v.ends[from:len(v.ends):len(v.ends)], c.prompt) // a copy: calls keep theirs
	c.ends = v.ends
}
