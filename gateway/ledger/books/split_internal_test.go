package books

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"

	"headrace/gateway/ledger"
	"headrace/gateway/trace"
	"headrace/router"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// try is an attempt at a host of the hour that cost a dollar, a quarter of it for its prompt.
func try(class outcome.Class, output int64, edit ...func(*ledger.Attempt)) ledger.Attempt {
	a := ledger.Attempt{
		Endpoint: "vast:1", Provider: "vast", Served: "m", Class: class, Status: 200, Duration: time.Second, Output: output, USD: 1, USDKnown: true,
		Decision: router.Decision{MarginalUSD: math.NaN()}, Usage: ledger.Usage{Prompt: 100, Basis: endpoint.PerHour, Share: time.Second, PromptUSD: 0.25},
	}
	if class == outcome.Success {
		a.Counted, a.Cached, a.Reasoning = true, 10, 3
	}
	for _, e := range edit {
		e(&a)
	}
	return a
}

func on(host string) func(*ledger.Attempt) {
	return func(a *ledger.Attempt) { a.Endpoint = endpoint.ID(host) }
}

func resumed(prompt int64) func(*ledger.Attempt) {
	return func(a *ledger.Attempt) { a.Resumed, a.Prompt = true, prompt }
}

func hedge(a *ledger.Attempt) { a.Hedge = true }

func TestSplit(t *testing.T) {
	type want struct {
		prompt, output, wastedPrompt, wastedOutput, estimated int64
		wasted                                                map[Reason]float64
		errors, left                                          int64
	}
	for name, tc := range map[string]struct {
		class    outcome.Class
		left     ledger.Phase
		prompt   int64 // of the whole answer, -1 where nobody reported it
		output   int64
		attempts []ledger.Attempt
		want     want
	}{
		"answered": {
			outcome.Success, 0, 100, 50,
			[]ledger.Attempt{try(outcome.Success, 50)},
			want{prompt: 100, output: 50},
		},
		"the second one answers": {
			outcome.Success, 0, 100, 50,
			[]ledger.Attempt{try(outcome.FirstByteTimeout, 0, on("vast:2")), try(outcome.Success, 50)},
			want{prompt: 100, output: 50, wastedPrompt: 100, estimated: 100, wasted: map[Reason]float64{Retry: 1}},
		},
		"gone on with": { // 20 tokens of the first, 30 of the second, which reads 120
			outcome.Success, 0, 100, 50,
			[]ledger.Attempt{try(outcome.Truncated, 20, on("vast:2")), try(outcome.Success, 30, resumed(120))},
			want{prompt: 100, output: 50, wastedPrompt: 120, estimated: 20, wasted: map[Reason]float64{RePrefilled: 0.25}},
		},
		"gone on with at the second try": {
			outcome.Success, 0, 100, 50,
			[]ledger.Attempt{
				try(outcome.Stalled, 20, on("vast:2")), try(outcome.Severed, 0, on("vast:3"), resumed(120)), try(outcome.Success, 30, resumed(120)),
			},
			want{prompt: 100, output: 50, wastedPrompt: 240, estimated: 140, wasted: map[Reason]float64{RePrefilled: 0.25, Preempted: 1}},
		},
		"nobody goes on": {
			outcome.Truncated, 0, -1, 20,
			[]ledger.Attempt{try(outcome.Truncated, 20)},
			want{wastedPrompt: 100, wastedOutput: 20, estimated: 120, wasted: map[Reason]float64{Preempted: 1}, errors: 1},
		},
		"begun anew": { // a plain answer, of which the caller had nothing
			outcome.Success, 0, 100, 50,
			[]ledger.Attempt{try(outcome.Truncated, 20, on("vast:2")), try(outcome.Success, 50)},
			want{prompt: 100, output: 50, wastedPrompt: 100, wastedOutput: 20, estimated: 120, wasted: map[Reason]float64{Preempted: 1}},
		},
		"the hedge was slower": {
			outcome.Success, 0, 100, 50,
			[]ledger.Attempt{try(outcome.Outrun, 0, on("vast:2"), hedge), try(outcome.Success, 50)},
			want{prompt: 100, output: 50, wastedPrompt: 100, estimated: 100, wasted: map[Reason]float64{HedgeLost: 1}},
		},
		"the hedge was faster": {
			outcome.Success, 0, 100, 50,
			[]ledger.Attempt{try(outcome.Outrun, 0, on("vast:2")), try(outcome.Success, 50, hedge)},
			want{prompt: 100, output: 50, wastedPrompt: 100, estimated: 100, wasted: map[Reason]float64{HedgeLost: 1}},
		},
		"the caller left amid the stream": {
			outcome.ClientGone, ledger.Streaming, -1, 20,
			[]ledger.Attempt{try(outcome.ClientGone, 20)},
			want{prompt: 100, output: 20, estimated: 120, left: 1},
		},
		"the caller left before the first token": {
			outcome.ClientGone, ledger.BeforeFirstToken, -1, 0,
			[]ledger.Attempt{try(outcome.ClientGone, 0)},
			want{wastedPrompt: 100, estimated: 100, wasted: map[Reason]float64{Orphaned: 1}, left: 1},
		},
		"the caller left a plain answer that was read as a stream": {
			outcome.ClientGone, ledger.BeforeFirstToken, -1, 7,
			[]ledger.Attempt{try(outcome.Truncated, 7)},
			want{wastedPrompt: 100, wastedOutput: 7, estimated: 107, wasted: map[Reason]float64{Orphaned: 1}, left: 1},
		},
		"a worker had to start": {
			outcome.Success, 0, 100, 50,
			[]ledger.Attempt{try(outcome.Success, 50, func(a *ledger.Attempt) { a.Basis, a.Decision.Cold = endpoint.PerWorkerSecond, true })},
			want{prompt: 100, output: 50, wasted: map[Reason]float64{ColdStart: 0.25}},
		},
		"refused": {
			outcome.CallerFault, 0, -1, -1,
			[]ledger.Attempt{try(outcome.CallerFault, 0, func(a *ledger.Attempt) { a.Status, a.Prompt = 400, 0 })},
			want{wasted: map[Reason]float64{Refused: 1}},
		},
		"nobody was asked": {outcome.Unserved, 0, -1, -1, nil, want{errors: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			r := ledger.Record{Class: tc.class, Left: tc.left, Prompt: tc.prompt, Output: tc.output, Estimated: tc.prompt < 0, Attempts: tc.attempts, Tries: len(tc.attempts), USDKnown: true}
			for range tc.attempts {
				r.USD++
			}
			parts := make([]Sums, len(tc.attempts)+1) // the last one is for none
			split(&r, func(i int) *Sums {
				if i < 0 {
					i = len(tc.attempts)
				}
				return &parts[i]
			})
			var sum Sums
			for i := range parts {
				if i < len(tc.attempts) && parts[i].Used() != 1 {
					t.Errorf("%s is charged $%v", tc.attempts[i].Endpoint, parts[i].Used())
				}
				sum.Add(&parts[i])
			}
			usd := sum.Used()
			got := want{
				sum.N[PromptTokens], sum.N[OutputTokens], sum.N[WastedPrompt], sum.N[WastedOutput], sum.N[EstimatedTokens], nil, sum.N[Errors], sum.N[Left],
			}
			for r := range numReasons {
				if v := sum.F[Wasted+Amount(r)]; v != 0 {
					if got.wasted == nil {
						got.wasted = map[Reason]float64{}
					}
					got.wasted[r] = v
				}
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
			if sum.N[Requests] != 1 || sum.N[Attempts] != int64(len(tc.attempts)) || usd != r.USD {
				t.Errorf("%d requests, %d attempts, $%v of %v", sum.N[Requests], sum.N[Attempts], usd, r.USD)
			}
		})
	}
}

// Attempts that a record does not name have cost money all the same.
func TestSplitLosesNoMoney(t *testing.T) {
	r := ledger.Record{Class: outcome.Success, Prompt: 100, Output: 50, Tries: 12, USD: 12, USDKnown: true}
	for range ledger.MaxAttempts - 1 {
		r.Attempts = append(r.Attempts, try(outcome.UpstreamFault, 0))
	}
	r.Attempts = append(r.Attempts, try(outcome.Success, 50))
	for basis, paid := range map[endpoint.Basis]Amount{endpoint.PerHour: UsedPerHour, endpoint.PerWorkerSecond: UsedPerSecond, endpoint.PerToken: UsedPerToken} {
		for i := range r.Attempts {
			r.Attempts[i].Basis = basis
		}
		var sum Sums
		split(&r, func(int) *Sums { return &sum })
		if sum.Used() != 12 || sum.F[paid] != 12 || sum.N[Attempts] != 12 || sum.F[Wasted+Amount(Retry)] != 11 {
			t.Errorf("%v: $%v, $%v by that basis, %d attempts, $%v wasted", basis, sum.Used(), sum.F[paid], sum.N[Attempts], sum.WastedUSD())
		}
	}
}

// TestEncode reads back what it wrote, over random records, and is not led astray by any piece of it.
func TestEncode(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's
	text := func() string {
		return []string{"", "stop", "a \x00 b", "/v1/chat/completions", "émoji 🙂"}[rng.IntN(5)]
	}
	span := func() time.Duration {
		return time.Duration(rng.Int64N(1<<(1+rng.IntN(40)))) * time.Microsecond
	}
	f32 := func() float64 { return float64(float32(rng.NormFloat64())) }
	yes := func() bool { return rng.IntN(2) == 0 }
	for range 500 {
		r := ledger.Record{
			Method: text(), Route: text(), Code: text(), Finish: text(), Lost: text(), Hedge: text(), Stream: yes(), Known: yes(), Estimated: yes(), USDKnown: yes(),
			Tries: rng.IntN(20), Resumes: rng.IntN(3), Offered: rng.IntN(3), Queued: span(), OutOfArm: yes(), Forced: yes(), SeamGap: span(), TTFT: span(), UpstreamTTFT: span(), Duration: span(), Overhead: span(),
			ITLp50: span(), ITLp99: span(), Left: ledger.Phase(rng.IntN(3)), Prompt: rng.Int64N(1e6) - 1, Cached: -1, Output: rng.Int64N(1e6), Reasoning: 3,
			BytesIn: rng.Int64N(1e9), BytesOut: rng.Int64N(1e9), TPS: f32(), HedgeUSD: f32(),
		}
		if yes() {
			r.Trace = (&trace.Policy{On: true, Ratio: 1, Rand: rng.Uint64}).Begin(nil, nil)
			r.Trace.Parent = trace.SpanID{}
		}
		var cells [ledger.MaxAttempts]int64
		names := map[int64]Cell{}
		r.Attempts = make([]ledger.Attempt, rng.IntN(ledger.MaxAttempts+1))
		for i := range r.Attempts {
			cells[i] = rng.Int64N(1 << 40)
			names[cells[i]] = Cell{Served: text(), Provider: text(), Host: text()}
			c := names[cells[i]]
			a := ledger.Attempt{
				Served: c.Served, Provider: c.Provider, Endpoint: endpoint.ID(c.Host), Class: outcome.Class(rng.IntN(16)), Status: rng.IntN(600), After: span(),
				First: span(), Duration: span(), Output: rng.Int64N(1e6), USD: rng.NormFloat64(), USDKnown: yes(), Resumed: yes(), Exact: yes(), Offset: rng.Int64N(100), Hedge: yes(),
				Usage: ledger.Usage{Counted: yes(), Prompt: rng.Int64N(1e6), Cached: 4, Reasoning: 5, Basis: endpoint.Basis(rng.IntN(4)), Share: span(), PromptUSD: f32(), Guessed: yes()},
			}
			a.Decision.Cold, a.Decision.MarginalUSD, a.Decision.TTFT, a.Decision.TPS = yes(), f32(), f32(), f32()
			if yes() {
				a.Worker = &endpoint.WorkerReport{Worker: text(), Note: text(), Executed: span(), Delayed: span(), Redone: rng.IntN(3)}
			}
			r.Attempts[i] = a
		}
		b := encode(nil, &r, &cells)
		var got ledger.Record
		d := reader{b: b}
		if d.decode(&got, func(n int64) Cell { return names[n] }); d.bad || len(d.b) > 0 {
			t.Fatalf("bad %v, %d bytes left", d.bad, len(d.b))
		}
		got.Trace.Sampled = r.Trace.Sampled
		if !reflect.DeepEqual(got, r) {
			t.Fatalf("got  %+v\nwant %+v", got, r)
		}
		for n := range len(b) {
			d := reader{b: b[:n]}
			if d.decode(&got, func(int64) Cell { return Cell{} }); !d.bad {
				t.Fatalf("%d of %d bytes are taken for all", n, len(b))
			}
		}
	}
}

// TestColumns holds the table of sums to the figures that there are: a new one needs a migration.
func TestColumns(t *testing.T) {
	f := file{path: filepath.Join(t.TempDir(), "ledger.db"), now: time.Now}
	if err := f.open(); err != nil {
		t.Fatal(err)
	}
	defer f.close()
	var got []string
	err := query(f.db, "SELECT name FROM pragma_table_info('rollups')", func(st *sqlite3.Stmt) error {
		got = append(got, st.ColumnText(0))
		return nil
	})
	if want := append([]string{"hour", "cell"}, columns()...); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v: columns\n%v, want\n%v", err, got, want)
	}
}

// A commit that took place although it failed is not written once more.
func TestWriteCountsOnce(t *testing.T) {
	f := file{path: filepath.Join(t.TempDir(), "ledger.db"), now: time.Now}
	if err := f.open(); err != nil {
		t.Fatal(err)
	}
	defer f.close()
	e := &entry{}
	e.N[Requests] = 1
	p := pending{sums: cells{of: map[Cell]*entry{{Hour: 3600}: e}}}
	if err := f.begin(); err != nil {
		t.Fatal(err)
	}
	if err := f.write(time.Now(), &p); err != nil {
		t.Fatal(err)
	}
	f.writes-- // as after a commit of which nobody heard
	if !f.committed() {
		t.Error("a write that took place is taken for one that did not")
	}
	f.writes++
	if f.committed() {
		t.Error("a write that did not take place is taken for one that did")
	}
}
