package books

import (
	"errors"
	"slices"
	"time"

	"github.com/ncruces/go-sqlite3"

	"headrace/gateway/ledger"
)

const (
	smallBlock  = blockSize / 2 // requests; one with less is put together with those beside it
	mergeAtOnce = 200           // small blocks that one transaction reads
	passAtOnce  = 5_000         // blocks that it looks at for them
	mergeRounds = 20            // of such transactions, before writing goes on
	// mergeSpan is the longest time that a block made of others covers: it leaves when the last of its requests may.
	mergeSpan = time.Hour
)

// stored is a line of requests.
type stored struct {
	no, since, until, n int64
	body                []byte // nil where it stays as it is: it is not small, or cannot be read
}

// compact puts small blocks together, which light traffic makes one of each second: a line for each request takes three times its size, and
// all lines are looked through when a request is asked for. None stays longer than it may by more than a twentieth of keep.
func (f *file) compact(keep time.Duration) {
	span := mergeSpan
	if keep > 0 {
		span = min(span, keep/20)
	}
	for range mergeRounds {
		found, more, err := f.follow(f.compacted)
		if err != nil || len(found) == 0 || f.begin() != nil {
			return
		}
		done, err := f.mergeAll(found, span)
		if err != nil || f.db.Exec("COMMIT") != nil {
			f.rollback() // they stay as they are
			return
		}
		if f.compacted = max(f.compacted, done); !more {
			return
		}
	}
}

// follow returns what lines of requests follow one; more says that there are others behind them.
func (f *file) follow(no int64) (found []stored, more bool, err error) {
	small := 0
	err = query(f.db, "SELECT block,since,until,n,CASE WHEN n < ? THEN body END FROM requests WHERE block > ? ORDER BY block LIMIT ?", func(st *sqlite3.Stmt) error {
		s := stored{no: st.ColumnInt64(0), since: st.ColumnInt64(1), until: st.ColumnInt64(2), n: st.ColumnInt64(3)}
		if st.ColumnType(4) != sqlite3.NULL {
			s.body = slices.Clone(st.ColumnRawBlob(4))
			small++
		}
		if found = append(found, s); small == mergeAtOnce {
			return errFound
		}
		return nil
	}, smallBlock, no, passAtOnce)
	if more = errors.Is(err, errFound) || len(found) == passAtOnce; more {
		err = nil
	}
	return found, more, err
}

// mergeAll puts together what belongs together, in the transaction that was begun. Up to done nothing more is to be done: what follows that
// may belong to what is yet to come.
func (f *file) mergeAll(found []stored, span time.Duration) (done int64, err error) {
	for len(found) > 0 {
		n := together(found, span.Microseconds())
		if n > 1 {
			bad, err := f.merge(found[:n])
			if err != nil {
				return 0, err
			}
			if bad >= 0 {
				found[bad].body = nil
				continue
			}
		}
		if n < len(found) || found[0].body == nil {
			done = found[n-1].no
		}
		found = found[n:]
	}
	return done, nil
}

// together is how many blocks at the front make one.
func together(found []stored, span int64) int {
	since, until, sum := found[0].since, found[0].until, found[0].n
	if found[0].body == nil {
		return 1
	}
	for i := 1; i < len(found); i++ {
		s := &found[i]
		since, until, sum = min(since, s.since), max(until, s.until), sum+s.n
		if s.body == nil || sum > blockSize || until-since > span {
			return i
		}
	}
	return len(found)
}

// merge writes blocks as one, in the place of the first. One that cannot be read is bad, and then nothing is written; -1 is none.
func (f *file) merge(parts []stored) (bad int, err error) {
	one := block{buf: make([]byte, 0, 64<<10)}
	places := map[Cell]int64{}
	place := func(c Cell) int64 {
		p, there := places[c]
		if !there {
			p = int64(len(one.cells))
			places[c] = p
			one.cells = append(one.cells, c)
		}
		return p
	}
	for i := range parts {
		if err := readBlock(parts[i].body, func(r *ledger.Record) bool {
			var at [ledger.MaxAttempts]int64
			for i := range r.Attempts {
				a := &r.Attempts[i]
				at[i] = place(Cell{Key: r.Key, Model: r.Model, Arm: r.Arm, Served: a.Served, Provider: a.Provider, Host: string(a.Endpoint)})
			}
			one.add(r, hashID(r.ID), place(Cell{Key: r.Key, Model: r.Model, Arm: r.Arm, Served: r.Served, Provider: r.Provider, Host: string(r.Endpoint)}), &at)
			return true
		}); err != nil {
			return i, nil //nolint:nilerr // it stays as it is
		}
	}
	last := parts[len(parts)-1].no
	if err := query(f.db, "DELETE FROM requests WHERE block > ? AND block <= ?", func(*sqlite3.Stmt) error { return nil }, parts[0].no, last); err != nil {
		return -1, err
	}
	st, _, err := f.db.Prepare("UPDATE requests SET since=?,until=?,n=?,ids=?,body=? WHERE block=?")
	if err != nil {
		return -1, err
	}
	defer func() { _ = st.Close() }()
	return -1, run(st, one.first, one.last, int64(len(one.ids)), one.hashes(nil), one.body(nil), parts[0].no)
}
