package books

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ncruces/go-sqlite3"
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
	mostCached = 50_000          // numbers of cells
	cacheKiB   = 512             // of SQLite's pages in memory
	fileMode   = 0o600           // it says who asked for what
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
