package books

import (
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/ncruces/go-sqlite3"

	"headrace/gateway/ledger"
)

// migrations bring a file from the version of their index to the next. Those that were released are not to be changed.
var migrations = [...]string{
	`CREATE TABLE runs (run BLOB PRIMARY KEY, began INTEGER NOT NULL, alive INTEGER NOT NULL, writes INTEGER NOT NULL) WITHOUT ROWID;
	CREATE TABLE cells (id INTEGER PRIMARY KEY, key TEXT NOT NULL, model TEXT NOT NULL, served TEXT NOT NULL, provider TEXT NOT NULL, host TEXT NOT NULL,
		arm TEXT NOT NULL, UNIQUE (key, model, served, provider, host, arm));
	CREATE TABLE requests (block INTEGER PRIMARY KEY, since INTEGER NOT NULL, until INTEGER NOT NULL, n INTEGER NOT NULL, ids BLOB NOT NULL, body BLOB NOT NULL);
	CREATE TABLE rollups (hour INTEGER NOT NULL, cell INTEGER NOT NULL,
		requests NOT NULL DEFAULT 0, errors NOT NULL DEFAULT 0, "left" NOT NULL DEFAULT 0, attempts NOT NULL DEFAULT 0, prompt_tokens NOT NULL DEFAULT 0,
		cached_tokens NOT NULL DEFAULT 0, output_tokens NOT NULL DEFAULT 0, reasoning_tokens NOT NULL DEFAULT 0, wasted_prompt_tokens NOT NULL DEFAULT 0,
		wasted_output_tokens NOT NULL DEFAULT 0, estimated_tokens NOT NULL DEFAULT 0, unknown_price_attempts NOT NULL DEFAULT 0,
		first_tokens NOT NULL DEFAULT 0, streams NOT NULL DEFAULT 0, used_per_hour_usd NOT NULL DEFAULT 0, used_per_worker_second_usd NOT NULL DEFAULT 0,
		used_per_token_usd NOT NULL DEFAULT 0, guessed_usd NOT NULL DEFAULT 0, marginal_usd NOT NULL DEFAULT 0, host_seconds NOT NULL DEFAULT 0,
		worker_seconds NOT NULL DEFAULT 0, traffic_usd NOT NULL DEFAULT 0, ttft_seconds NOT NULL DEFAULT 0, tokens_per_second NOT NULL DEFAULT 0,
		wasted_retry_usd NOT NULL DEFAULT 0, wasted_hedge_lost_usd NOT NULL DEFAULT 0, wasted_preempted_usd NOT NULL DEFAULT 0,
		wasted_re_prefilled_usd NOT NULL DEFAULT 0, wasted_orphaned_usd NOT NULL DEFAULT 0, wasted_cold_start_usd NOT NULL DEFAULT 0,
		wasted_refused_usd NOT NULL DEFAULT 0,
		PRIMARY KEY (hour, cell)) WITHOUT ROWID;
	CREATE TABLE hours (hour INTEGER NOT NULL, provider TEXT NOT NULL, host TEXT NOT NULL, seconds REAL NOT NULL, up REAL NOT NULL, usd REAL NOT NULL,
		starts INTEGER NOT NULL, cold_usd REAL NOT NULL, PRIMARY KEY (hour, host)) WITHOUT ROWID;
	CREATE TABLE prices (host TEXT NOT NULL, served TEXT NOT NULL, provider TEXT NOT NULL, basis TEXT NOT NULL, usd REAL NOT NULL, usd_in REAL NOT NULL,
		usd_cached REAL NOT NULL, usd_out REAL NOT NULL, gpu TEXT NOT NULL, source TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (host, served)) WITHOUT ROWID;
	CREATE TABLE bills (account TEXT NOT NULL, since INTEGER NOT NULL, until INTEGER NOT NULL, billed REAL NOT NULL, ledger REAL NOT NULL, hosts INTEGER NOT NULL,
		at INTEGER NOT NULL, PRIMARY KEY (account, at)) WITHOUT ROWID;`,
	`CREATE INDEX requests_until ON requests (until);`,
	`ALTER TABLE hours ADD COLUMN billed REAL;
	ALTER TABLE bills ADD COLUMN left_out REAL NOT NULL DEFAULT 0;`,
}

const (
	busyFor    = 2 * time.Second // another process has the file
	priceEvery = 5 * time.Minute
	tidyBlocks = 200    // that one transaction of tidying takes away at most
	tidyRounds = 50     // of such transactions, before writing goes on
	mostCached = 50_000 // numbers of cells
	freePages  = 2_000  // given back to the file system by one round
	cacheKiB   = 512    // of SQLite's pages in memory
	fileMode   = 0o600  // it says who asked for what
	folderMode = 0o700
)

// ErrNewer is returned for a file that a newer version of this program has written. It is left alone.
var ErrNewer = errors.New("the ledger's file was written by a newer version of headrace")

// ErrTaken is returned for a file that another process writes: each gateway needs its own.
var ErrTaken = errors.New("another gateway writes this ledger: give each a ledger.path of its own")

// file is the ledger on disk. One goroutine uses it.
type file struct {
	path string // "" for memory
	now  func() time.Time

	db     *sqlite3.Conn // nil until it is opened
	locked *os.File      // nil while it is not ours
	run    [16]byte
	began  time.Time
	writes int64
	size   int64 // bytes

	insert, upsert, number, newCell, hour, billed, price, bill, alive, pages *sqlite3.Stmt

	cells        map[Cell]int64 // with Hour 0
	body, hashes []byte

	pricedAt, tidiedAt, aliveAt time.Time
	compacted                   int64 // blocks up to this are put together

	err     error // of the last write, nil when it went well
	pause   time.Duration
	retryAt time.Time
}

// open opens the file, and makes it what this version needs. It does nothing when that is done.
func (f *file) open() (err error) {
	if f.db != nil {
		return nil
	}
	name := f.path
	if name == "" {
		name = ":memory:"
	} else {
		if err := os.MkdirAll(filepath.Dir(name), folderMode); err != nil {
			return err
		}
		fd, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, fileMode) // SQLite's own mode is for all to read
		if err != nil {
			return err
		}
		_ = fd.Close()
		if f.locked == nil {
			if f.locked, err = lock(name); err != nil {
				return err
			}
		}
	}
	db, err := sqlite3.Open(name)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			f.closeStatements() // else the file stays open
			_ = db.Close()
			err = fmt.Errorf("open %s: %w", name, err)
		}
	}()
	if err = db.BusyTimeout(busyFor); err != nil {
		return err
	}
	if err = db.Exec(fmt.Sprintf("PRAGMA auto_vacuum=incremental; PRAGMA journal_mode=wal; PRAGMA synchronous=normal; PRAGMA cache_size=-%d", cacheKiB)); err != nil {
		return err
	}
	if err = migrate(db); err != nil {
		return err
	}
	if f.path != "" { // SQLite's own are for all to read
		for _, more := range []string{"-wal", "-shm"} {
			_ = os.Chmod(f.path+more, fileMode) // it may not be there
		}
	}
	cols := columns()
	for _, s := range []struct {
		into **sqlite3.Stmt
		sql  string
	}{
		{&f.insert, "INSERT INTO requests (since,until,n,ids,body) VALUES (?,?,?,?,?)"},
		{&f.upsert, "INSERT INTO rollups (hour,cell," + list(cols, quoted) + ") VALUES (?,?" + repeat(",?", len(cols)) + ") ON CONFLICT DO UPDATE SET " +
			list(cols, func(c string) string { return quoted(c) + "=" + quoted(c) + "+excluded." + quoted(c) })},
		{&f.number, "SELECT id FROM cells WHERE key=? AND model=? AND served=? AND provider=? AND host=? AND arm=?"},
		{&f.newCell, "INSERT INTO cells (key,model,served,provider,host,arm) VALUES (?,?,?,?,?,?)"},
		{&f.hour, `INSERT INTO hours (hour,provider,host,seconds,up,usd,starts,cold_usd) VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET seconds=seconds+excluded.seconds, up=up+excluded.up, usd=usd+excluded.usd,
			starts=starts+excluded.starts, cold_usd=cold_usd+excluded.cold_usd`},
		{&f.billed, "UPDATE hours SET billed=usd*?+? WHERE host=? AND hour>=? AND hour<?"},
		{&f.price, "INSERT OR REPLACE INTO prices (host,served,provider,basis,usd,usd_in,usd_cached,usd_out,gpu,source,at) VALUES (?,?,?,?,?,?,?,?,?,?,?)"},
		{&f.bill, "INSERT OR REPLACE INTO bills (account,since,until,billed,ledger,hosts,at,left_out) VALUES (?,?,?,?,?,?,?,?)"},
		{&f.alive, "UPDATE runs SET alive=?, writes=? WHERE run=?"},
		{&f.pages, "SELECT (page_count-freelist_count)*page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size"},
	} {
		if *s.into, _, err = db.PrepareFlags(s.sql, sqlite3.PREPARE_PERSISTENT); err != nil {
			return err
		}
	}
	if f.began.IsZero() { // else it was closed after a failure
		f.began = f.now()
		_, _ = rand.Read(f.run[:]) // never fails
	}
	if err = f.begun(db); err != nil { // without its line nobody could tell whether a commit that failed took place
		return err
	}
	f.db, f.cells = db, map[Cell]int64{}
	return nil
}

// begun sees that this run has a line.
func (f *file) begun(db *sqlite3.Conn) error {
	st, _, err := db.Prepare("INSERT INTO runs VALUES (?,?,?,0) ON CONFLICT DO NOTHING")
	if err != nil {
		return err
	}
	defer func() { _ = st.Close() }()
	return errors.Join(st.BindBlob(1, f.run[:]), st.BindInt64(2, f.began.UnixMicro()), st.BindInt64(3, f.began.UnixMicro()), st.Exec())
}

// quoted is a column's name where it might be a word of SQL.
func quoted(column string) string { return `"` + column + `"` }

func repeat(s string, n int) string {
	b := make([]byte, 0, n*len(s))
	for range n {
		b = append(b, s...)
	}
	return string(b)
}

// migrate brings the file to the version of today, each step in a transaction of its own.
func migrate(db *sqlite3.Conn) error {
	v, err := version(db)
	if err != nil {
		return err
	}
	for ; v < len(migrations); v++ {
		if err := db.Exec("BEGIN IMMEDIATE"); err != nil {
			return err
		}
		now, err := version(db) // another process may have been faster
		if err == nil && now == v {
			err = db.Exec(migrations[v] + fmt.Sprintf("; PRAGMA user_version=%d", v+1))
		}
		if err != nil {
			_ = db.Exec("ROLLBACK")
			return err
		}
		if err := db.Exec("COMMIT"); err != nil {
			_ = db.Exec("ROLLBACK")
			return err
		}
	}
	return nil
}

// version is the file's. The error is ErrNewer for one that is not known here.
func version(db *sqlite3.Conn) (int, error) {
	v := 0
	err := query(db, "PRAGMA user_version", func(st *sqlite3.Stmt) error {
		v = st.ColumnInt(0)
		return nil
	})
	if err == nil && v > len(migrations) {
		err = fmt.Errorf("%w (version %d, this one knows %d)", ErrNewer, v, len(migrations))
	}
	return v, err
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

func (f *file) close() {
	if f.db != nil {
		f.closeStatements()                              // else the file stays open
		_ = f.db.Exec("PRAGMA wal_checkpoint(truncate)") // what was committed is there
		_ = f.db.Close()
		f.db = nil
	}
	if f.locked != nil {
		_ = f.locked.Close()
		f.locked = nil
	}
}

func (f *file) closeStatements() {
	for _, st := range []**sqlite3.Stmt{&f.insert, &f.upsert, &f.number, &f.newCell, &f.hour, &f.billed, &f.price, &f.bill, &f.alive, &f.pages} {
		if *st != nil {
			_ = (*st).Close()
			*st = nil
		}
	}
}

func (f *file) begin() error { return f.db.Exec("BEGIN IMMEDIATE") }

func (f *file) rollback() {
	_ = f.db.Exec("ROLLBACK") // there may be no transaction any more
	clear(f.cells)            // numbers that were given in it are not there
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
	for c, s := range p.sums {
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
