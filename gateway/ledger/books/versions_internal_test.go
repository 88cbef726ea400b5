package books

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"
)

// TestReadOfEarlierVersions reads files that earlier versions have written, without writing to them.
func TestReadOfEarlierVersions(t *testing.T) {
	hour := time.Unix(1_800_000_000, 0).Truncate(time.Hour)
	for v := 1; v <= len(migrations); v++ {
		path := filepath.Join(t.TempDir(), "l.db")
		db, err := sqlite3.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range migrations[:v] {
			if err := db.Exec(m); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Exec(fmt.Sprintf(`INSERT INTO hours (hour,provider,host,seconds,up,usd,starts,cold_usd) VALUES (%d,'runpod','runpod:a',60,60,0.25,1,0.1);
			INSERT INTO bills (account,since,until,billed,ledger,hosts,at) VALUES ('runpod',%d,%d,0.5,0.25,1,%d); PRAGMA user_version=%d`,
			hour.Unix(), hour.UnixMicro(), hour.Add(time.Hour).UnixMicro(), hour.UnixMicro(), v)); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		p, err := Read(path, hour, hour.Add(time.Hour))
		if err != nil || len(p.Hours) != 1 || p.Hours[0].USD != 0.25 || p.Hours[0].Billed != nil || len(p.Bills) != 1 || p.Bills[0].Billed != 0.5 || p.Bills[0].LeftOut != 0 {
			t.Errorf("version %d: %+v, %v", v, p, err)
		}
		if got, err := fileVersion(path); err != nil || got != v {
			t.Errorf("version %d is %d after it was read, %v", v, got, err)
		}
	}
	empty := filepath.Join(t.TempDir(), "empty.db")
	db, err := sqlite3.Open(empty)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Exec("CREATE TABLE other (a)"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(empty, hour, hour.Add(time.Hour)); err == nil {
		t.Error("a file that is no ledger was read")
	}
}

func fileVersion(path string) (v int, err error) {
	db, err := sqlite3.OpenFlags(path, sqlite3.OPEN_READONLY)
	if err != nil {
		return 0, err
	}
	defer func() { _ = db.Close() }()
	return version(db)
}
