package books

import (
	"fmt"
	"time"

	"github.com/ncruces/go-sqlite3"
)

const (
	tidyBlocks = 200   // that one transaction of tidying takes away at most
	tidyRounds = 50    // of such transactions, before writing goes on
	freePages  = 2_000 // given back to the file system by one round
)

// tidy takes away what is older than it may be, all of it unless that is very much, and the oldest requests where the file is too large,
// some at a time. What fails is tried again later.
func (f *file) tidy(at time.Time, keep, keepSums time.Duration, maxBytes int64) {
	due, large := at.Sub(f.tidiedAt) >= tidyEvery, maxBytes > 0 && f.size > maxBytes
	if f.db == nil || !due && !large {
		return
	}
	if large {
		f.within(func() { f.shrink(f.size - maxBytes) })
	}
	if due {
		f.tidiedAt = at
		if keep > 0 && !f.expire(at.Add(-keep)) {
			f.tidiedAt = time.Time{} // there is more: go on after the next write
		}
	}
	f.recount()
	if due {
		f.compact(keep)
	}
	if keepSums > 0 && due {
		before := hourOf(at.Add(-keepSums))
		f.within(func() {
			if f.exec("DELETE FROM rollups WHERE hour < ?", before) > 0 {
				f.exec("DELETE FROM cells WHERE id NOT IN (SELECT cell FROM rollups)")
				clear(f.cells)
			}
			f.exec("DELETE FROM hours WHERE hour < ?", before)
			f.exec("DELETE FROM bills WHERE at < ?", before*1e6)
			f.exec("DELETE FROM prices WHERE at < ?", before*1e6)
			f.exec("DELETE FROM runs WHERE alive < ?", before*1e6)
		})
	}
	_ = f.db.Exec(fmt.Sprintf("PRAGMA incremental_vacuum(%d)", freePages))
}

// exec executes what returns nothing, and tells how many lines it has changed.
func (f *file) exec(sql string, args ...int64) int64 {
	if query(f.db, sql, func(*sqlite3.Stmt) error { return nil }, args...) != nil {
		return 0
	}
	return f.db.Changes()
}

// shrink takes away the oldest requests, as many as take that many bytes.
func (f *file) shrink(bytes int64) {
	last := int64(0)
	_ = query(f.db, "SELECT block,length(ids)+length(body) FROM requests ORDER BY block LIMIT ?", func(st *sqlite3.Stmt) error {
		last = st.ColumnInt64(0)
		if bytes -= st.ColumnInt64(1); bytes <= 0 {
			return errFound
		}
		return nil
	}, tidyBlocks)
	f.exec("DELETE FROM requests WHERE block <= ?", last)
}

// expire takes away requests that ended before a time. It returns false when there may be more.
func (f *file) expire(before time.Time) bool {
	for range tidyRounds { // a second of light traffic is a block of its own: what went in since the last time is more than one round
		n := int64(0)
		f.within(func() {
			n = f.exec("DELETE FROM requests WHERE block IN (SELECT block FROM requests WHERE until < ? ORDER BY until LIMIT ?)", before.UnixMicro(), tidyBlocks)
		})
		if n < tidyBlocks {
			return true
		}
	}
	return false
}

// recount sees that blocks which are yet to come are looked at: when the newest are gone, their numbers are given anew.
func (f *file) recount() {
	_ = query(f.db, "SELECT max(block) FROM requests", func(st *sqlite3.Stmt) error {
		f.compacted = min(f.compacted, st.ColumnInt64(0))
		return nil
	})
}
