package books

import (
	"encoding/json"
	"strings"
	"time"
)

// Cell is what one rollup is of: all attempts of one hour that share these. A request is counted at its last attempt's host.
type Cell struct {
	Hour     int64  // Unix seconds of its begin
	Key      string // name of the caller's key, "" where callers need none
	Model    string // as callers name it
	Served   string // as the host knows it, "" where none was asked
	Provider string
	Host     string // endpoint id
	Arm      string // of an experiment, as "experiment/arm"
}

// Reason is why dollars were wasted.
type Reason uint8

// Reasons.
const (
	Retry       Reason = iota // the attempt failed, and another one, or none, answered
	HedgeLost                 // another host that was asked beside it was faster
	Preempted                 // its host was lost, and nobody went on with what it had said
	RePrefilled               // the prompt was read once more, to go on with an answer of another host
	Orphaned                  // the caller left before it had anything
	ColdStart                 // a worker had to start: the wait for its first token
	Refused                   // the host found fault with the request itself
	numReasons
)

var reasonNames = [numReasons]string{"retry", "hedge_lost", "preempted", "re_prefilled", "orphaned", "cold_start", "refused"}

// String returns the word used in reports and metrics.
func (r Reason) String() string { return reasonNames[r] }

// Reasons returns all of them.
func Reasons() []Reason {
	rs := make([]Reason, numReasons)
	for i := range rs {
		rs[i] = Reason(i) //nolint:gosec // a handful
	}
	return rs
}

// Count is a whole number that rollups add up.
type Count uint8

// Counts. Tokens are those of answers that reached their callers, unless they are said to be wasted.
const (
	Requests        Count = iota
	Errors                // requests that ended in neither success, a caller's fault nor a caller's leaving
	Left                  // requests whose caller left before the end
	Attempts              // at hosts
	PromptTokens          // those cached included
	CachedTokens          // of these, from the hosts' prefix caches
	OutputTokens          // those of reasoning included
	ReasoningTokens       // of these
	WastedPrompt          // prompt tokens that hosts read in vain, or once more
	WastedOutput          // output tokens that are in no answer
	EstimatedTokens       // of all above, tokens that no host reported
	UnknownPrice          // attempts at hosts whose price is not known
	FirstTokens           // requests whose first token was seen
	Streams               // requests whose speed was measured
	numCounts
)

var countNames = [numCounts]string{
	"requests", "errors", "left", "attempts", "prompt_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "wasted_prompt_tokens",
	"wasted_output_tokens", "estimated_tokens", "unknown_price_attempts", "first_tokens", "streams",
}

// Amount is a fraction that rollups add up.
type Amount uint8

// Amounts. The used dollars are the share of hosts' bills that attempts took (router/cost.USD), by what their hosts are paid for;
// the wasted ones are those of them that bought nothing, by Reason from Wasted on.
const (
	UsedPerHour     Amount = iota // USD
	UsedPerSecond                 // USD
	UsedPerToken                  // USD
	GuessedUSD                    // of the three, what rests on tokens that nobody reported
	MarginalUSD                   // what the router expected requests to cost in addition to what is paid anyway
	HostSeconds                   // of hosts and workers, parted among those that ran at once
	WorkerSeconds                 // that providers say workers were busy
	TrafficUSD                    // of UsedPerHour, what is for bytes
	TTFTSeconds                   // sum over FirstTokens
	TokensPerSecond               // sum over Streams
	Wasted                        // the first of one for each Reason
	numAmounts      = Wasted + Amount(numReasons)
)

var amountNames = func() (names [numAmounts]string) {
	copy(names[:], []string{
		"used_per_hour_usd", "used_per_worker_second_usd", "used_per_token_usd", "guessed_usd", "marginal_usd", "host_seconds", "worker_seconds", "traffic_usd",
		"ttft_seconds", "tokens_per_second",
	})
	for i, r := range reasonNames {
		names[int(Wasted)+i] = "wasted_" + r + "_usd"
	}
	return names
}()

// Sums are what a rollup has added up. Dollars are float64: a million additions are off by less than a billionth.
type Sums struct {
	N [numCounts]int64
	F [numAmounts]float64
}

// Add adds o.
func (s *Sums) Add(o *Sums) {
	for i, n := range o.N {
		s.N[i] += n
	}
	for i, f := range o.F {
		s.F[i] += f
	}
}

// Used is the dollars of hosts' bills that were used, wasted or not.
func (s *Sums) Used() float64 { return s.F[UsedPerHour] + s.F[UsedPerSecond] + s.F[UsedPerToken] }

// WastedUSD is those of them that bought nothing.
func (s *Sums) WastedUSD() (usd float64) {
	for r := range numReasons {
		usd += s.F[Wasted+Amount(r)]
	}
	return usd
}

// Rollup is one line of the ledger.
type Rollup struct {
	Cell
	Sums
}

// HostHour is what one host cost within an hour, as its price and the time that it was up come to.
type HostHour struct {
	Hour     int64   `json:"hour"` // Unix seconds of its begin
	Provider string  `json:"provider"`
	Host     string  `json:"host"`
	Seconds  float64 `json:"watched_seconds"` // that it was watched
	Up       float64 `json:"paid_seconds"`    // of these, seconds that it was paid for; of workers, all together
	USD      float64 `json:"usd"`
	Starts   int64   `json:"worker_starts"`  // of workers
	ColdUSD  float64 `json:"cold_start_usd"` // of USD: what they cost until they could work, as their price tells
	// Billed is what its provider billed for the hour, in USD, which counts in the place of USD; nil while no bill names it.
	Billed *float64 `json:"billed_usd,omitempty"`
}

// Paid is what the host cost in the hour, in USD: as billed, else as estimated.
func (h *HostHour) Paid() float64 {
	if h.Billed != nil {
		return *h.Billed
	}
	return h.USD
}

// Price is what a host asked at some time, to compare what others would have cost.
type Price struct {
	Host     string    `json:"host"`
	Provider string    `json:"provider"`
	Served   string    `json:"served"`              // model
	Basis    string    `json:"basis"`               // as endpoint.Basis
	USD      float64   `json:"usd_per_hour"`        // an hour of the host, or of one of its workers; 0 where it is paid by tokens
	In       float64   `json:"usd_per_mtok_in"`     // USD per million prompt tokens, where it is paid by tokens
	Cached   float64   `json:"usd_per_mtok_cached"` // likewise, those cached
	Out      float64   `json:"usd_per_mtok_out"`    // likewise, output tokens; else of an engine that runs as many streams as keep the default promise
	GPU      string    `json:"gpu,omitempty"`
	Source   string    `json:"source"` // who said so
	At       time.Time `json:"at"`
}

// Bill sets what an account billed against what the ledger has of the same hosts and time.
type Bill struct {
	Account string    `json:"account"`
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
	Billed  float64   `json:"billed_usd"`
	Ledger  float64   `json:"ledger_usd"`
	Hosts   int       `json:"hosts"` // that are compared
	AsOf    time.Time `json:"as_of"`
	LeftOut float64   `json:"left_out_usd"` // billed for hosts and times that the ledger has not watched whole; not in Billed
}

// ErrorPercent is how much more the ledger has than was billed, below 0 for less; 100 where nothing was billed of what it has.
func (b *Bill) ErrorPercent() float64 {
	if b.Billed == 0 {
		if b.Ledger > 0 {
			return 100
		}
		return 0
	}
	return 100 * (b.Ledger - b.Billed) / b.Billed
}

// MarshalJSON adds what follows.
func (b Bill) MarshalJSON() ([]byte, error) {
	type plain Bill // without this method
	return json.Marshal(struct {
		plain
		ErrorPercent float64 `json:"error_percent"`
	}{plain(b), b.ErrorPercent()})
}

// Span is a stretch of time in which a gateway kept the ledger.
type Span struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// Period is what a ledger holds of some time: what reports are made of. Those of several replicas add up by Merge.
type Period struct {
	Since    time.Time  `json:"since"` // whole hours
	Until    time.Time  `json:"until"`
	Rollups  []Rollup   `json:"rollups"` // one for each Cell
	Hours    []HostHour `json:"hours"`
	Prices   []Price    `json:"prices"`
	Bills    []Bill     `json:"bills"`
	Runs     []Span     `json:"runs"`                     // in which somebody was there to book hosts' hours
	Replicas []string   `json:"replicas"`                 // whose ledgers it is made of
	Dropped  int64      `json:"requests_without_details"` // requests of which the sums are kept and nothing else, since the gateway was started
}

// figures names every figure that is not 0.
func (s *Sums) figures(m map[string]any) {
	for i, n := range s.N {
		if n != 0 {
			m[countNames[i]] = n
		}
	}
	for i, f := range s.F {
		if f != 0 {
			m[amountNames[i]] = f
		}
	}
}

// MarshalJSON names every figure.
func (r Rollup) MarshalJSON() ([]byte, error) {
	m := make(map[string]any, int(numCounts)+int(numAmounts)+7)
	m["hour"] = time.Unix(r.Hour, 0).UTC()
	for k, v := range map[string]string{"key": r.Key, "model": r.Model, "served": r.Served, "provider": r.Provider, "host": r.Host, "arm": r.Arm} {
		if v != "" {
			m[k] = v
		}
	}
	r.figures(m)
	return json.Marshal(m)
}

// UnmarshalJSON reads what MarshalJSON wrote; names that it does not know are of another version and left out.
func (r *Rollup) UnmarshalJSON(b []byte) error {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	*r = Rollup{}
	var at time.Time
	for name, into := range map[string]any{"hour": &at, "key": &r.Key, "model": &r.Model, "served": &r.Served, "provider": &r.Provider, "host": &r.Host, "arm": &r.Arm} {
		if v, ok := m[name]; ok {
			if err := json.Unmarshal(v, into); err != nil {
				return err
			}
		}
	}
	r.Hour = at.Unix()
	for i := range r.N {
		if v, ok := m[countNames[i]]; ok {
			if err := json.Unmarshal(v, &r.N[i]); err != nil {
				return err
			}
		}
	}
	for i := range r.F {
		if v, ok := m[amountNames[i]]; ok {
			if err := json.Unmarshal(v, &r.F[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// hourOf is the begin of t's hour, in Unix seconds.
func hourOf(t time.Time) int64 { return t.Unix() / 3600 * 3600 }

// secondOf is the first whole second that is not before t: hours that begin earlier have a moment before it.
func secondOf(t time.Time) int64 { return t.Add(time.Second - 1).Unix() }

// columns are the names of all figures, as a table has them.
func columns() []string { return append(append([]string{}, countNames[:]...), amountNames[:]...) }

// list joins what each name comes to.
func list(names []string, each func(string) string) string {
	parts := make([]string, len(names))
	for i, n := range names {
		parts[i] = each(n)
	}
	return strings.Join(parts, ", ")
}
