package telemetry

// Experiment is how an experiment stands, over all replicas as far as this one has heard.
type Experiment struct {
	Name      string
	State     string // of a closed set
	Decisions int64
	Arms      []ExperimentArm
}

// ExperimentArm is one of its arms. There are as many as the config names.
type ExperimentArm struct {
	Name                       string
	Share                      float64 // of the units, in force
	Units                      int
	Requests, Failed, OutOfArm int64
	Effects                    []Effect // none of the control
}

// Effect is an arm against the control by one figure, NaN where that is unknown: ratios less 1, or differences of shares.
type Effect struct {
	Figure          string
	Diff, Low, High float64
}

// collectExperiments tells how experiments stand.
func (m *Metrics) collectExperiments(to sink) {
	if m.opt.Sources.Experiments == nil {
		return
	}
	for _, e := range m.opt.Sources.Experiments() {
		to.number(experimentState, 1, e.Name, e.State)
		to.number(experimentDecisions, float64(e.Decisions), e.Name)
		for i := range e.Arms {
			a := &e.Arms[i]
			to.number(experimentShare, a.Share, e.Name, a.Name)
			to.number(experimentUnits, float64(a.Units), e.Name, a.Name)
			to.number(experimentRequests, float64(a.Requests), e.Name, a.Name, "all")
			to.number(experimentRequests, float64(a.Failed), e.Name, a.Name, "failed")
			to.number(experimentRequests, float64(a.OutOfArm), e.Name, a.Name, "out_of_arm")
			for _, f := range a.Effects {
				maybe(to, experimentEffect, &f.Diff, e.Name, a.Name, f.Figure, "estimate")
				maybe(to, experimentEffect, &f.Low, e.Name, a.Name, f.Figure, "low")
				maybe(to, experimentEffect, &f.High, e.Name, a.Name, f.Figure, "high")
			}
		}
	}
}
