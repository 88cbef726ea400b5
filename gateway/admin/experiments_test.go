package admin

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"headrace/gateway/experiments"
	"headrace/gateway/ledger"
	"headrace/gateway/state"
	"headrace/router/endpoint"
	"headrace/router/experiment"
	"headrace/router/experiment/report"
)

// TestExperiments answers for experiments, and says what is wrong with what is asked.
func TestExperiments(t *testing.T) {
	s := &experiment.Spec{
		Name: "e", Model: "m", Units: []experiment.Unit{{Kind: experiment.ByUser}}, Arms: []experiment.Arm{{Name: "control"}, {Name: "a", Share: 1}, {Name: "b", Share: 1}},
		Steps: []float64{0.5}, MinTime: time.Hour, MinUnits: 10,
	}
	s.Ready()
	m := experiments.New(experiments.Options{Store: state.NewMemory(), Host: func(endpoint.ID) *endpoint.Endpoint { return nil }})
	m.Configure([]experiments.Trial{{Spec: s, Alpha: 0.05}})
	m.Load(t.Context())
	m.Observe(&ledger.Record{ID: "req_1", Arm: "e/a", Unit: 1, Status: 200, Tries: 1})
	mux := http.NewServeMux()
	copies := &report.Shadow{Experiment: "e", Arm: "a", Copied: 12, USD: 0.25}
	(&Options{Experiments: m, Shadow: func(name string) *report.Shadow {
		if name != "e" {
			return nil
		}
		return copies
	}}).experimentRoutes(mux)
	for _, tc := range []struct {
		ask    string // METHOD PATH BODY
		status int
		holds  string
	}{
		{"GET ", 200, `"name":"e"`},
		{"GET /e", 200, `"shares":[0.5,0.25,0.25]`},
		{"GET /e", 200, `"shadow":{"experiment":"e","arm":"a","copied":12,"no_room":0,"failed":0,"output_tokens":0,"usd":0.25,`},
		{"GET /e/report", 200, `"shadow":{"experiment":"e","arm":"a","copied":12,`},
		{"GET /e/report?format=text", 200, "Copies that nobody waited for"},
		{"GET /e/report?format=html", 200, "<td class=\"fig\">$0.25</td>"},
		{"GET /f", 404, "experiment_not_found"},
		{"GET /e/report", 200, `"arms":[{"name":"control","what":"all hosts"}`},
		{"GET /e/report?format=html", 200, "<html"},
		{"GET /e/report?format=text", 200, "control"},
		{"GET /e/report?format=pdf", 400, "invalid_format"},
		{"GET /f/report", 404, "experiment_not_found"},
		{`POST /e/feedback {"request_id": "req_1", "score": 0.5}`, 200, `"arm":"a"`},
		{`POST /e/feedback {"unit": "u", "score": 0.5}`, 400, "no request of that unit"},
		{`POST /e/feedback {"unit": "u"}`, 400, "score must be a number"},
		{`POST /e/feedback {"units": "u"}`, 400, "invalid_body"},
		{`POST /f/feedback {"unit": "u", "score": 1}`, 404, "experiment_not_found"},
		{"POST /e/resume", 409, "experiment_state"},
		{"POST /e/pause", 200, `"state":"paused"`},
		{`POST /e/resume {"arm": "a"}`, 400, "Only promote takes an arm"},
		{"POST /e/resume", 200, `"state":"running"`},
		{"POST /e/promote", 400, "invalid_arm"},
		{`POST /e/promote {"arm": "c"}`, 400, "invalid_arm"},
		{`POST /e/promote {"arm": "b"}`, 200, `"state":"promoted"`},
		{"POST /e/abort", 200, `"state":"aborted"`},
		{"POST /e/start", 200, `"run":2`},
		{"POST /f/abort", 404, "experiment_not_found"},
	} {
		method, rest, _ := strings.Cut(tc.ask, " ")
		path, body, _ := strings.Cut(rest, " ")
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, "/admin/v1/experiments"+path, strings.NewReader(body)))
		got, _ := io.ReadAll(w.Body)
		if w.Code != tc.status || !strings.Contains(string(got), tc.holds) {
			t.Errorf("%s: %d %s, want %d with %s", tc.ask, w.Code, got, tc.status, tc.holds)
		}
	}
}
