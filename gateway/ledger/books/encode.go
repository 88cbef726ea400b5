package books

import (
	"encoding/binary"
	"errors"
	"math"
	"time"

	"headrace/gateway/ledger"
	"headrace/gateway/trace"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// bodyVersion is of the form in which requests are kept. Older ones must stay readable for as long as they are kept.
const bodyVersion = 1

const (
	flagStream = 1 << iota
	flagKnown
	flagEstimated
	flagUSD
	flagTrace
	flagOutOfArm
	flagForced
)

const (
	flagUSDKnown = 1 << iota
	flagResumed
	flagHedge
	flagCounted
	flagGuessed
	flagCold
	flagWorker
	flagExact
)

// encode appends what a record has beside what its block says of each; cells are the places of its attempts' cells. It allocates nothing
// but room in dst.
func encode(dst []byte, r *ledger.Record, cells *[ledger.MaxAttempts]int64) []byte {
	dst = append(dst, bits(r.Stream, flagStream)|bits(r.Known, flagKnown)|bits(r.Estimated, flagEstimated)|bits(r.USDKnown, flagUSD)|bits(r.Trace.On(), flagTrace)|
		bits(r.OutOfArm, flagOutOfArm)|bits(r.Forced, flagForced))
	for _, s := range [...]*string{&r.Method, &r.Route, &r.Code, &r.Finish, &r.Lost, &r.Hedge} {
		dst = appendText(dst, *s)
	}
	for _, n := range [...]int64{
		int64(r.Tries), int64(r.Resumes), int64(r.Offered), micro(r.Queued), micro(r.SeamGap), micro(r.TTFT), micro(r.UpstreamTTFT), micro(r.Duration), micro(r.Overhead),
		micro(r.ITLp50), micro(r.ITLp99), int64(r.Left), r.Prompt, r.Cached, r.Output, r.Reasoning, r.BytesIn, r.BytesOut,
	} {
		dst = binary.AppendVarint(dst, n)
	}
	dst = appendFloat32(dst, r.TPS)
	dst = appendFloat32(dst, r.HedgeUSD)
	if r.Trace.On() {
		dst = append(dst, r.Trace.ID[:]...)
		dst = append(dst, r.Trace.Span[:]...)
	}
	dst = append(dst, byte(len(r.Attempts))) // at most ledger.MaxAttempts
	for i := range r.Attempts {
		a := &r.Attempts[i]
		dst = append(dst, bits(a.USDKnown, flagUSDKnown)|bits(a.Resumed, flagResumed)|bits(a.Hedge, flagHedge)|bits(a.Counted, flagCounted)|
			bits(a.Guessed, flagGuessed)|bits(a.Decision.Cold, flagCold)|bits(a.Worker != nil, flagWorker)|bits(a.Exact, flagExact), byte(a.Class), byte(a.Basis))
		for _, n := range [...]int64{
			cells[i], int64(a.Status), micro(a.After), micro(a.First), micro(a.Duration), a.Output, a.Offset, a.Prompt, a.Cached, a.Reasoning, micro(a.Share),
		} {
			dst = binary.AppendVarint(dst, n)
		}
		dst = appendFloat64(dst, a.USD)
		for _, f := range [...]float64{a.PromptUSD, a.Decision.MarginalUSD, a.Decision.TTFT, a.Decision.TPS} {
			dst = appendFloat32(dst, f)
		}
		if w := a.Worker; w != nil {
			dst = appendText(appendText(dst, w.Worker), w.Note)
			dst = binary.AppendVarint(binary.AppendVarint(binary.AppendVarint(dst, micro(w.Executed)), micro(w.Delayed)), int64(w.Redone))
		}
	}
	return dst
}

func bits(yes bool, flag byte) byte {
	if yes {
		return flag
	}
	return 0
}

func micro(d time.Duration) int64 { return d.Microseconds() }

func appendText(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

func appendFloat32(dst []byte, f float64) []byte {
	return binary.LittleEndian.AppendUint32(dst, math.Float32bits(float32(f)))
}

func appendFloat64(dst []byte, f float64) []byte {
	return binary.LittleEndian.AppendUint64(dst, math.Float64bits(f))
}

var errBody = errors.New("a request's line cannot be read: it is cut, or of a newer version")

// decode fills in r what encode has written; cell returns the names of a place.
func (d *reader) decode(r *ledger.Record, cell func(int64) Cell) {
	f := d.byte()
	r.Stream, r.Known, r.Estimated, r.USDKnown = f&flagStream != 0, f&flagKnown != 0, f&flagEstimated != 0, f&flagUSD != 0
	r.OutOfArm, r.Forced = f&flagOutOfArm != 0, f&flagForced != 0
	for _, s := range [...]*string{&r.Method, &r.Route, &r.Code, &r.Finish, &r.Lost, &r.Hedge} {
		*s = d.text()
	}
	r.Tries, r.Resumes, r.Offered = int(d.varint()), int(d.varint()), int(d.varint())
	for _, t := range [...]*time.Duration{&r.Queued, &r.SeamGap, &r.TTFT, &r.UpstreamTTFT, &r.Duration, &r.Overhead, &r.ITLp50, &r.ITLp99} {
		*t = d.span()
	}
	r.Left = ledger.Phase(d.varint()) //nolint:gosec // a handful
	for _, n := range [...]*int64{&r.Prompt, &r.Cached, &r.Output, &r.Reasoning, &r.BytesIn, &r.BytesOut} {
		*n = d.varint()
	}
	r.TPS, r.HedgeUSD = d.float32(), d.float32()
	if f&flagTrace != 0 {
		r.Trace = trace.Context{Sampled: true}
		copy(r.Trace.ID[:], d.next(len(r.Trace.ID)))
		copy(r.Trace.Span[:], d.next(len(r.Trace.Span)))
	}
	n := int(d.byte())
	if d.bad || n > ledger.MaxAttempts {
		d.bad = true
		return
	}
	r.Attempts = make([]ledger.Attempt, n)
	for i := range r.Attempts {
		a := &r.Attempts[i]
		f := d.byte()
		a.USDKnown, a.Resumed, a.Hedge, a.Counted = f&flagUSDKnown != 0, f&flagResumed != 0, f&flagHedge != 0, f&flagCounted != 0
		a.Guessed, a.Decision.Cold, a.Exact = f&flagGuessed != 0, f&flagCold != 0, f&flagExact != 0
		a.Class, a.Basis = outcome.Class(d.byte()), endpoint.Basis(d.byte())
		c := cell(d.varint())
		a.Served, a.Provider, a.Endpoint = c.Served, c.Provider, endpoint.ID(c.Host)
		a.Status = int(d.varint())
		a.After, a.First, a.Duration = d.span(), d.span(), d.span()
		a.Output, a.Offset, a.Prompt, a.Cached, a.Reasoning = d.varint(), d.varint(), d.varint(), d.varint(), d.varint()
		a.Share = d.span()
		a.USD = d.float64()
		a.PromptUSD, a.Decision.MarginalUSD, a.Decision.TTFT, a.Decision.TPS = d.float32(), d.float32(), d.float32(), d.float32()
		if f&flagWorker != 0 {
			a.Worker = &endpoint.WorkerReport{Worker: d.text(), Note: d.text(), Executed: d.span(), Delayed: d.span(), Redone: int(d.varint())}
		}
	}
}

// reader reads what encode wrote. After a fault everything is zero.
type reader struct {
	b   []byte
	bad bool
}

func (d *reader) next(n int) []byte {
	if d.bad || n < 0 || n > len(d.b) {
		d.bad = true
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *reader) byte() byte {
	if p := d.next(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *reader) varint() int64 {
	v, n := binary.Varint(d.b)
	if d.next(n); n <= 0 || d.bad {
		d.bad = true
		return 0
	}
	return v
}

func (d *reader) span() time.Duration { return time.Duration(d.varint()) * time.Microsecond }

func (d *reader) text() string {
	n, size := binary.Uvarint(d.b)
	if d.next(size); size <= 0 || d.bad || n > uint64(len(d.b)) {
		d.bad = true
		return ""
	}
	return string(d.next(int(n))) //nolint:gosec // no more than there are
}

func (d *reader) float64() float64 {
	if p := d.next(8); p != nil {
		return math.Float64frombits(binary.LittleEndian.Uint64(p))
	}
	return 0
}

// count reads how many things follow, each of a byte at least.
func (d *reader) count() int {
	n, size := binary.Uvarint(d.b)
	if d.next(size); size <= 0 || d.bad || n > uint64(len(d.b)) {
		d.bad = true
		return 0
	}
	return int(n) //nolint:gosec // no more than there are bytes
}

func (d *reader) float32() float64 {
	if p := d.next(4); p != nil {
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(p)))
	}
	return 0
}
