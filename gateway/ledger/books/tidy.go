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
	if f.db == nil || at.Sub(f.tidiedAt) < tidyEvery && (maxBytes <= 0 || f.size <= maxBytes) {
		return
	}
	due := at.Sub(f.tidiedAt) >= tidyEvery
	f.tidiedAt = at
	exec := func(sql string, args ...int64) int64 {
		if query(f.db, sql, func(*sqlite3.Stmt) error { return nil }, args...) != nil {
			return 0
		}
		return f.db.Changes()
	}
	if maxBytes > 0 && f.size > maxBytes {
		f.within(func() {
			exec("DELETE FROM requests WHERE block IN (SELECT block FROM requests ORDER BY block LIMIT ?)", tidyBlocks)
		})
	}
	if keep > 0 && due { // a second of light traffic is a block of its own: what went in since the last time is more than one round
		n := int64(tidyBlocks)
		for i := 0; i < tidyRounds && n == tidyBlocks; i++ {
			n = 0
			f.within(func() {
				n = exec("DELETE FROM requests WHERE block IN (SELECT block FROM requests WHERE until < ? ORDER BY until LIMIT ?)", at.Add(-keep).UnixMicro(), tidyBlocks)
			})
		}
		if n == tidyBlocks {
			f.tidiedAt = time.Time{} // there is more: go on after the next write
		}
	}
	if due {
		f.compact(keep)
	}
	if keepSums > 0 && due {
		before := hourOf(at.Add(-keepSums))
		f.within(func() {
			if exec("DELETE FROM rollups WHERE hour < ?", before) > 0 {
				exec("DELETE FROM cells WHERE id NOT IN (SELECT cell FROM rollups)")
				clear(f.cells)
			}
			exec("DELETE FROM hours WHERE hour < ?", before)
			exec("DELETE FROM bills WHERE at < ?", before*1e6)
			exec("DELETE FROM prices WHERE at < ?", before*1e6)
			exec("DELETE FROM runs WHERE alive < ?", before*1e6)
		})
	}
	_ = f.db.Exec(fmt.Sprintf("PRAGMA incremental_vacuum(%d)", freePages))
}
