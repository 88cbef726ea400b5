package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"headrace/cmd/headrace/internal/chaos"
)

// playedChaos runs the command in this process and reads what -o json wrote.
func playedChaos(t *testing.T, args ...string) (rep chaos.Report, stderr string, code int) {
	t.Helper()
	c := root()
	var out, errs bytes.Buffer
	c.SetOut(&out)
	c.SetErr(&errs)
	c.SetArgs(append([]string{"chaos", "-o", "json"}, args...))
	err := c.ExecuteContext(t.Context())
	if err != nil {
		code = 1
		if ee, ok := errors.AsType[*exitError](err); ok {
			code = ee.code
		}
		fmt.Fprint(&errs, err)
	}
	if out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), &rep); err != nil {
			t.Fatalf("%v in %.200s", err, out.String())
		}
	}
	return rep, errs.String(), code
}

// playedUntil plays for longer and longer, until what a test is about has happened: how much is asked in a time is the machine's to say.
// What may never happen it says itself, of every play.
func playedUntil(t *testing.T, happened func(*chaos.Report) bool, args ...string) (rep chaos.Report, stderr string, code int) {
	t.Helper()
	for long := 1500 * time.Millisecond; ; long *= 2 {
		rep, stderr, code = playedChaos(t, append(args, "--for", long.String())...)
		if len(rep.Groups) == 0 {
			t.Fatalf("exit code %d, and no report: %s", code, stderr)
		}
		if cut := rep.Groups[0].Cut + rep.Groups[1].Cut + rep.Groups[2].Cut; cut+rep.Lost+rep.Doubled+rep.Altered+rep.Wrong > 0 {
			t.Errorf("%d silent cuts, %d tokens lost, %d doubled, %d altered: %+v", cut, rep.Lost, rep.Doubled, rep.Altered, rep.Problems)
		}
		if happened(&rep) || t.Failed() {
			return rep, stderr, code
		}
		if long > 40*time.Second {
			t.Fatalf("exit code %d (%s), and it has not happened within %v: %+v", code, stderr, long, rep)
		}
	}
}

// own writes a scenario of two hosts.
func own(t *testing.T, more string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "own.yaml")
	text := "name: own\nstreams: 12\nspeed: 4\ndown: 400ms\nevery: 300ms\nkeep: 1\nhosts:\n  - {name: spot, count: 2}\n" + more
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestChaosWithoutFaults meets every target, in the clear and over TLS.
func TestChaosWithoutFaults(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{"plain": nil, "TLS": {"--tls"}} {
		t.Run(name, func(t *testing.T) {
			asked := func(r *chaos.Report) bool {
				return r.Groups[0].Complete >= 12 && r.Groups[1].Complete > 0 && r.Groups[2].Complete > 0 && r.Tokens >= 500 && r.Gaps.N >= 500
			}
			rep, errs, code := playedUntil(t, asked, append(args, "--scenario", own(t, ""))...)
			if code != 0 || len(rep.Problems) > 0 || rep.TLS != (name == "TLS") {
				t.Fatalf("exit code %d: %s\n%+v", code, errs, rep.Problems)
			}
		})
	}
}

// TestChaosKillsAreSeen takes hosts away: what breaks is told of, and nothing of it is silent.
func TestChaosKillsAreSeen(t *testing.T) {
	t.Parallel()
	report := filepath.Join(t.TempDir(), "report.json")
	broke := func(r *chaos.Report) bool {
		n := 0
		for i := range r.Groups {
			n += r.Groups[i].Failed + r.Groups[i].Continued
		}
		return n > 0 && r.Outages > 0 && len(r.Attempts) > 0
	}
	rep, _, code := playedUntil(t, broke, "--scenario", own(t, "faults: [{do: kill}, {do: exit}]\n"), "--report", report)
	if missed := rep.Missed(); (code == 1) != (len(missed) > 0) {
		t.Errorf("exit code %d, missed %q", code, missed)
	}
	var again chaos.Report
	if b, err := os.ReadFile(report); err != nil || json.Unmarshal(b, &again) != nil || again.Tokens != rep.Tokens {
		t.Errorf("the report in the file is another: %v", err)
	}
}

// TestChaosByNumbers has answers go on by the numbers of their tokens: the flag reaches the gateway, and each token comes once all the same.
func TestChaosByNumbers(t *testing.T) {
	t.Parallel()
	exact := 0
	rep, _, _ := playedUntil(t, func(r *chaos.Report) bool { // a host is asked by numbers once a test has shown that it knows them
		exact = 0
		for i := range r.Groups {
			exact += r.Groups[i].Exact
		}
		return exact > 0
	}, "--token-ids", "--scenario", own(t, "traffic: {tokens: 40, stop: 0, bound: 0}\nfaults: [{do: engine, engine: [\"eof_stream,after=15,p=0.5\"]}]\n"))
	if !rep.TokenIDs {
		t.Error("the report does not say so")
	}
	if text := chaosText(&rep, 0); !strings.Contains(text, fmt.Sprintf("numbers of their tokens: %d of", exact)) {
		t.Error(text)
	}
}

func TestChaosCommandLine(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"scenario":       {[]string{"--scenario", "preemt"}, "no scenario"},
		"file":           {[]string{"--scenario", "./missing.yaml"}, "missing.yaml"},
		"output":         {[]string{"-o", "xml"}, "table or json"},
		"native twice":   {[]string{"--native", "--scenario", "all"}, "--native"},
		"streams":        {[]string{"--streams", "0"}, "--streams"},
		"hosts":          {[]string{"--hosts", "-1"}, "--hosts"},
		"plain share":    {[]string{"--plain-share", "NaN"}, "--plain-share"},
		"speed":          {[]string{"--speed", "0"}, "--speed"},
		"for":            {[]string{"--for", "0s"}, "--for"},
		"report nowhere": {[]string{"--report", "/no/such/folder/x.json"}, "no such folder"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, errs, code := playedChaos(t, tc.args...); code != 2 || !strings.Contains(errs, tc.want) {
				t.Errorf("exit code %d, %q; want 2 and %q", code, errs, tc.want)
			}
		})
	}
}

func TestChaosText(t *testing.T) {
	rep := chaos.Report{
		Scenario: "own", Hosts: 2, Streams: 3, Seconds: 65, Tokens: 7, Lost: 1, Outages: 2, Corpse: 1, Untold: 1, Faults: map[string]int{"kill": 2, "dark": 1},
		Groups:   []chaos.Group{{Name: chaos.FreeStreams, Answers: 4, Complete: 3, Failed: 1, Errors: map[string]int{"upstream_lost": 1}}},
		Problems: []chaos.Problem{{Request: "req_1", End: chaos.Complete, What: []string{"1 tokens lost"}}},
		Held:     map[string]int64{"static:spot": 2},
		Seams:    chaos.Spans{N: 1, P50: 0.2, P99: 0.2, Max: 0.2},
		Targets:  []chaos.Target{{Name: "silent cuts", Want: "0", Found: "1"}},
	}
	text := chaosText(&rep, 0)
	for _, want := range []string{"2 × kill, 1 × dark", "75.00", "1 upstream_lost", "1 lost", "200 ms", "away 2 times; 1 request was sent", "req_1", "After 1 of these times", "2 static:spot", "MISSED"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
}
