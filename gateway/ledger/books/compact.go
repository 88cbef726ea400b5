package books

import (
	"slices"
	"time"

	"github.com/ncruces/go-sqlite3"

	"headrace/gateway/ledger"
)

const (
	smallBlock  = blockSize / 2 // requests; one with less is put together with those beside it
	mergeAtOnce = 200           // blocks that one transaction reads
	mergeRounds = 20            // of such transactions, before writing goes on
	// mergeSpan is the longest time that a block made of others covers: it leaves when the last of its requests may.
	mergeSpan = time.Hour
)

// stored is a line of requests.
type stored struct {
	no, since, until, n int64
	body                []byte
}

// compact puts small blocks together, which light traffic makes one of each second: a line for each request takes three times its size, and
// all lines are looked through when a request is asked for. None stays longer than it may by more than a twentieth of keep.
func (f *file) compact(keep time.Duration) {
	span := mergeSpan
	if keep > 0 {
		span = min(span, keep/20)
	}
	for range mergeRounds {
		var small []stored
		if query(f.db, "SELECT block,since,until,n,body FROM requests WHERE block > ? AND n < ? ORDER BY block LIMIT ?", func(st *sqlite3.Stmt) error {
			small = append(small, stored{st.ColumnInt64(0), st.ColumnInt64(1), st.ColumnInt64(2), st.ColumnInt64(3), slices.Clone(st.ColumnRawBlob(4))})
			return nil
		}, f.compacted, smallBlock, mergeAtOnce) != nil || len(small) == 0 || f.begin() != nil {
			return
		}
		if err := f.mergeAll(small, span); err != nil || f.db.Exec("COMMIT") != nil {
			f.rollback() // they stay as they are
			return
		}
		if len(small) < mergeAtOnce {
			return
		}
	}
}

// mergeAll puts together what belongs together, in the transaction that was begun.
func (f *file) mergeAll(small []stored, span time.Duration) error {
	for len(small) > 0 {
		n := together(small, span.Microseconds())
		if n > 1 {
			if err := f.merge(small[:n]); err != nil {
				return err
			}
		}
		if n < len(small) { // else more may follow that belong to it
			f.compacted = small[n-1].no
		}
		small = small[n:]
	}
	return nil
}

// together is how many blocks at the front make one.
func together(small []stored, span int64) int {
	since, until, sum := small[0].since, small[0].until, small[0].n
	for i := 1; i < len(small); i++ {
		s := &small[i]
		since, until, sum = min(since, s.since), max(until, s.until), sum+s.n
		if s.no != small[i-1].no+1 || sum > blockSize || until-since > span {
			return i
		}
	}
	return len(small)
}

// merge writes blocks as one, in the place of the first.
func (f *file) merge(parts []stored) error {
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
			return err
		}
	}
	last := parts[len(parts)-1].no
	if err := query(f.db, "DELETE FROM requests WHERE block > ? AND block <= ?", func(*sqlite3.Stmt) error { return nil }, parts[0].no, last); err != nil {
		return err
	}
	st, _, err := f.db.Prepare("UPDATE requests SET since=?,until=?,n=?,ids=?,body=? WHERE block=?")
	if err != nil {
		return err
	}
	defer func() { _ = st.Close() }()
	return run(st, one.first, one.last, int64(len(one.ids)), one.hashes(nil), one.body(nil), parts[0].no)
}
