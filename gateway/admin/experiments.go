package admin

import (
	"errors"
	"net/http"

	"headrace/gateway/experiments"
	"headrace/router/experiment"
	"headrace/router/experiment/report"
)

// experimentRoutes are for the experiments of the config.
func (o *Options) experimentRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /admin/v1/experiments", func(w http.ResponseWriter, r *http.Request) {
		write(w, http.StatusOK, map[string]any{"experiments": o.Experiments.List(r.Context())})
	})
	mux.HandleFunc("GET /admin/v1/experiments/{name}", func(w http.ResponseWriter, r *http.Request) {
		v, err := o.Experiments.Show(r.Context(), r.PathValue("name"))
		o.answerExperiment(w, v, err)
	})
	mux.HandleFunc("GET /admin/v1/experiments/{name}/report", o.experimentReport)
	mux.HandleFunc("POST /admin/v1/experiments/{name}/feedback", o.feedback)
	for _, c := range []experiment.Command{experiment.Start, experiment.Pause, experiment.Resume, experiment.Promote, experiment.Abort} {
		mux.HandleFunc("POST /admin/v1/experiments/{name}/"+string(c), func(w http.ResponseWriter, r *http.Request) {
			var ask struct {
				Arm string `json:"arm"`
			}
			if !readBody(w, r, &ask, `{"arm": "canary"} to promote one of several arms, else nothing`) {
				return
			}
			if ask.Arm != "" && c != experiment.Promote {
				fail(w, http.StatusBadRequest, "invalid_body", "Only promote takes an arm; "+string(c)+" is for the whole experiment.")
				return
			}
			v, err := o.Experiments.Apply(r.Context(), r.PathValue("name"), c, ask.Arm)
			o.answerExperiment(w, v, err)
		})
	}
}

func (o *Options) answerExperiment(w http.ResponseWriter, v experiments.View, err error) {
	if err != nil {
		experimentFailed(w, err)
		return
	}
	answer := map[string]any{"experiment": v}
	if o.Shadow != nil {
		answer["shadow"] = o.Shadow(v.Name) // null without one
	}
	write(w, http.StatusOK, answer)
}

// experimentFailed says why not.
func experimentFailed(w http.ResponseWriter, err error) {
	status, code := http.StatusInternalServerError, "internal_error"
	switch {
	case errors.Is(err, experiments.ErrUnknown):
		status, code = http.StatusNotFound, "experiment_not_found"
	case errors.Is(err, experiment.ErrState):
		status, code = http.StatusConflict, "experiment_state"
	case errors.Is(err, experiment.ErrArm):
		status, code = http.StatusBadRequest, "invalid_arm"
	case errors.Is(err, experiments.ErrFeedback):
		status, code = http.StatusBadRequest, "invalid_feedback"
	case errors.Is(err, experiments.ErrSilent):
		status, code = http.StatusServiceUnavailable, "state_unavailable"
	}
	fail(w, status, code, err.Error()+".")
}

// experimentReport answers with the report as JSON, or as a page or text by format=html and format=text.
func (o *Options) experimentReport(w http.ResponseWriter, r *http.Request) {
	rep, err := o.Experiments.Report(r.Context(), r.PathValue("name"))
	if err != nil {
		experimentFailed(w, err)
		return
	}
	rep.Version = o.Version
	if o.Shadow != nil {
		rep.Shadow = o.Shadow(rep.Name)
	}
	switch r.URL.Query().Get("format") {
	case "", "json":
		write(w, http.StatusOK, map[string]any{"report": rep})
	case "html":
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		_ = report.WriteHTML(w, rep) // the reader has left: nobody to tell
	case "text":
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		_ = report.WriteText(w, rep) // likewise
	default:
		fail(w, http.StatusBadRequest, "invalid_format", "format must be json, html or text.")
	}
}

// feedback takes in what somebody says of an answer.
func (o *Options) feedback(w http.ResponseWriter, r *http.Request) {
	var f experiments.Feedback
	if !readBody(w, r, &f, `{"request_id": "req_…", "score": 1}, or {"unit": "user-7", "score": 0.5}`) {
		return
	}
	arm, err := o.Experiments.Feedback(r.Context(), r.PathValue("name"), f)
	if err != nil {
		experimentFailed(w, err)
		return
	}
	write(w, http.StatusOK, map[string]any{"experiment": r.PathValue("name"), "arm": arm})
}
