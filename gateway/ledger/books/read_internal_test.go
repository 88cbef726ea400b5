package books

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"

	"headrace/gateway/ledger"
	"headrace/router/outcome"
)

// TestReadOfAKilledGateway reads what a gateway that was killed had committed, from a disk that cannot be written to.
func TestReadOfAKilledGateway(t *testing.T) {
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	b := New(Options{Path: filepath.Join(t.TempDir(), "ledger.db"), Flush: time.Second, Now: func() time.Time { return at }})
	defer b.f.close()
	b.Record(&ledger.Record{ID: "a", At: at, Key: "k", Model: "m", Known: true, Class: outcome.Success})
	if err := b.flush(true); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "ledger.db")
	for _, part := range []string{"", "-wal"} {
		if err := copyFile(b.opt.Path+part, path+part); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(path+"-shm", 0o500); err != nil { // what readers share cannot be made, by root either
		t.Fatal(err)
	}
	p, err := Read(path, at, at.Add(time.Hour))
	if err != nil || len(p.Rollups) != 1 || p.Rollups[0].N[Requests] != 1 {
		t.Errorf("%+v, %v", p.Rollups, err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 3 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestReadWhileAGatewayComesAndGoes reads once more what was written while it was read as if it could not change.
func TestReadWhileAGatewayComesAndGoes(t *testing.T) {
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	path := filepath.Join(t.TempDir(), "ledger.db")
	write := func(id string) {
		b := New(Options{Path: path, Flush: time.Second, Now: func() time.Time { return at }})
		b.Record(&ledger.Record{ID: id, At: at, Key: id, Model: "m", Known: true, Class: outcome.Success})
		err := b.flush(true)
		b.f.close()
		if err != nil {
			t.Fatal(err)
		}
	}
	write("a")
	if err := os.Chtimes(path, at, at); err != nil { // that it changes shows, however fast the machine
		t.Fatal(err)
	}
	rounds := 0
	var p Period
	err := reading(path, func(db *sqlite3.Conn) (err error) {
		if rounds++; rounds == 1 {
			write("b")
		}
		p, err = read(db, at, at.Add(time.Hour))
		return err
	})
	if err != nil || rounds != 2 || len(p.Rollups) != 2 {
		t.Errorf("%d rounds, %d sums, %v", rounds, len(p.Rollups), err)
	}
	if _, err := os.Stat(path + "-wal"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}
