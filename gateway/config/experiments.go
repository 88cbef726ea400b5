package config

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// Experiment is one way of serving a model, or several, that are tried on a share of its requests.
type Experiment struct {
	Name  string `yaml:"name" required:"true" eg:"awq-canary" doc:"Unique name: lower case letters, digits, \".\", \"_\" and \"-\", starting with a letter or digit." aka:"id"`
	Model string `yaml:"model" required:"true" eg:"llama-70b" doc:"The name that applications use, whose requests are divided." aka:"alias|on"`
	// AssignBy is never empty.
	AssignBy []string                 `yaml:"assign_by" single:"true" otherwise:"request" eg:"user" doc:"What is assigned to an arm as a whole, the first of these that a request has: request, session (x-headrace-session or prompt_cache_key), user (the body's user), key, or header:NAME. A request with none of them is served by the control and not counted." aka:"unit|units|sticky|by|assign"`
	Arms     map[string]ExperimentArm `yaml:"arms" required:"true" doc:"The ways of serving, two or more; one of them is the control." aka:"variants|groups|branches"`
	Control  string                   `yaml:"control" default:"control" doc:"The arm that the others are compared with, and that serves all that no other arm does."`
	Steps    []float64                `yaml:"steps" unit:"share" above:"0" max:"1" otherwise:"none: every arm keeps its weight" eg:"5%" doc:"Shares of the units that all arms but the control get together, one after another; 100% as the last promotes what has passed." aka:"ramp|stages"`
	MinTime  time.Duration            `yaml:"min_time" default:"10m" doc:"Each step lasts at least that long." aka:"step_time|min_step|hold"`
	MinUnits int                      `yaml:"min_units" min:"1" max:"1000000000" default:"200" doc:"Units that each arm which is tried must have had in a step before it is over: users, sessions, keys or requests, by assign_by." aka:"min_sample|min_samples|sample"`
	MaxTime  time.Duration            `yaml:"max_time" default:"24h" doc:"When nothing was shown by then it is inconclusive: shares stay as they are until somebody decides; 0 for never. The time for which it is paused does not count." aka:"timeout|duration|max_duration"`
	Start    string                   `yaml:"start" otherwise:"at once" eg:"2026-08-01T09:00:00Z" doc:"Nothing is tried before: date and time with zone (RFC 3339)." aka:"from|starts|begin"`
	End      string                   `yaml:"end" otherwise:"never" eg:"2026-08-15T18:00:00Z" doc:"From then on the control serves everything: likewise." aka:"until|to|ends|stop"`
	Layer    string                   `yaml:"layer" otherwise:"the model's" eg:"llama" doc:"Experiments of one layer exclude each other: a unit is in at most one. All those on one model must share a layer."`
	Traffic  float64                  `yaml:"traffic" unit:"share" above:"0" max:"1" otherwise:"what the others of its layer leave, in equal parts" eg:"50%" doc:"Share of the layer's units that this experiment gets." aka:"population"`
	Alpha    float64                  `yaml:"alpha" unit:"share" above:"0" max:"0.5" default:"5%" doc:"Probability of stopping anything although nothing does harm, over all guardrails and arms together, however often somebody looks." aka:"significance|p"`
	// Guardrails is nil where the file names none.
	Guardrails *Guardrails `yaml:"guardrails" otherwise:"error_rate +0.2%, slo_missed +1%, ttft +10%, tps -5%, usd_per_mtok +2%" doc:"What an arm may do worse than the control. Harm that is proven ends it at once." aka:"guards|margins|limits"`
	Goal       string      `yaml:"goal" words:"error_rate|slo_missed|ttft|tps|usd_per_mtok|truncated|score" otherwise:"none: not being worse is enough" doc:"The figure that must be proven better before an arm is promoted." aka:"objective|metric"`
	Shadow     Shadow      `yaml:"shadow" doc:"Copies of requests that an arm answers for nobody, to see how it does."`
	Spill      bool        `yaml:"spill" default:"false" doc:"Whether requests of other arms, which find no room at their own hosts, may be served by an arm's that is tried. Never by one's that was ended." aka:"overflow|spillover"`
	State      string      `yaml:"state" words:"run|pause|promote|abort" default:"run" doc:"What the config asks for; later words by headrace experiment or the admin API hold against it until it changes." aka:"action|status"`

	start, end time.Time
	from, to   float64 // of the layer's units
}

// ExperimentArm is one of the ways.
type ExperimentArm struct {
	Hosts        *HostSelector `yaml:"hosts" otherwise:"all hosts of the model but those that only other arms than a control name" doc:"Which of the model's hosts serve it." aka:"host|select|selector|where"`
	Model        string        `yaml:"model" otherwise:"the experiment's" eg:"llama-8b" doc:"Another model's name, whose hosts serve it." aka:"alias"`
	Policy       string        `yaml:"policy" words:"cost|latency|balanced|weighted" otherwise:"the model's" doc:"What is looked for among its hosts, in place of the model's policy." aka:"strategy|routing"`
	OnPreemption string        `yaml:"on_preemption" words:"continue|restart|fail" otherwise:"the model's" doc:"What becomes of an answer whose host is lost, in place of the model's." aka:"on_failure|preemption|continuation"`
	Hedge        string        `yaml:"hedge" words:"off|sunk" otherwise:"as under retries" doc:"Whether a late first token has a second host asked, in place of retries.hedge." aka:"hedging"`
	Weight       float64       `yaml:"weight" unit:"share" above:"0" max:"1" otherwise:"an equal part" eg:"5%" doc:"Share of the units; with steps, its part of each step in relation to the other arms' weights. The control gets what is left." aka:"share|percent|traffic"`
}

// HostSelector describes hosts: those that fit every key that is given. Texts may hold "*" for any text.
type HostSelector struct {
	ID       []string          `yaml:"id" single:"true" otherwise:"any" eg:"vast:48738927" doc:"Ids of hosts, such as static:lab." aka:"host|name|endpoint"`
	Provider []string          `yaml:"provider" single:"true" otherwise:"any" eg:"vast" doc:"runpod, vast or static." aka:"providers|cloud"`
	Served   []string          `yaml:"served" single:"true" otherwise:"any" eg:"*-awq" doc:"The model's id as the host knows it." aka:"serves|model|models"`
	GPU      []string          `yaml:"gpu" single:"true" otherwise:"any" eg:"RTX 4090" doc:"The GPU, by any of its names." aka:"gpus|hardware|gpu_name"`
	Region   []string          `yaml:"region" single:"true" otherwise:"any" eg:"EU*" doc:"Where it stands, as its provider names it." aka:"regions|location|zone"`
	Price    []string          `yaml:"price" single:"true" otherwise:"any" eg:"per_hour" doc:"What its owner bills for: per_hour, per_worker_second, per_token or unknown." aka:"basis|price_basis|billing"`
	Tenure   []string          `yaml:"tenure" single:"true" otherwise:"any" eg:"interruptible" doc:"How it may be taken away: interruptible, on_demand, serverless, per_token or unknown." aka:"type|kind"`
	Labels   map[string]string `yaml:"labels" otherwise:"any" doc:"Labels that it must have, with their values." aka:"label|tags"`
}

// Guardrails are what an arm may do worse than the control; nil is no guardrail. Of TTFT, TPS and dollars the typical ratio of like
// requests is compared, which moves every quantile alike; slo_missed is what guards the slowest.
type Guardrails struct {
	ErrorRate  *float64 `yaml:"error_rate" unit:"share" min:"0" max:"1" otherwise:"not guarded" eg:"+1%" doc:"Requests whose host failed, though another may have answered them: points more." aka:"errors|failures|failure_rate"`
	SLOMissed  *float64 `yaml:"slo_missed" unit:"share" min:"0" max:"1" otherwise:"not guarded" eg:"+1%" doc:"Requests whose first token came later than promised: points more." aka:"slo|slo_misses|missed"`
	TTFT       *float64 `yaml:"ttft" unit:"share" min:"0" max:"10" otherwise:"not guarded" eg:"+20%" doc:"Time to the first token: percent longer." aka:"first_token|ttft_p50|latency"`
	TTFTP95    *float64 `yaml:"ttft_p95" unit:"share" min:"0" max:"10" otherwise:"not guarded" eg:"+20%" doc:"The same: the typical ratio moves this quantile as it moves all."`
	TPS        *float64 `yaml:"tps" unit:"share" min:"-0.99" max:"0" otherwise:"not guarded" eg:"-15%" doc:"Tokens per second of a stream: percent slower." aka:"speed|tokens_per_second"`
	TPSP50     *float64 `yaml:"tps_p50" unit:"share" min:"-0.99" max:"0" otherwise:"not guarded" eg:"-15%" doc:"The same, likewise."`
	USDPerMTok *float64 `yaml:"usd_per_mtok" unit:"share" min:"0" max:"10" otherwise:"not guarded" eg:"+0%" doc:"Dollars per million output tokens: percent dearer." aka:"cost|price|usd"`
	Truncated  *float64 `yaml:"truncated" unit:"share" min:"0" max:"1" otherwise:"not guarded" eg:"+1%" doc:"Answers that broke off: points more." aka:"truncation|broken"`
	Score      *float64 `yaml:"score" unit:"share" min:"-1" max:"0" otherwise:"not guarded" eg:"-5%" doc:"What feedback says of answers, from 0 to 1: points less." aka:"feedback|quality"`
}

// Shadow copies requests to an arm and throws the answers away.
type Shadow struct {
	Arm       string  `yaml:"arm" otherwise:"no copies are made" eg:"canary" doc:"The arm that gets copies." aka:"to|target"`
	Share     float64 `yaml:"share" unit:"share" above:"0" max:"1" default:"1%" doc:"Share of the control's requests that are copied." aka:"percent|weight"`
	MaxTokens int     `yaml:"max_tokens" min:"1" max:"100000" default:"64" doc:"Output tokens of a copy." aka:"tokens"`
	Paid      bool    `yaml:"paid" default:"false" doc:"Whether copies may cost something. Else they go only to hosts that are paid anyway and less than half used."`
}

// Span returns when it starts and ends; zero times are at once and never.
func (e *Experiment) Span() (start, end time.Time) { return e.start, e.end }

// Slice returns the stretch of its layer's units that is its own, in [0,1].
func (e *Experiment) Slice() (from, to float64) { return e.from, e.to }

// unitWords are what is assigned, but for header:NAME.
var unitWords = []string{"request", "session", "user", "key"}

func experimentPath(i int) string { return fmt.Sprintf("experiments[%d]", i) }

func (c *Config) checkExperiments() []Problem {
	var problems []Problem
	add := func(path string, m *mistake) {
		if m != nil {
			problems = append(problems, c.problem(path, m.what, m.hint))
		}
	}
	names := map[string]bool{}
	for i := range c.Experiments {
		e, path := &c.Experiments[i], experimentPath(i)
		if at := path + ".name"; c.good(at) {
			switch m := checkName(e.Name); {
			case m != nil:
				add(at, &mistake{c.shown(at, e.Name) + strings.Replace(m.what, "a host", "an experiment", 1), m.hint})
			case len(e.Name) > 48:
				add(at, &mistake{"is too long for a name", "keep to 48 characters"})
			case names[e.Name]:
				add(at, &mistake{c.shown(at, e.Name) + "is another experiment's name too", "give every experiment a name of its own"})
			}
			names[e.Name] = true
		}
		c.checkModelOf(path+".model", e.Model, add)
		c.checkUnits(e, path+".assign_by", add)
		c.checkArms(e, path, add)
		c.checkSteps(e, path, add)
		if g := e.Guardrails; g != nil {
			if *g == (Guardrails{}) {
				add(path+".guardrails", &mistake{"names none", "leave it out for the usual ones, or name what is to be guarded"})
			}
			for _, double := range []struct {
				a, b   *float64
				key    string
				second string
			}{{g.TTFT, g.TTFTP95, "ttft", "ttft_p95"}, {g.TPS, g.TPSP50, "tps", "tps_p50"}} {
				if double.a != nil && double.b != nil {
					add(path+".guardrails."+double.second, &mistake{"is the same guardrail as " + double.key, "keep one"})
				}
			}
		}
		e.start = c.moment(path+".start", e.Start, add)
		e.end = c.moment(path+".end", e.End, add)
		if !e.start.IsZero() && !e.end.IsZero() && !e.end.After(e.start) {
			add(path+".end", &mistake{"is not after start", "give a later time"})
		}
	}
	return append(problems, c.checkLayers()...)
}

// Warnings are what a config may say, and its operator may not mean. Each names its place.
func (c *Config) Warnings() []string {
	var ws []string
	for i := range c.Experiments {
		e := &c.Experiments[i]
		if a := e.Arms[e.Control]; a.Hosts != nil || a.Model != "" {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(e.Arms)) {
			if a := e.Arms[name]; name != e.Control && a.Hosts != nil && (a.Model == "" || a.Model == e.Model) {
				ws = append(ws, fmt.Sprintf("%s.arms.%s: it names no hosts, so it is served by all of %q but those that arms which are tried name (%s). "+
					"Where these are all there are, nobody serves it: say with hosts which are its own", experimentPath(i), e.Control, e.Model, name))
				break
			}
		}
	}
	return ws
}

// checkModelOf looks whether callers know the model, where the config says which they know.
func (c *Config) checkModelOf(at, name string, add func(string, *mistake)) {
	if !c.good(at) || len(c.Models) == 0 {
		return
	}
	if _, ok := c.Models[name]; ok {
		return
	}
	hint := "name one under models"
	if near := nearest(name, slices.Sorted(maps.Keys(c.Models))); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	add(at, &mistake{c.shown(at, name) + "is no model of this config", hint})
}

func (c *Config) checkUnits(e *Experiment, at string, add func(string, *mistake)) {
	if len(e.AssignBy) == 0 {
		e.AssignBy = []string{"request"}
		return
	}
	for i, u := range e.AssignBy {
		item := fmt.Sprintf("%s[%d]", at, i)
		if !c.given(item) {
			item = at
		}
		if !c.good(item) {
			continue
		}
		if name, ok := strings.CutPrefix(u, "header:"); ok {
			if name == "" || strings.ContainsFunc(name, func(r rune) bool {
				return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
			}) {
				add(item, &mistake{c.shown(item, u) + "names no header field", "for example header:x-user-id"})
			}
			continue
		}
		if !slices.Contains(unitWords, u) {
			hint := suggestWord(u, append(slices.Clone(unitWords), "header:NAME"))
			if strings.HasPrefix(u, "x-") {
				hint = "write header:" + u
			}
			add(item, &mistake{c.shown(item, u) + "is not known", hint})
		} else if u == "request" && i < len(e.AssignBy)-1 {
			add(item, &mistake{"hides what stands behind it: every request has itself", "put it last"})
		}
	}
}

func (c *Config) checkArms(e *Experiment, path string, add func(string, *mistake)) {
	at := path + ".arms"
	if !c.good(at) {
		return
	}
	arms := slices.Sorted(maps.Keys(e.Arms))
	switch {
	case len(arms) < 2:
		add(at, &mistake{"needs two arms or more", "name a control and what is to be compared with it"})
	case len(arms) > 16:
		add(at, &mistake{"has more than 16 arms", "try fewer at a time"})
	}
	if _, ok := e.Arms[e.Control]; !ok && len(arms) >= 2 {
		key := at
		if c.given(path + ".control") {
			key = path + ".control"
		}
		hint := "name one of them control, or name it with control: NAME"
		if near := nearest(e.Control, arms); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		add(key, &mistake{fmt.Sprintf("there is no arm %q to compare with", e.Control), hint})
	}
	sum, said := 0.0, 0
	for _, name := range arms {
		a, key := e.Arms[name], join(at, name)
		if m := checkName(name); m != nil {
			add(key, &mistake{"the name " + strings.Replace(m.what, "a host", "an arm", 1), m.hint})
		} else if len(name) > 24 {
			add(key, &mistake{"the name is too long", "keep to 24 characters"})
		}
		if a.Model != "" {
			c.checkModelOf(key+".model", a.Model, add)
		}
		if h := a.Hosts; h != nil {
			c.checkWordsOf(key+".hosts.price", h.Price, []string{"per_hour", "per_worker_second", "per_token", "unknown"}, add)
			c.checkWordsOf(key+".hosts.tenure", h.Tenure, []string{"interruptible", "on_demand", "serverless", "per_token", "unknown"}, add)
			c.checkWordsOf(key+".hosts.provider", h.Provider, []string{"runpod", "vast", "static"}, add)
		}
		if name == e.Control {
			if c.given(key + ".weight") {
				add(key+".weight", &mistake{"has no effect: the control gets what the other arms leave", "delete it, or give the others weights"})
			}
			continue
		}
		if a.Weight > 0 {
			sum += a.Weight
			said++
		}
	}
	tried := len(arms) - 1
	switch {
	case sum > 1+1e-9:
		add(at, &mistake{"the weights are " + plainShare(math.Round(sum*1e9)/1e9) + " together", "keep to 100%"})
	case sum > 1-1e-9 && len(e.Steps) == 0:
		add(at, &mistake{"the weights are 100% together, and leave the control nothing to be compared with", "keep to less, or take steps to it, such as [5%, 25%, 50%, 100%]"})
	}
	for _, name := range arms {
		if a := e.Arms[name]; name != e.Control && a.Weight == 0 && tried > 0 {
			switch {
			case said == 0 && len(e.Steps) > 0:
				a.Weight = 1 / float64(tried)
			case said == 0:
				a.Weight = 1 / float64(tried+1)
			default:
				add(join(at, name), &mistake{"has no weight though other arms have one", "give all arms but the control a weight, or none"})
			}
			e.Arms[name] = a
		}
	}
	if s := e.Shadow.Arm; s != "" {
		switch _, ok := e.Arms[s]; {
		case s == e.Control:
			add(path+".shadow.arm", &mistake{"is the control, whose requests are copied", "name another arm"})
		case !ok:
			add(path+".shadow.arm", &mistake{c.shown(path+".shadow.arm", s) + "is no arm of this experiment", "write " + orList(arms)})
		}
	}
}

// checkWordsOf looks at a selector's words; patterns are left alone.
func (c *Config) checkWordsOf(at string, values, words []string, add func(string, *mistake)) {
	for i, v := range values {
		item := fmt.Sprintf("%s[%d]", at, i)
		if !c.given(item) {
			item = at
		}
		if c.good(item) && !strings.Contains(v, "*") && !slices.Contains(words, strings.ToLower(v)) {
			add(item, &mistake{c.shown(item, v) + "is not known", suggestWord(v, words)})
		}
	}
}

// mostSteps leaves room among the 32 shares that the statistics of a run tell apart.
const mostSteps = 24

func (c *Config) checkSteps(e *Experiment, path string, add func(string, *mistake)) {
	for i := range e.Steps {
		at := fmt.Sprintf("%s.steps[%d]", path, i)
		switch {
		case !c.good(at):
			return
		case i > 0 && e.Steps[i] <= e.Steps[i-1]:
			add(at, &mistake{"is not more than the step before", "write them from the least to the most: a unit that was moved would be moved back"})
			return
		}
	}
	if len(e.Steps) > mostSteps {
		add(path+".steps", &mistake{fmt.Sprintf("has %d steps", len(e.Steps)), fmt.Sprintf("keep to %d: statistics tell so many shares apart, with some to spare for arms that are ended", mostSteps)})
	}
	if len(e.Steps) == 1 && e.Steps[0] >= 1 {
		add(path+".steps", &mistake{"leave the control nothing to be compared with", "begin with less, such as [5%, 25%, 50%, 100%]"})
	}
}

// moment reads a time.
func (c *Config) moment(at, text string, add func(string, *mistake)) time.Time {
	if text == "" || !c.good(at) {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		add(at, &mistake{c.shown(at, text) + "is no date and time", "write it with its zone, such as 2026-08-01T09:00:00Z or 2026-08-01T09:00:00+02:00"})
	}
	return t
}

// checkLayers divides each layer's units among its experiments.
func (c *Config) checkLayers() []Problem {
	var problems []Problem
	layerOf := map[string]int{} // by model: the first experiment on it
	layers := map[string][]int{}
	var order []string
	for i := range c.Experiments {
		e := &c.Experiments[i]
		name := e.Layer
		if name == "" {
			name = e.Model
		}
		if first, ok := layerOf[e.Model]; !ok {
			layerOf[e.Model] = i
		} else if o := &c.Experiments[first]; o.Layer != e.Layer && e.Model != "" {
			problems = append(problems, c.problem(experimentPath(i), fmt.Sprintf("divides the requests of %q, as %q does, but is in another layer: a request would be in both", e.Model, o.Name), "give both the same layer"))
		}
		if len(layers[name]) == 0 {
			order = append(order, name)
		}
		layers[name] = append(layers[name], i)
	}
	for _, name := range order {
		problems = append(problems, c.divide(layers[name])...)
	}
	return problems
}

// divide gives the experiments of a layer their stretches.
func (c *Config) divide(members []int) []Problem {
	var problems []Problem
	said, open := 0.0, 0
	for _, i := range members {
		e := &c.Experiments[i]
		if e.Traffic > 0 {
			said += e.Traffic
		} else {
			open++
		}
		if o := &c.Experiments[members[0]]; !slices.Equal(o.AssignBy, e.AssignBy) {
			problems = append(problems, c.problem(experimentPath(i), fmt.Sprintf("is in one layer with %q, but assigns something else", o.Name), "give both the same assign_by: one unit could be in both else"))
		}
	}
	last := experimentPath(members[len(members)-1])
	switch {
	case said > 1+1e-9:
		for _, i := range members {
			if c.Experiments[i].Traffic > 0 { // so that the place is one that the file has
				last = experimentPath(i)
			}
		}
		return append(problems, c.problem(last+".traffic", "the experiments of its layer have "+plainShare(math.Round(said*1e9)/1e9)+" of the units together", "keep to 100%"))
	case open > 0 && said > 1-1e-9:
		return append(problems, c.problem(last, "the other experiments of its layer leave no units", "give each a traffic, together up to 100%"))
	}
	at := 0.0
	for _, i := range members {
		e := &c.Experiments[i]
		share := e.Traffic
		if share == 0 {
			share = (1 - said) / float64(open)
		}
		e.from, e.to = at, min(1, at+share)
		if e.to > 1-1e-9 {
			e.to = 1
		}
		at = e.to
	}
	return problems
}
