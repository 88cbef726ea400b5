package main

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"headrace/gateway/config"
	"headrace/gateway/experiments"
	"headrace/router"
	"headrace/router/experiment"
	"headrace/router/experiment/report"
	"headrace/router/experiment/stats"
	"headrace/telemetry"
)

// trials are the experiments of a config.
func trials(c *config.Config) []experiments.Trial {
	ts := make([]experiments.Trial, 0, len(c.Experiments))
	for i := range c.Experiments {
		e := &c.Experiments[i]
		s := &experiment.Spec{
			Name: e.Name, Model: e.Model, Layer: e.Layer, Steps: e.Steps, MinTime: e.MinTime, MinUnits: e.MinUnits, MaxTime: e.MaxTime,
			Wanted: experiment.Wanted(e.State), Spill: e.Spill,
		}
		s.From, s.To = e.Slice()
		s.Start, s.End = e.Span()
		for _, u := range e.AssignBy {
			unit, _ := experiment.ParseUnit(u) // the config knows them
			s.Units = append(s.Units, unit)
		}
		s.Arms = append(s.Arms, arm(e, e.Control))
		for _, name := range slices.Sorted(maps.Keys(e.Arms)) {
			if name != e.Control {
				s.Arms = append(s.Arms, arm(e, name))
			}
		}
		if w := e.Shadow; w.Arm != "" {
			_, i := s.Arm(w.Arm)
			s.Shadow = experiment.Shadow{Arm: i, Share: w.Share, MaxTokens: w.MaxTokens, Paid: w.Paid}
		}
		s.Ready()
		ts = append(ts, experiments.Trial{Spec: s, Alpha: e.Alpha, Guardrails: guardrails(e)})
	}
	return ts
}

func arm(e *config.Experiment, name string) experiment.Arm {
	c := e.Arms[name]
	a := experiment.Arm{Name: name, Model: c.Model, Policy: c.Policy, OnPreemption: c.OnPreemption, Hedge: c.Hedge, Share: c.Weight}
	if h := c.Hosts; h != nil {
		a.Hosts = &experiment.Selector{
			Host: h.ID, Provider: h.Provider, Served: h.Served, GPU: h.GPU, Region: h.Region, Price: h.Price, Tenure: h.Tenure, Labels: h.Labels,
		}
	}
	if name == e.Control {
		a.Share = 0
	}
	return a
}

// guardrails are the margins of a config, which says how much more or less a figure may be; statistics want to know how much worse. What
// an operator allows is tolerated as well: harm within it ends nothing.
func guardrails(e *config.Experiment) []stats.Guardrail {
	var gs []stats.Guardrail
	if g := e.Guardrails; g == nil {
		gs = stats.Guardrails()
	} else {
		for _, l := range []struct {
			metric stats.Metric
			margin *float64
		}{
			{stats.Failed, g.ErrorRate},
			{stats.Missed, g.SLOMissed},
			{stats.TTFT, g.TTFT},
			{stats.TTFT, g.TTFTP95},
			{stats.TPS, g.TPS},
			{stats.TPS, g.TPSP50},
			{stats.USD, g.USDPerMTok},
			{stats.Truncated, g.Truncated},
			{stats.Score, g.Score},
		} {
			if l.margin != nil {
				m := math.Abs(*l.margin)
				gs = append(gs, stats.Guardrail{Metric: l.metric, Margin: m, Tolerate: m, Share: stats.ShareOf(l.metric)})
			}
		}
	}
	if e.Goal == "" {
		return gs
	}
	var goal stats.Metric
	if goal.UnmarshalText([]byte(e.Goal)) != nil {
		panic("BUG: statistics know no " + e.Goal)
	}
	gs = slices.DeleteFunc(gs, func(g stats.Guardrail) bool { return g.Metric == goal })
	return append(gs, stats.Guardrail{Metric: goal, Goal: true, Share: stats.ShareOf(goal)})
}

// storeFirst is how long the start waits to hear how experiments stand.
const storeFirst = 3 * time.Second

// startExperiments hears how they stand, before the first request.
func (a *app) startExperiments(ctx context.Context) {
	c, cancel := context.WithTimeout(ctx, storeFirst)
	defer cancel()
	a.trying.Load(c)
	a.warn(a.cfg)
}

// warn logs what a config says and may not mean.
func (a *app) warn(c *config.Config) {
	for _, w := range warnings(c) {
		a.log.Warn("the config may not say what is meant", "warning", w)
	}
}

// warnings are what a config says and may not mean.
func warnings(c *config.Config) []string { return append(c.Warnings(), unpriced(c)...) }

// unpriced are the guardrails on dollars that no request of an arm can be held to, for want of a price: who asked for one has the arm wait for it
// for ever.
func unpriced(c *config.Config) (ws []string) {
	ts := trials(c)
	if len(ts) == 0 {
		return nil
	}
	r := router.New(router.Options{Now: time.Now})
	eps := c.StaticEndpoints(time.Now())
	r.Update(eps, rules(c), experiments.Pools(ts)...)
	s := r.Snapshot()
	for i, t := range ts {
		g := slices.IndexFunc(t.Guardrails, func(g stats.Guardrail) bool { return g.Metric == stats.USD && !g.Optional })
		if g < 0 {
			continue
		}
		key := "guardrails.usd_per_mtok"
		if t.Guardrails[g].Goal {
			key = "goal"
		}
		for k := range t.Spec.Arms {
			arm, hosts, priced := &t.Spec.Arms[k], []string{}, false
			for j := range eps {
				if p := &eps[j].Price; s.InPool(arm.Pool(), eps[j].ID) {
					hosts = append(hosts, string(eps[j].ID))
					priced = priced || p.USDPerHour+p.USDPerWorkerSecond+p.USDPerMTokOut+p.USDPerMTokIn > 0
				}
			}
			if len(hosts) > 0 && !priced {
				ws = append(ws, fmt.Sprintf("experiments[%d].%s: no host of %s that the config names has a price (%s), and no arm is promoted by dollars that nobody knows: "+
					"give them a price, or leave it out", i, key, arm.Name, strings.Join(hosts, ", ")))
			}
		}
	}
	return ws
}

// pools are those of the experiments in force. The caller holds mu.
func (a *app) pools() []router.Pool { return experiments.Pools(a.trials) }

// experimentFigures are what metrics tell of them.
func (a *app) experimentFigures() []telemetry.Experiment {
	var es []telemetry.Experiment
	for _, v := range a.trying.Figures() {
		e := telemetry.Experiment{Name: v.Name, State: string(v.State), Decisions: v.Made}
		for i, arm := range v.Arms {
			f := telemetry.ExperimentArm{Name: arm.Name, Share: arm.Share}
			if v.Verdict != nil {
				s := &v.Verdict.Arms[i]
				f.Units, f.Requests, f.Failed, f.OutOfArm = s.Units, s.Requests, s.Failed, s.OutOfArm
				for k := range s.Estimates {
					x := &s.Estimates[k]
					f.Effects = append(f.Effects, telemetry.Effect{Figure: x.Metric.String(), Diff: float64(x.Diff), Low: float64(x.Low), High: float64(x.High)})
				}
			}
			e.Arms = append(e.Arms, f)
		}
		es = append(es, e)
	}
	return es
}

// shadow is what came of an experiment's copies, nil when it made none.
func (a *app) shadow(name string) *report.Shadow {
	for _, c := range a.server.Shadows() {
		if c.Experiment == name {
			return &c.Shadow
		}
	}
	return nil
}
