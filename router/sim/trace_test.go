package sim

import (
	"errors"
	"flag"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

var (
	traceFile = flag.String("trace", "testdata/azure-conv.csv", "CSV of requests that TestReplay replays")
	spotFile  = flag.String("spot", "", "JSON of spot instances that its hosts follow")
)

func TestReadCalls(t *testing.T) {
	for name, tc := range map[string]struct {
		in   string
		want []Call
	}{
		"Azure's":                        {"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n", []Call{{0, 374, 44, ""}, {4.314579, 396, 109, ""}}},
		"Azure's of 2024, with a zone":   {"TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01.009930+00:00,1,0\n", []Call{{0, 2162, 5, ""}, {1, 1, 0, ""}}},
		"seconds without a header":       {"10,5,7\n12.5,6,8\n", []Call{{0, 5, 7, ""}, {2.5, 6, 8, ""}}},
		"with a session":                 {"0,5,7,a\n1,6,8,b\n", []Call{{0, 5, 7, "a"}, {1, 6, 8, "b"}}},
		"RFC 3339 among other columns":   {"model,output_tokens,Prompt Tokens,time,session id\nm,1,2,2026-01-01T00:00:00Z,x\nm,3,4,2026-01-01T00:01:00+00:00,\n", []Call{{0, 2, 1, "x"}, {60, 4, 3, ""}}},
		"rows that are not by time":      {"5,1,1\n3,2,2\n4,3,3\n", []Call{{0, 2, 2, ""}, {1, 3, 3, ""}, {2, 1, 1, ""}}},
		"byte order mark, CRLF, no end":  {"\ufefftime,prompt,output\r\n1,2,3", []Call{{0, 2, 3, ""}}},
		"quotes and blanks before words": {"0, 5, 7, \"a,b\"\n", []Call{{0, 5, 7, "a,b"}}},
		"blanks behind words":            {"time ,prompt,output\n1 , 374 ,44 \n", []Call{{0, 374, 44, ""}}},
		"empty rows of many kinds":       {"\n   \n,,\ntime,prompt,output\n  \n,,\n1,2,3\n\n , ,\n2,3,4\n,,\n", []Call{{0, 2, 3, ""}, {1, 3, 4, ""}}},
		"semicolons":                     {"timestamp;prompt_tokens;completion_tokens\r\n0;374;44\r\n1;3;4\r\n", []Call{{0, 374, 44, ""}, {1, 3, 4, ""}}},
		"tabs, and commas in a name":     {"timestamp\tprompt_tokens\tcompletion_tokens\tsession\n0\t374\t44\ta,b,c\n", []Call{{0, 374, 44, "a,b,c"}}},
		"epoch in seconds":               {"1700158546.5,374,44\n1700158548,3,4\n", []Call{{0, 374, 44, ""}, {1.5, 3, 4, ""}}},
		"in milliseconds":                {"1700158546680,374,44\n1700158548180,3,4\n", []Call{{0, 374, 44, ""}, {1.5, 3, 4, ""}}},
		"in microseconds":                {"1700158546680000,374,44\n1700158548180000,3,4\n", []Call{{0, 374, 44, ""}, {1.5, 3, 4, ""}}},
		"in nanoseconds":                 {"1700158546680000000,374,44\n1700158548180000000,3,4\n", []Call{{0, 374, 44, ""}, {1.5, 3, 4, ""}}},
		"milliseconds by their name":     {"timestamp_ms,input_length,output_length\n0,374,44\n1500,3,4\n", []Call{{0, 374, 44, ""}, {1.5, 3, 4, ""}}},
		"and in brackets":                {"Arrival time (ms),num_prompt_tokens,num_output_tokens\n500,374,44\n2000,3,4\n", []Call{{0, 374, 44, ""}, {1.5, 3, 4, ""}}},
		"seconds by their name":          {"Timestamp (s),Request tokens,Response tokens,Total tokens,Session ID\n5,472,18,490,a\n45,1087,230,1317,a\n", []Call{{0, 472, 18, "a"}, {40, 1087, 230, "a"}}},
		"tokens that a table made real":  {"1,374.0,44.0\n2,3e2,1\n", []Call{{0, 374, 44, ""}, {1, 300, 1, ""}}},
		"a zone in letters":              {"time,prompt,output\n2023-11-16 18:15:46.68 UTC,374,44\n2023-11-16 18:15:47.68 UTC,3,4\n", []Call{{0, 374, 44, ""}, {1, 3, 4, ""}}},
		"a zone without a colon":         {"time,prompt,output\n2023-11-16T18:15:46+0000,374,44\n2023-11-16T19:15:47+0100,3,4\n", []Call{{0, 374, 44, ""}, {1, 3, 4, ""}}},
		"minutes, and slashes":           {"time,prompt,output\n2023/11/16 18:15,374,44\n2023/11/16 18:16:30,3,4\n", []Call{{0, 374, 44, ""}, {90, 3, 4, ""}}},
		"texts beside their tokens":      {"prompt,output,prompt_tokens,output_tokens,arrived_at,user,session\nhi,ho,3,4,7,u,s\n", []Call{{0, 3, 4, "s"}}},
		"a user for a session":           {"when,tokens_in,tokens_out,user_id\n7,3,4,u\n", []Call{{0, 3, 4, "u"}}},
	} {
		got, err := ReadCalls(iotest.OneByteReader(strings.NewReader(tc.in)))
		same := slices.EqualFunc(got, tc.want, func(a, b Call) bool {
			return math.Abs(a.At-b.At) < 1e-6 && a.Prompt == b.Prompt && a.Output == b.Output && a.Session == b.Session
		})
		if err != nil || !same {
			t.Errorf("%s: %v, %v, want %v", name, got, err, tc.want)
		}
	}
}

func TestReadCallsRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		in   string
		line int
		says string
	}{
		"nothing":                      {"", 0, "no requests"},
		"a header alone":               {"time,prompt,output\n", 0, "no requests"},
		"a header that lacks":          {"time,prompt\n1,2\n", 1, `names no output tokens ("time", "prompt"): call one of its columns output_tokens`},
		"a header without a time":      {"at what time,prompt_tokens,output_tokens\n1,2,3\n", 1, "call one of its columns timestamp"},
		"a column that is there twice": {"time,prompt_tokens,output,PromptTokens\n", 1, "columns 2 and 4 are both"},
		"an endless time":              {"1,2,3\ninf,2,3\n", 2, "out of range"},
		"a column twice":               {"time,prompt,output,input\n", 1, "columns 2 and 4 are both"},
		"words":                        {"a,b,c\n", 1, `neither a header`},
		"too few columns":              {"1,2\n", 1, "2 columns without a header"},
		"a row too short":              {"time,prompt,output\n1,2,3\n1,2\n", 3, "wrong number of fields"},
		"no number":                    {"1,2,3\n2,x,3\n", 2, `prompt tokens are "x"`},
		"fewer than no tokens":         {"1,2,3\n\n2,2,-3\n", 3, `output tokens are "-3"`},
		"far too many":                 {"1,2,99999999999\n", 1, "output tokens"},
		"a part of a token":            {"1,2.5,3\n", 1, "prompt tokens"},
		"no time":                      {"1,2,3\nsoon,2,3\n", 2, `time "soon"`},
		"not a number for time":        {"1,2,3\nNaN,2,3\n", 2, "out of range"},
		"seconds and dates":            {"1,2,3\n2026-01-01T00:00:00Z,2,3\n", 2, "some times are dates"},
		"an open quote":                {"1,2,3\n\"2,2,3\n", 2, "quote"},
		"a quote within a field":       {"1,2,3\n2,2\"2,3\n", 2, "quote"},
	} {
		got, err := ReadCalls(strings.NewReader(tc.in))
		if err == nil {
			t.Errorf("%s: read as %v", name, got)
			continue
		}
		line := 0
		if e, ok := errors.AsType[*LineError](err); ok {
			line = e.Line
		}
		if line != tc.line || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %q at line %d, want %q at line %d", name, err, line, tc.says, tc.line)
		}
	}
	broken := errors.New("disk on fire")
	if _, err := ReadCalls(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("a reader's error becomes %v", err)
	}
}

func TestReadSpot(t *testing.T) {
	got, err := ReadSpot(strings.NewReader(`{"metadata": {"gap_seconds": 32, "zone": "x"}, "data": [0, 1, 4]}`))
	if err != nil || got.Gap != 32 || !slices.Equal(got.Held, []int{0, 1, 4}) {
		t.Errorf("read %v, %v", got, err)
	}
	got, err = ReadSpot(strings.NewReader("\ufeff{\"metadata\": {\"gap_seconds\": 600.0},\r\n\"data\": [1.0, 0.0, 2]}\r\n"))
	if err != nil || got.Gap != 600 || !slices.Equal(got.Held, []int{1, 0, 2}) {
		t.Errorf("with a byte order mark and a point in its numbers: read %v, %v", got, err)
	}
	for in, want := range map[string]string{
		``:    "line 1: unexpected end",
		`[]`:  "line 1: json: cannot unmarshal array",
		"{\n": "line 2: unexpected end",
		"{\"metadata\": {\"gap_seconds\": 1},\n\"data\": [1,\nx]}": "line 3: invalid character",
		"{\"metadata\": {\"gap_seconds\": 1},\n\"data\": [\"x\"]}": "line 2: json: cannot unmarshal string",
		`{"metadata": {"gap_seconds": 1}, "data": [1, 1.5]}`:       "data[1] is 1.5, want a whole number",
		`{"metadata": {"gap_seconds": 1}, "data": [1e300]}`:        "data[0] is 1e+300",
		`{"data": [1]}`: "gap_seconds is 0",
		`{"metadata": {"gap_seconds": -1}, "data": [1]}`:    "gap_seconds is -1",
		`{"metadata": {"gap_seconds": 1}, "data": []}`:      "data is empty",
		`{"metadata": {"gap_seconds": 1}, "data": [1, -1]}`: "data[1] is -1",
		`{"metadata": {"gap_seconds": 1}, "data": [1]} {}`:  "line 1: invalid character",
	} {
		if _, err := ReadSpot(strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
	broken := errors.New("disk on fire")
	if _, err := ReadSpot(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("a reader's error becomes %v", err)
	}
}

// TestReplay runs real requests on hosts that live and die as real ones did.
func TestReplay(t *testing.T) {
	f, err := os.Open(*traceFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	calls, err := ReadCalls(f)
	if err != nil {
		t.Fatal(err)
	}
	s := scenario(t, "S1")
	s.Hours, s.Load, s.Faults = 0.5, Load{Trace: calls}, Faults{Spot: []Spot{{Gap: 600, Held: []int{1, 0, 2}}}}
	if *spotFile != "" {
		g, err := os.Open(*spotFile)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		spot, err := ReadSpot(g)
		if err != nil {
			t.Fatal(err)
		}
		s.Hours, s.Faults.Spot = 3, []Spot{spot}
	}
	rep, err := Suite(t.Context(), SuiteOptions{Scenarios: []Scenario{s}, Policies: []Policy{policy(t, Brain), policy(t, Oracle), policy(t, "least-connections")}, Seeds: []uint64{1}})
	if err != nil {
		t.Fatal(err)
	}
	table(t, &rep)
	r := &rep.Cells[0].Runs[0]
	span := calls[len(calls)-1].At * float64(len(calls)) / float64(len(calls)-1)
	if want := s.Hours * 3600 / span * float64(len(calls)); math.Abs(float64(r.Requests)-want) > 0.1*want+5 {
		t.Errorf("%d requests, want about %.0f: %d every %.0f s", r.Requests, want, len(calls), span)
	}
	if *spotFile != "" {
		return
	}
	for i, want := range []int{1, 1, 1, 1, 1} { // instance 0 goes in the second tick; instance 1 is not there before the third
		if got := r.Hosts[i].Preemptions; got != want {
			t.Errorf("host %s went %d times, want %d", r.Hosts[i].Name, got, want)
		}
	}
	if a, b := r.Hosts[0].Down, r.Hosts[1].Down; math.Abs(a-600) > 1 || math.Abs(b-1200) > 1 {
		t.Errorf("instances were away %.0f and %.0f s, want 600 and 1200", a, b)
	}
}

func TestReplayIsStretched(t *testing.T) {
	slow(t)
	s := scenario(t, "S3")
	s.Hours, s.Load = 1, Load{PerSecond: 0.5, Trace: []Call{{At: 0, Prompt: 10, Output: 20, Session: "a"}, {At: 5, Prompt: 40, Output: 20, Session: "a"}, {At: 10, Prompt: 10, Output: 20}}}
	r := run(t, s, Brain, 1)
	if r.Requests < 1790 || r.Requests > 1810 {
		t.Errorf("%d requests in an hour at 0.5 a second", r.Requests)
	}
	one := s
	one.Load = Load{Trace: s.Load.Trace[:1]} // has no span to be repeated after
	if got := run(t, one, Brain, 1).Requests; got != 1 {
		t.Errorf("a trace of one request became %d", got)
	}
}

func FuzzReadCalls(f *testing.F) {
	f.Add("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n")
	f.Add("1,2,3,s\n0,5,6,s\n")
	f.Fuzz(func(t *testing.T, in string) {
		calls, err := ReadCalls(strings.NewReader(in))
		if (err == nil) == (len(calls) == 0) {
			t.Fatalf("%d requests and error %v", len(calls), err)
		}
		for i, c := range calls {
			if c.At < 0 || c.Prompt < 0 || c.Output < 0 || i > 0 && c.At < calls[i-1].At {
				t.Fatalf("request %d is %+v", i, c)
			}
		}
	})
}
