package books

import (
	"errors"
	"fmt"
	"io"
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
// valid during the call only. Where a gateway begins to write the file meanwhile, they are called for once more from the first on.
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

// reading calls fn with a file that is not written. It leaves nothing behind, and needs to write nowhere near the file.
func reading(path string, fn func(*sqlite3.Conn) error) error {
	path, err := filepath.Abs(path) // a URI has no relative ones
	if err != nil {
		return err
	}
	for range rereads {
		before := stateOf(path)
		if before.open {
			break
		}
		// Nobody writes: it is read as if it could not change.
		name := (&url.URL{Scheme: "file", Path: path, RawQuery: "immutable=1"}).String()
		err = readingAs(path, name, sqlite3.OPEN_READONLY|sqlite3.OPEN_URI, fn)
		if stateOf(path) == before {
			return err
		} // else a gateway has come meanwhile, and perhaps gone
	}
	err = readingAs(path, path, sqlite3.OPEN_READONLY, fn)
	if !errors.Is(err, sqlite3.CANTOPEN) && !errors.Is(err, sqlite3.READONLY) {
		return err
	}
	// Whoever had it open was killed, and what they share cannot be made anew: it is on a disk that only can be read.
	if copied := copyOf(path, func(to string) error { return readingAs(path, to, sqlite3.OPEN_READONLY, fn) }); !errors.Is(copied, errChanged) {
		return copied
	}
	return err
}

const rereads = 5 // of a file that gateways come to and leave while it is read

// fileState is what changes when somebody writes to a file.
type fileState struct {
	open bool // it has a log: somebody writes, or was killed
	size int64
	at   time.Time
}

func stateOf(path string) (s fileState) {
	_, err := os.Stat(path + "-wal")
	s.open = !errors.Is(err, os.ErrNotExist)
	if info, err := os.Stat(path); err == nil {
		s.size, s.at = info.Size(), info.ModTime()
	}
	return s
}

var errChanged = errors.New("it changes while it is copied")

// copyOf calls fn with a copy of a file and its log, which it takes away afterwards.
func copyOf(path string, fn func(path string) error) error {
	dir, err := os.MkdirTemp("", "headrace-ledger-") // for its owner alone
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	to, before := filepath.Join(dir, "ledger.db"), stateOf(path)
	for _, part := range []string{"", "-wal"} {
		if err := copyFile(path+part, to+part); err != nil {
			return err
		}
	}
	if stateOf(path) != before {
		return errChanged
	}
	return fn(to)
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// readingAs opens a file by name and calls fn.
func readingAs(path, name string, flags sqlite3.OpenFlag, fn func(*sqlite3.Conn) error) error {
	db, err := sqlite3.OpenFlags(name, flags)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer func() { _ = db.Close() }()
	if err = db.BusyTimeout(busyFor); err != nil {
		return err
	}
	v, err := version(db)
	if err == nil && v == 0 {
		err = errNoLedger
	}
	if err == nil {
		err = fn(db)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
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
