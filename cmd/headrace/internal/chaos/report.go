package chaos

import (
	"fmt"
	"math"
	"strconv"
	"time"
)

// Report is what callers saw of a scenario, and what the gateway did meanwhile.
type Report struct {
	Scenario string  `json:"scenario"`
	Title    string  `json:"title"`
	Seed     uint64  `json:"seed"`
	Hosts    int     `json:"hosts"`
	Streams  int     `json:"streams"` // callers at once
	Seconds  float64 `json:"seconds"`
	TLS      bool    `json:"tls"`
	TokenIDs bool    `json:"token_ids"`          // the gateway was to continue answers by the numbers of their tokens
	LeftOut  string  `json:"left_out,omitempty"` // what this build cannot do

	Groups  []Group `json:"groups"` // of answers, by what may be done with them
	Tokens  int64   `json:"tokens"` // events with text, in streams
	Lost    int     `json:"tokens_lost"`
	Doubled int     `json:"tokens_doubled"`
	Altered int     `json:"tokens_altered"`

	Wrong    int       `json:"answers_wrong"` // in any way, but for those that are cut
	Problems []Problem `json:"problems"`      // the first of them, and of those that are cut, not settled or settled twice

	Resettled int `json:"settlements_after_the_first"` // of requests that the ledger was told of already
	Unsettled int `json:"answers_without_record"`      // in the ledger

	Stalled int   `json:"streams_stalled"` // a pause of more than a second in them
	Gaps    Spans `json:"gaps"`            // between two tokens
	Seams   Spans `json:"seam_gaps"`       // between the last token of one host and the first of the next

	Faults  map[string]int `json:"faults"` // by what befell a host
	Outages int            `json:"outages"`
	Corpse  int            `json:"requests_after_first_failure"` // sent to a host that was away, after a failure of it had been reported
	Unasked int            `json:"hosts_not_asked_again"`        // that were back, but got no request before the next fault or the end, for all the time and traffic there was
	Untold  int            `json:"returns_untold"`               // of hosts for which there was too little of either
	Trusted Spans          `json:"trusted_again"`                // from a host's return to the first request that it serves
	// TrustWithin is how long that may take, but for one in a hundred.
	TrustWithin float64        `json:"trusted_within_seconds"`
	Probes      *int64         `json:"probes"`          // requests of the gateway's own, at static hosts; nil when there are none of these
	Attempts    map[string]int `json:"failed_attempts"` // by class
	// NotContinued counts answers that broke off and did not arrive complete, by the ledger's reason why they were not continued.
	NotContinued map[string]int `json:"not_continued"`
	// Held is how many requests the gateway held to be running when all were over, by host.
	Held map[string]int64 `json:"in_flight_at_the_end,omitempty"`

	Targets []Target `json:"targets"`
}

// Group is answers that are alike in what may be done with them.
type Group struct {
	Name      string         `json:"name"`
	Answers   int            `json:"answers"`
	Complete  int            `json:"complete"`
	Continued int            `json:"continued"` // of the complete ones: on another host, after tokens had come
	Exact     int            `json:"exact"`     // of these: by the numbers of their tokens each time
	Moved     int            `json:"moved"`     // of the complete ones: to another host, before
	Failed    int            `json:"failed"`    // with an error, in the open
	Refused   int            `json:"refused"`   // with 429 or 503, before they began
	Cut       int            `json:"cut"`       // without a word, or as though they were complete
	Errors    map[string]int `json:"errors"`    // by code, refusals too
}

// Groups' names.
const (
	FreeStreams = "streams that may be continued"
	FreePlain   = "plain answers that may be continued"
	BoundAll    = "answers that must not be continued"
)

// Problem is one answer that is not as it should be.
type Problem struct {
	Request  string   `json:"request"` // its id, as in log and ledger
	Asked    string   `json:"asked"`
	End      End      `json:"end"`
	Code     string   `json:"code,omitempty"`
	Attempts []string `json:"attempts"` // host and class of each
	What     []string `json:"what"`
}

// Target is something that has to be so.
type Target struct {
	Name  string `json:"name"`
	Want  string `json:"want"`
	Found string `json:"found"`
	Met   bool   `json:"met"`
}

// Missed lists the targets that are missed.
func (r *Report) Missed() (names []string) {
	for _, t := range r.Targets {
		if !t.Met {
			names = append(names, t.Name)
		}
	}
	return names
}

// enoughContinued answers leave no excuse for none that was continued by the numbers of its tokens.
const enoughContinued = 5

// judge holds the report to its targets.
func (r *Report) judge(complete float64) {
	var free, whole, cut, bound, continued, exact int
	for i := range r.Groups {
		g := &r.Groups[i]
		cut += g.Cut
		if g.Name == BoundAll {
			bound = g.Continued
			continue
		}
		free += g.Answers
		whole += g.Complete
		continued += g.Continued
		exact += g.Exact
	}
	add := func(name, want, found string, met bool) {
		r.Targets = append(r.Targets, Target{name, want, found, met})
	}
	none := func(name string, n int) { add(name, "0", strconv.Itoa(n), n == 0) }
	share := math.NaN()
	if free > 0 {
		share = float64(whole) / float64(free)
	}
	add("complete, of the answers that may be continued", fmt.Sprintf("≥ %.4g %%", 100*complete), fmt.Sprintf("%.4g %%", 100*share), share >= complete)
	none("silent cuts", cut)
	none("tokens lost, doubled or altered", r.Lost+r.Doubled+r.Altered)
	none("answers wrong in another way", r.Wrong)
	none("requests settled more than once", r.Resettled)
	none("answers that were never settled", r.Unsettled)
	none("continued though it is forbidden", bound)
	if r.TokenIDs && continued >= enoughContinued {
		add("continued by token numbers, of those continued", "> 0", strconv.Itoa(exact), exact > 0)
	}
	none("requests sent to a host after its first failure", r.Corpse)
	again := "no return to tell of"
	if r.Trusted.N > 0 {
		again = fmt.Sprintf("%.3g s", r.Trusted.P99)
	}
	add("from a host's return to its first request, p99", fmt.Sprintf("≤ %.3g s", r.TrustWithin), again, r.Trusted.P99 <= r.TrustWithin)
	none("hosts that were back and not asked again", r.Unasked)
	held := 0 // those missing would be less than none, and are as bad
	for _, n := range r.Held {
		held += int(max(n, -n))
	}
	none("requests still in flight at the end", held)
}

// Spans are durations, as figures. All are 0 when there is none.
type Spans struct {
	N   int64   `json:"n"`
	P50 float64 `json:"p50_seconds"`
	P99 float64 `json:"p99_seconds"`
	Max float64 `json:"max_seconds"`
}

// histogram counts durations in buckets that are 4 % wide.
type histogram struct {
	counts [bucketCount]int64
	n      int64
	max    time.Duration
}

const (
	bucketCount = 500
	bucketFirst = 10 * time.Microsecond
)

var bucketWidth = math.Log(1.04) //nolint:gochecknoglobals // a constant, if there were such functions

func (h *histogram) add(d time.Duration) {
	i := 0
	if d > bucketFirst {
		i = min(bucketCount-1, 1+int(math.Log(float64(d)/float64(bucketFirst))/bucketWidth))
	}
	h.counts[i]++
	h.n++
	h.max = max(h.max, d)
}

// quantile is the upper end of the bucket that holds it, in seconds.
func (h *histogram) quantile(q float64) float64 {
	rank := int64(math.Ceil(q * float64(h.n)))
	for i, c := range h.counts {
		if rank -= c; rank <= 0 && h.n > 0 {
			return min(h.max.Seconds(), bucketFirst.Seconds()*math.Exp(float64(i)*bucketWidth))
		}
	}
	return 0
}

func (h *histogram) spans() Spans {
	return Spans{N: h.n, P50: h.quantile(0.5), P99: h.quantile(0.99), Max: h.max.Seconds()}
}
