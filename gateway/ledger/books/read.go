package books

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/ncruces/go-sqlite3"

	"headrace/gateway/ledger"
)

// period reads what there is of some hours.
func (f *file) period(since, until time.Time) (Period, error) {
	if err := f.open(); err != nil {
		return Period{}, err
	}
	p, err := read(f.db, since, until)
	p.Replicas = []string{f.path}
	return p, err
}

// withBills is the version of files from which on they have what single hosts were billed.
const withBills = 3

// read reads what a file has of some hours, also one that an earlier version has written and that may not be written now.
func read(db *sqlite3.Conn, since, until time.Time) (p Period, err error) {
	p.Since, p.Until = since, until
	v, err := version(db)
	if err != nil {
		return p, err
	}
	billed, leftOut := "billed", "left_out"
	if v < withBills {
		billed, leftOut = "NULL", "0.0"
	}
	from, to := hourOf(since), secondOf(until)
	err = query(db, "SELECT hour,key,model,served,provider,host,arm,"+list(columns(), quoted)+
		" FROM rollups JOIN cells ON cell=id WHERE hour>=? AND hour<? ORDER BY hour", func(st *sqlite3.Stmt) error {
		r := Rollup{Cell: Cell{st.ColumnInt64(0), st.ColumnText(1), st.ColumnText(2), st.ColumnText(3), st.ColumnText(4), st.ColumnText(5), st.ColumnText(6)}}
		for i := range r.N {
			r.N[i] = st.ColumnInt64(7 + i)
		}
		for i := range r.F {
			r.F[i] = st.ColumnFloat(7 + len(r.N) + i)
		}
		p.Rollups = append(p.Rollups, r)
		return nil
	}, from, to)
	if err != nil {
		return p, err
	}
	err = query(db, "SELECT hour,provider,host,seconds,up,usd,starts,cold_usd,"+billed+" FROM hours WHERE hour>=? AND hour<? ORDER BY hour", func(st *sqlite3.Stmt) error {
		h := HostHour{
			st.ColumnInt64(0), st.ColumnText(1), st.ColumnText(2), st.ColumnFloat(3), st.ColumnFloat(4), st.ColumnFloat(5), st.ColumnInt64(6), st.ColumnFloat(7), nil,
		}
		if st.ColumnType(8) != sqlite3.NULL {
			usd := st.ColumnFloat(8)
			h.Billed = &usd
		}
		p.Hours = append(p.Hours, h)
		return nil
	}, from, to)
	if err != nil {
		return p, err
	}
	err = query(db, "SELECT host,provider,served,basis,usd,usd_in,usd_cached,usd_out,gpu,source,at FROM prices WHERE at>=? ORDER BY host,served", func(st *sqlite3.Stmt) error {
		p.Prices = append(p.Prices, Price{
			st.ColumnText(0), st.ColumnText(1), st.ColumnText(2), st.ColumnText(3), st.ColumnFloat(4), st.ColumnFloat(5), st.ColumnFloat(6), st.ColumnFloat(7),
			st.ColumnText(8), st.ColumnText(9), time.UnixMicro(st.ColumnInt64(10)),
		})
		return nil
	}, from*1e6)
	if err != nil {
		return p, err
	}
	err = query(db, "SELECT account,since,until,billed,ledger,hosts,at,"+leftOut+" FROM bills WHERE until>=? AND since<? ORDER BY at", func(st *sqlite3.Stmt) error {
		p.Bills = append(p.Bills, Bill{
			st.ColumnText(0), time.UnixMicro(st.ColumnInt64(1)), time.UnixMicro(st.ColumnInt64(2)), st.ColumnFloat(3), st.ColumnFloat(4), st.ColumnInt(5),
			time.UnixMicro(st.ColumnInt64(6)), st.ColumnFloat(7),
		})
		return nil
	}, from*1e6, to*1e6)
	if err != nil {
		return p, err
	}
	return p, query(db, "SELECT began,alive FROM runs WHERE alive>=? AND began<? ORDER BY began DESC LIMIT 1000", func(st *sqlite3.Stmt) error {
		p.Runs = append(p.Runs, Span{time.UnixMicro(st.ColumnInt64(0)), time.UnixMicro(st.ColumnInt64(1))})
		return nil
	}, from*1e6, to*1e6)
}

// Read reads a file that a gateway may be writing to meanwhile. What that has not written yet, a second's worth, is missing.
func Read(path string, since, until time.Time) (p Period, err error) {
	err = reading(path, func(db *sqlite3.Conn) error {
		p, err = read(db, since, until)
		return err
	})
	p.Replicas = []string{path}
	return p, err
}

// Each calls each for every request that a file has, in the order in which they were written, until it returns false. The record is
// valid during the call only.
func Each(path string, each func(*ledger.Record) bool) error {
	err := reading(path, func(db *sqlite3.Conn) error {
		return query(db, "SELECT body FROM requests ORDER BY block", func(st *sqlite3.Stmt) error {
			on := true
			err := readBlock(st.ColumnRawBlob(0), func(r *ledger.Record) bool {
				on = each(r)
				return on
			})
			if err == nil && !on {
				return errFound
			}
			return err
		})
	})
	if errors.Is(err, errFound) {
		return nil
	}
	return err
}

// reading calls fn with a file that is not written.
func reading(path string, fn func(*sqlite3.Conn) error) error {
	path, err := filepath.Abs(path) // a URI has no relative ones
	if err != nil {
		return err
	}
	name, flags := path, sqlite3.OPEN_READONLY
	if _, err := os.Stat(path + "-wal"); errors.Is(err, os.ErrNotExist) { // nobody writes: leave nothing behind
		name, flags = (&url.URL{Scheme: "file", Path: path, RawQuery: "immutable=1"}).String(), flags|sqlite3.OPEN_URI
	}
	again, err := readingAs(path, name, flags, fn)
	if again { // a gateway has begun to write meanwhile
		_, err = readingAs(path, path, sqlite3.OPEN_READONLY, fn)
	}
	return err
}

// readingAs opens a file by name and calls fn. Again says that it was taken for one that nobody writes, and was written.
func readingAs(path, name string, flags sqlite3.OpenFlag, fn func(*sqlite3.Conn) error) (again bool, err error) {
	db, err := sqlite3.OpenFlags(name, flags)
	if err != nil {
		return false, fmt.Errorf("open %s: %w", path, err)
	}
	defer func() { _ = db.Close() }()
	if name != path {
		defer func() {
			if _, serr := os.Stat(path + "-wal"); serr == nil {
				again = true
			}
		}()
	}
	if err := db.BusyTimeout(busyFor); err != nil {
		return false, err
	}
	v, err := version(db)
	if err == nil && v == 0 {
		err = errNoLedger
	}
	if err == nil {
		err = fn(db)
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	return false, nil
}

var errNoLedger = errors.New("it is no ledger, or no gateway has written to it yet")

// errFound ends a search.
var errFound = errors.New("found")

// find reads one request.
func (f *file) find(id string) (r ledger.Record, ok bool, err error) {
	if err := f.open(); err != nil {
		return r, false, err
	}
	h := hashID(id)
	err = query(f.db, "SELECT ids,block FROM requests ORDER BY block DESC", func(st *sqlite3.Stmt) error {
		if !holds(st.ColumnRawBlob(0), h) {
			return nil
		}
		err := query(f.db, "SELECT body FROM requests WHERE block=?", func(st *sqlite3.Stmt) error {
			return readBlock(st.ColumnRawBlob(0), func(one *ledger.Record) bool {
				if ok = one.ID == id; ok {
					r = *one
				}
				return !ok
			})
		}, st.ColumnInt64(1))
		if err == nil && ok {
			return errFound
		}
		return err
	})
	if errors.Is(err, errFound) {
		err = nil
	}
	return r, ok && err == nil, err
}

// query calls row for each row of an SQL query.
func query(db *sqlite3.Conn, sql string, row func(*sqlite3.Stmt) error, args ...int64) error {
	st, _, err := db.Prepare(sql)
	if err != nil {
		return err
	}
	defer func() { _ = st.Close() }()
	for i, a := range args {
		if err := st.BindInt64(i+1, a); err != nil {
			return err
		}
	}
	for st.Step() {
		if err := row(st); err != nil {
			return err
		}
	}
	return st.Err()
}
