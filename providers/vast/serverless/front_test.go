package serverless_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"headrace/providers/vast/serverless"
	"headrace/router/endpoint"
)

// front serves a translator as the gateway's forwarder does; reports are where its requests leave theirs.
type front struct {
	*httptest.Server
	reports chan *endpoint.Report
}

func (f *fake) front(o serverless.Options, ep endpoint.Endpoint) (*front, *serverless.Provider) {
	f.t.Helper()
	p := serverless.New(o)
	h := p.Handler(ep)
	fr := &front{reports: make(chan *endpoint.Report, 1000)}
	fr.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rep := &endpoint.Report{}
		fr.reports <- rep
		h.ServeHTTP(w, r.WithContext(endpoint.WithReport(r.Context(), rep)))
	}))
	fr.Config.ErrorLog = log.New(io.Discard, "", 0)
	fr.Start()
	f.t.Cleanup(fr.Close)
	return fr, p
}

type result struct {
	status int
	header http.Header
	body   string
	err    error
	report endpoint.WorkerReport
	told   bool // a report was there
}

func (fr *front) post(t *testing.T, ctx context.Context, body string) (r result) { //nolint:revive // as all helpers: t first
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, fr.URL+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := fr.Client().Do(req)
	if err != nil {
		return result{err: err}
	}
	b, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	r = result{status: res.StatusCode, header: res.Header, body: string(b), err: err}
	r.report, r.told = (<-fr.reports).Take()
	if s := fmt.Sprint(r.header, r.body); strings.Contains(s, accountKey) || strings.Contains(s, endpointKey) {
		t.Errorf("the answer shows a key: %s", s)
	}
	return r
}

func (r result) code() string {
	var m struct {
		Error struct{ Message, Type, Code string }
	}
	if json.Unmarshal([]byte(r.body), &m) != nil || m.Error.Message == "" || m.Error.Type == "" {
		return "no error of OpenAI's shape: " + r.body
	}
	return m.Error.Code
}
