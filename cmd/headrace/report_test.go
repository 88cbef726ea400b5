package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"math"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"headrace/gateway/ledger"
	"headrace/gateway/ledger/books"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// example is the hour of docs/costs.md.
type example struct {
	t    *testing.T
	at   atomic.Int64
	b    *books.Books
	n    int
	stop func()
}

func (e *example) now() time.Time { return time.Unix(0, e.at.Load()) }

func newExample(t *testing.T, path string) *example {
	t.Helper()
	e := &example{t: t}
	e.at.Store(time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC).UnixNano())
	e.b = books.New(books.Options{Path: path, Flush: time.Hour, Keep: 720 * time.Hour, KeepSums: 8760 * time.Hour, Now: e.now})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() { defer close(done); _ = e.b.Run(ctx, e.prices) }()
	e.stop = func() { cancel(); <-done }
	t.Cleanup(e.stop)
	return e
}

func (e *example) prices() []books.Price {
	return []books.Price{
		{Host: "vast:1", Provider: "vast", Served: "llama-70b", Basis: "per_hour", USD: 0.90, Out: 1.133, Source: "vast dph_total", At: e.now()},
		{Host: "runpod:r", Provider: "runpod", Served: "llama-70b", Basis: "per_worker_second", USD: 2.736, Out: 4.2, Source: "runpod catalog", At: e.now()},
	}
}

// pass lets time go by up to a minute of the hour.
func (e *example) pass(minute int) {
	e.t.Helper()
	to := time.Date(2026, 11, 28, 10, minute, 0, 0, time.UTC)
	for e.now().Before(to) {
		e.at.Add(int64(30 * time.Second))
		if err := e.b.Flush(e.t.Context()); err != nil {
			e.t.Fatal(err)
		}
	}
}

// answers are alike: each had a share of its host's time, and was expected to cost marginal dollars.
func (e *example) answers(n int, key, host string, basis endpoint.Basis, share time.Duration, usd, marginal float64, output int64) {
	provider, _, _ := strings.Cut(host, ":")
	for range n {
		e.n++
		a := ledger.Attempt{
			Endpoint: endpoint.ID(host), Provider: provider, Served: "llama-70b", Class: outcome.Success, Status: 200, Duration: time.Minute, Output: output,
			USD: usd, USDKnown: true, Decision: router.Decision{MarginalUSD: marginal},
			Usage: ledger.Usage{Counted: true, Prompt: 500, Basis: basis, Share: share},
		}
		e.b.Record(&ledger.Record{
			ID: fmt.Sprint("req_", e.n), At: e.now(), Route: "/v1/chat/completions", Model: "llama", Known: true, Key: key, Class: outcome.Success, Status: 200, Tries: 1,
			Attempts: []ledger.Attempt{a}, Prompt: 500, Output: output, USD: usd, USDKnown: true, Duration: time.Minute,
		})
	}
}

// play is what happens in the hour.
func (e *example) play() {
	vast := endpoint.Endpoint{ID: "vast:1", Provider: "vast", State: endpoint.Ready, Price: endpoint.Price{Basis: endpoint.PerHour, USDPerHour: 0.90}}
	worker := endpoint.Endpoint{
		ID: "runpod:r", Provider: "runpod", State: endpoint.Ready, Tenure: endpoint.Serverless,
		Price: endpoint.Price{Basis: endpoint.PerWorkerSecond, USDPerWorkerSecond: 0.00076, ColdStart: 30 * time.Second},
	}
	fleet := func(n int) {
		worker.Workers = n
		e.b.Follow([]endpoint.Endpoint{vast, worker})
	}
	fleet(0)
	e.pass(30)
	e.answers(40, "team-a", "vast:1", endpoint.PerHour, 45*time.Second, 0.90/3600*45, 0.0005, 5000)
	e.answers(20, "team-b", "vast:1", endpoint.PerHour, 45*time.Second, 0.90/3600*45, 0.0005, 5000)
	fleet(1)
	e.pass(40)
	e.answers(9, "team-b", "runpod:r", endpoint.PerWorkerSecond, 40*time.Second, 0.00076*40, 0.0304, 2000)
	// One more that the Vast host had begun, and lost: the worker reads the prompt again.
	e.n++
	lost := ledger.Attempt{
		Endpoint: "vast:1", Provider: "vast", Served: "llama-70b", Class: outcome.Truncated, Status: 200, Output: 1000, USDKnown: true, Usage: ledger.Usage{Basis: endpoint.PerHour, Prompt: 500},
	}
	on := ledger.Attempt{
		Endpoint: "runpod:r", Provider: "runpod", Served: "llama-70b", Class: outcome.Success, Status: 200, Output: 1000, USD: 0.0304, USDKnown: true, Resumed: true,
		Decision: router.Decision{MarginalUSD: 0.0304}, Usage: ledger.Usage{Counted: true, Prompt: 1500, Basis: endpoint.PerWorkerSecond, Share: 40 * time.Second, PromptUSD: 0.0050},
	}
	e.b.Record(&ledger.Record{
		ID: "req_lost", At: e.now(), Model: "llama", Known: true, Key: "team-b", Class: outcome.Success, Status: 200, Tries: 2, Attempts: []ledger.Attempt{lost, on}, Resumes: 1,
		Prompt: 500, Output: 2000, USD: 0.0304, USDKnown: true,
	})
	fleet(0)
	e.pass(60)
}

func (e *example) report(by ...books.Dim) books.Report {
	e.t.Helper()
	p, err := e.b.Period(e.t.Context(), time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC), time.Date(2026, 11, 28, 11, 0, 0, 0, time.UTC))
	if err != nil {
		e.t.Fatal(err)
	}
	return p.Report(by, &books.ListPrice{In: 0.60, Cached: 0.60, Out: 0.90, Source: "ledger.list_price"})
}

// TestWorkedExample holds the example of docs/costs.md to what the code says.
func TestWorkedExample(t *testing.T) {
	e := newExample(t, "")
	e.play()
	r := e.report(books.ByKey, books.ByProvider)
	line := func(group ...string) *books.Line {
		for i := range r.Lines {
			if strings.Join(r.Lines[i].Group, " ") == strings.Join(group, " ") {
				return &r.Lines[i]
			}
		}
		t.Fatalf("no line %v in %+v", group, r.Lines)
		return nil
	}
	for _, tc := range []struct {
		group                              []string
		used, idle, allocated, marg, waste float64
		output                             int64
	}{
		{[]string{"team-a", "vast"}, 0.45, 0.15, 0.60, 0.02, 0, 200_000},
		{[]string{"team-b", "vast"}, 0.225, 0.075, 0.30, 0.01, 0, 101_000},
		{[]string{"team-b", "runpod"}, 0.304, 0.1748, 0.4788, 0.304, 0.005, 19_000},
	} {
		l := line(tc.group...)
		for what, v := range map[string][2]float64{
			"used": {l.Used(), tc.used}, "idle": {l.IdleUSD, tc.idle}, "allocated": {l.Allocated(), tc.allocated}, "marginal": {l.F[books.MarginalUSD], tc.marg},
			"wasted": {l.WastedUSD(), tc.waste}, "output": {float64(l.N[books.OutputTokens]), float64(tc.output)},
		} {
			if math.Abs(v[0]-v[1]) > 1e-9*(1+math.Abs(v[1])) {
				t.Errorf("%v: %s %v, want %v", tc.group, what, v[0], v[1])
			}
		}
	}
	if bill := 0.90 + 630*0.00076; math.Abs(r.Rented-bill) > 1e-9 || math.Abs(r.Total.Allocated()-bill) > 1e-9 {
		t.Errorf("hosts were paid $%v, requests were allocated $%v, the bills are $%v", r.Rented, r.Total.Allocated(), bill)
	}
	const doc, begin, end = "../../docs/costs.md", "<!-- example -->\n```\n", "```\n<!-- end -->"
	text, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	front, rest, ok := strings.Cut(string(text), begin)
	old, back, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no example between %q and %q", doc, begin, end)
	}
	got := reportText(&r)
	if *update {
		if err := os.WriteFile(doc, []byte(front+begin+got+end+back), 0o600); err != nil {
			t.Fatal(err)
		}
	} else if old != got {
		t.Errorf("%s has another example than the code (go test ./cmd/headrace -run TestWorkedExample -update):\n%s", doc, got)
	}
}

// run calls the report command.
func runReport(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	c := root()
	var b bytes.Buffer
	c.SetOut(&b)
	c.SetErr(t.Output())
	c.SetArgs(append([]string{"report"}, args...))
	err = c.ExecuteContext(t.Context())
	return b.String(), err
}

// TestReportReadsManyLedgers adds files and gateways up, in every form.
func TestReportReadsManyLedgers(t *testing.T) {
	dir := t.TempDir()
	one, two := newExample(t, filepath.Join(dir, "one.db")), newExample(t, "")
	one.play()
	two.play()
	srv := httptest.NewServer(two.b.Handler(nil))
	defer srv.Close()
	one.stop()
	span := []string{"--since", "2026-11-28T10:00", "--until", "2026-11-28T11:00", "--from", filepath.Join(dir, "one.db") + "," + srv.URL}

	out, err := runReport(t, append(span, "--by", "key", "-o", "csv")...)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(strings.NewReader(out)).ReadAll()
	if err != nil || len(rows) != 3 {
		t.Fatalf("%v:\n%s", err, out)
	}
	col := map[string]int{}
	for i, name := range rows[0] {
		col[name] = i
	}
	for _, row := range rows[1:] {
		want := map[string]string{"team-a": "80", "team-b": "60"}[row[col["key"]]]
		if row[col["requests"]] != want {
			t.Errorf("%s has %s requests, want %s", row[col["key"]], row[col["requests"]], want)
		}
	}

	out, err = runReport(t, append(span, "--by", "hour,host", "-o", "json")...)
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Rented  float64 `json:"rented_usd"`
		Ledgers []string
		Lines   []struct{ Group []string }
		Total   struct {
			Used      float64 `json:"used_usd"`
			Allocated float64 `json:"allocated_usd"`
		}
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	// Both watched the same hosts, whose hours are paid once.
	if len(r.Ledgers) != 2 || len(r.Lines) != 2 || r.Lines[0].Group[0] != "2026-11-28 10:00" || math.Abs(r.Rented-(0.90+630*0.00076)) > 1e-9 || math.Abs(r.Total.Used-2*0.979) > 1e-9 {
		t.Errorf("%s", out)
	}

	out, err = runReport(t, append(span, "--by", "day")...)
	if err != nil || !strings.Contains(out, "2026-11-28") || !strings.Contains(out, "2 ledgers") {
		t.Errorf("%v:\n%s", err, out)
	}
	t.Log("\n" + out)
	for _, bad := range [][]string{
		{"--by", "colour"},
		{"--since", "yesterday"},
		{"--since", "1h", "--until", "2h"},
		{"-o", "xml"},
		{"--bills", "--by", "key"},
		{"--from", filepath.Join(dir, "none.db")},
		{"--admin", "127.0.0.1:1"},
		{"--from", "http://127.0.0.1:1"},
	} {
		if out, err := runReport(t, bad...); err == nil || out != "" {
			t.Errorf("%v: %v, printed %q", bad, err, out)
		} else {
			t.Log(err)
		}
	}
}

// A month's report ends with the month, asked of a gateway and read from its file.
func TestReportEndsWithTheMonth(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	december := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	b := books.New(books.Options{Path: path, Flush: time.Hour, Now: func() time.Time { return december.Add(10 * time.Minute) }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = b.Run(ctx, nil) }()
	defer func() { cancel(); <-done }()
	for i, at := range []time.Time{december.Add(-time.Millisecond), december} {
		b.Record(&ledger.Record{ID: fmt.Sprint(i), At: at, Model: "m", Class: outcome.Success, Status: 200})
	}
	if err := b.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(b.Handler(nil))
	defer s.Close()
	for _, c := range []struct {
		name         string
		since, until time.Time
		want         int64
	}{
		{"November", december.AddDate(0, -1, 0), december, 1},
		{"December", december, december.AddDate(0, 1, 0), 1},
		{"both", december.AddDate(0, -1, 0), december.AddDate(0, 1, 0), 2},
		{"a moment of December", december.AddDate(0, -1, 0), december.Add(time.Millisecond), 2},
	} {
		asked, err := remote(ctx, adminAt(s.URL), c.since, c.until)
		if err != nil {
			t.Fatal(err)
		}
		file, err := local(path, c.since, c.until)
		if err != nil {
			t.Fatal(err)
		}
		r, l := asked.Report(nil, nil), file.Report(nil, nil)
		if got, has := r.Total.N[books.Requests], l.Total.N[books.Requests]; got != c.want || has != c.want {
			t.Errorf("%s: %d requests by the gateway, %d by its file, want %d", c.name, got, has, c.want)
		}
	}
}

// TestReportsSayTheSame has every number of the JSON in the CSV too, under its name, and what bills name in the table as well.
func TestReportsSayTheSame(t *testing.T) {
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	billed := 0.75
	bill := books.Bill{Account: "vast", From: at, To: at.Add(time.Hour), AsOf: at.Add(2 * time.Hour), Billed: 0.75, Ledger: 0.9, Hosts: 1, LeftOut: 0.125}
	p := books.Period{
		Since: at, Until: at.Add(time.Hour), Bills: []books.Bill{bill},
		Hours: []books.HostHour{{Hour: at.Unix(), Provider: "vast", Host: "vast:1", Seconds: 3600, Up: 3600, USD: 0.9, Billed: &billed}},
	}
	for i, key := range []string{"team-a", "team-b"} {
		r := books.Rollup{Cell: books.Cell{Hour: at.Unix(), Key: key, Model: "m", Provider: "vast", Host: "vast:1"}}
		for n := range r.N {
			r.N[n] = int64(100*i + n)
		}
		r.F[books.UsedPerHour], r.F[books.TTFTSeconds], r.F[books.MarginalUSD] = 0.25, 1.5, 0.01
		p.Rollups = append(p.Rollups, r)
	}
	r := p.Report([]books.Dim{books.ByKey}, nil)
	j, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var asJSON struct {
		Billed float64 `json:"billed_usd"`
		Lines  []map[string]any
		Bills  []map[string]any
	}
	if err := json.Unmarshal(j, &asJSON); err != nil {
		t.Fatal(err)
	}
	table := func(write func(*bytes.Buffer) error) (rows []map[string]string) {
		t.Helper()
		var b bytes.Buffer
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		all, err := csv.NewReader(&b).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range all[1:] {
			row := map[string]string{}
			for i, name := range all[0] {
				row[name] = rec[i]
			}
			rows = append(rows, row)
		}
		return rows
	}
	same := func(what string, rows []map[string]string, objects []map[string]any) {
		t.Helper()
		if len(rows) != len(objects) || len(rows) == 0 {
			t.Fatalf("%s: %d rows, %d objects", what, len(rows), len(objects))
		}
		for i, o := range objects {
			for name, v := range o {
				n, isNumber := v.(float64)
				if got := rows[i][name]; isNumber && got != exactly(n) {
					t.Errorf("%s %d: %s is %q, in JSON %v", what, i, name, got, v)
				}
			}
		}
	}
	rows := table(func(b *bytes.Buffer) error { return reportCSV(b, &r) })
	same("line", rows, asJSON.Lines)
	same("bill", table(func(b *bytes.Buffer) error { return reportBills(b, "csv", r.Bills) }), asJSON.Bills)
	if len(asJSON.Lines[0]) != len(rows[0]) || asJSON.Billed != 0.75 || rows[0]["billed_usd"] != "0.375" || rows[0]["wasted_refused_usd"] != "0" {
		t.Errorf("%d names in JSON, %d in CSV: %v", len(asJSON.Lines[0]), len(rows[0]), rows[0])
	}
	text := reportText(&r)
	for _, want := range []string{"as billed", "$0.38", "$0.75 is as billed", "$0.12 was billed for hosts and times"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if s := billsText(r.Bills); !strings.Contains(s, "vast") || !strings.Contains(s, "+20.0%") || !strings.Contains(s, "$0.12") {
		t.Errorf("%s", s)
	}
}

// Names that callers chose are neither orders to a terminal nor formulas of a spreadsheet.
func TestReportOfOddNames(t *testing.T) {
	p := books.Period{Rollups: []books.Rollup{{Cell: books.Cell{Model: "\x1b[2J"}}, {Cell: books.Cell{Model: "=1+1"}}, {Cell: books.Cell{Model: "ok/model"}}, {}}}
	r := p.Report([]books.Dim{books.ByModel}, nil)
	if s := reportText(&r); strings.Contains(s, "\x1b") || !strings.Contains(s, `"\x1b[2J"`) || !strings.Contains(s, "\nok/model ") {
		t.Errorf("%q", s)
	}
	var b bytes.Buffer
	if err := reportCSV(&b, &r); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\n'=1+1,", "\nok/model,", "\n-,"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}
