package books

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/ncruces/go-sqlite3"
)

const priceEvery = 5 * time.Minute

func (f *file) begin() error { return f.db.Exec("BEGIN IMMEDIATE") }

func (f *file) rollback() {
	_ = f.db.Exec("ROLLBACK") // there may be no transaction any more
	clear(f.cells)            // numbers that were given in it are not there
}

// within calls fn in a transaction; where there is none to be had it does not.
func (f *file) within(fn func()) {
	if f.begin() != nil {
		return
	}
	fn()
	if f.db.Exec("COMMIT") != nil {
		f.rollback()
	}
}

// cell is the number of what a rollup is of, hours aside.
func (f *file) cell(c Cell) (int64, error) {
	c.Hour = 0
	if n, ok := f.cells[c]; ok {
		return n, nil
	}
	if len(f.cells) >= mostCached {
		clear(f.cells)
	}
	names := []any{c.Key, c.Model, c.Served, c.Provider, c.Host, c.Arm}
	if err := bind(f.number, names...); err != nil {
		return 0, err
	}
	n, found := int64(0), f.number.Step()
	if found {
		n = f.number.ColumnInt64(0)
	}
	if err := f.number.Reset(); err != nil {
		return 0, err
	}
	if !found {
		if err := run(f.newCell, names...); err != nil {
			return 0, err
		}
		n = f.db.LastInsertRowID()
	}
	f.cells[c] = n
	return n, nil
}

// write adds p to the file, in the transaction that was begun, and commits. After an error nothing of it is there.
func (f *file) write(at time.Time, p *pending) (err error) {
	defer func() {
		if err != nil {
			f.rollback()
		}
	}()
	for _, b := range p.blocks {
		f.body, f.hashes = b.body(f.body[:0]), b.hashes(f.hashes[:0])
		if err := run(f.insert, b.first, b.last, int64(len(b.ids)), f.hashes, f.body); err != nil {
			return err
		}
	}
	for c, s := range p.sums.of {
		n, err := f.cell(c)
		if err != nil {
			return err
		}
		st := f.upsert
		if err := errors.Join(st.BindInt64(1, c.Hour), st.BindInt64(2, n)); err != nil {
			return err
		}
		for i, v := range s.N {
			if err := st.BindInt64(3+i, v); err != nil {
				return err
			}
		}
		for i, v := range s.F {
			if err := st.BindFloat(3+int(numCounts)+i, finite(v)); err != nil {
				return err
			}
		}
		if err := st.Exec(); err != nil {
			return err
		}
	}
	for i := range p.hours {
		h := &p.hours[i]
		if err := run(f.hour, h.Hour, h.Provider, h.Host, finite(h.Seconds), finite(h.Up), finite(h.USD), h.Starts, finite(h.ColdUSD)); err != nil {
			return err
		}
	}
	for i := range p.billed {
		c := &p.billed[i]
		from, to := c.hours()
		fixed := c.of(0) // it is linear
		if err := run(f.billed, finite(c.of(1)-fixed), finite(fixed), string(c.Host), from, to); err != nil {
			return err
		}
	}
	for i := range p.bills {
		b := &p.bills[i]
		if err := run(f.bill, b.Account, b.From.UnixMicro(), b.To.UnixMicro(), finite(b.Billed), finite(b.Ledger), int64(b.Hosts), b.AsOf.UnixMicro(), finite(b.LeftOut)); err != nil {
			return err
		}
	}
	for i := range p.prices {
		q := &p.prices[i]
		if err := run(f.price, q.Host, q.Served, q.Provider, q.Basis, q.USD, q.In, q.Cached, q.Out, q.GPU, q.Source, q.At.UnixMicro()); err != nil {
			return err
		}
	}
	if err := run(f.alive, at.UnixMicro(), f.writes+1, f.run[:]); err != nil {
		return err
	}
	if err := f.db.Exec("COMMIT"); err != nil && !f.committed() {
		return err
	}
	f.writes++
	f.aliveAt = at
	if f.pages.Step() {
		f.size = f.pages.ColumnInt64(0)
	}
	return f.pages.Reset()
}

// finite is v, and 0 where it is no number: SQLite has none, and one sum that cannot be written would keep all others from being so.
func finite(v float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return v
}

// committed tells whether a commit that failed took place all the same: what is written once more would count twice.
func (f *file) committed() (yes bool) {
	f.rollback()
	st, _, err := f.db.Prepare("SELECT writes FROM runs WHERE run=?")
	if err != nil {
		return false
	}
	defer func() { _ = st.Close() }()
	return st.BindBlob(1, f.run[:]) == nil && st.Step() && st.ColumnInt64(0) > f.writes
}

// wantPrices tells whether prices are to be noted again.
func (f *file) wantPrices(at time.Time) bool {
	if at.Sub(f.pricedAt) < priceEvery {
		return false
	}
	f.pricedAt = at
	return true
}

// bind binds values in order.
func bind(st *sqlite3.Stmt, values ...any) error {
	for i, v := range values {
		var err error
		switch v := v.(type) {
		case int64:
			err = st.BindInt64(i+1, v)
		case float64:
			err = st.BindFloat(i+1, v)
		case string:
			err = st.BindText(i+1, v)
		case []byte:
			err = st.BindBlob(i+1, v)
		case nil:
			err = st.BindNull(i + 1)
		default:
			panic(fmt.Sprintf("BUG: bind %T", v))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// run executes a statement that returns nothing.
func run(st *sqlite3.Stmt, values ...any) error {
	if err := bind(st, values...); err != nil {
		return err
	}
	return st.Exec()
}
