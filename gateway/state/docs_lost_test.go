package state

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

// TestDocsPutAfterLoss has somebody write to a Redis that has lost its data before anybody has read it again: what was there before is there
// afterwards, also when the one who writes knows nothing of it.
func TestDocsPutAfterLoss(t *testing.T) {
	s := startRedis(t)
	r := s.run()
	d := r.Docs(DocsOptions{Dir: t.TempDir()})
	for i := range 5 {
		if _, err := d.Put(t.Context(), "key", fmt.Sprint("k", i), 0, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	for n, writer := range []*Docs{d, s.open(nil).Docs(DocsOptions{})} {
		if docs, err := d.Load(t.Context(), "key"); err != nil || len(docs) != 5+n {
			t.Fatal(len(docs), err)
		}
		if err := r.client.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		if _, err := writer.Put(t.Context(), "key", fmt.Sprint("new", n), 0, []byte("x")); err != nil {
			t.Fatal(err)
		}
		docs, err := d.Load(t.Context(), "key")
		if err != nil || len(docs) != 6+n {
			t.Errorf("writer %d: %d documents of %d are left, %v", n, len(docs), 6+n, err)
		}
		if left, _ := d.readCopy("key"); len(left) != 6+n {
			t.Errorf("writer %d: the copy on disk has %d", n, len(left))
		}
	}
}

// TestDocsNewestWins has replicas that know less come first to a Redis that has lost something: those who know more are believed in the end,
// also that a document was deleted.
func TestDocsNewestWins(t *testing.T) {
	for what, lose := range map[string]func(t *testing.T, a *Docs, fields map[string]string){
		"everything is lost": func(t *testing.T, a *Docs, _ map[string]string) {
			t.Helper()
			if err := a.r.client.FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		},
		"the last writes are lost, as by a failover": func(t *testing.T, a *Docs, fields map[string]string) {
			t.Helper()
			if err := a.r.client.HSet(t.Context(), a.key("key"), fields).Err(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			s := startRedis(t)
			dir := filepath.Join(t.TempDir(), "old")
			a, b, old := s.open(nil).Docs(DocsOptions{}), s.open(nil).Docs(DocsOptions{}), s.open(nil).Docs(DocsOptions{Dir: dir})
			at := map[string]Version{}
			for _, name := range []string{"leaked", "revoked", "valid"} {
				v, err := a.Put(t.Context(), "key", name, 0, []byte("valid"))
				if err != nil {
					t.Fatal(err)
				}
				at[name] = v
			}
			for _, d := range []*Docs{a, b, old} {
				if docs, err := d.Load(t.Context(), "key"); err != nil || len(docs) != 3 {
					t.Fatal(docs, err)
				}
			}
			fields, err := a.r.client.HGetAll(t.Context(), a.key("key")).Result()
			if err != nil {
				t.Fatal(err)
			}
			w, err := a.Put(t.Context(), "key", "revoked", at["revoked"], []byte("revoked"))
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Delete(t.Context(), "key", "leaked", at["leaked"]); err != nil {
				t.Fatal(err)
			}
			lose(t, a, fields)
			late := s.open(nil).Docs(DocsOptions{Dir: dir}) // a pod with an old copy
			for _, d := range []*Docs{late, b} {
				if _, err := d.Load(t.Context(), "key"); err != nil {
					t.Fatal(err)
				}
			}
			for i, d := range []*Docs{a, b, late} {
				docs, err := d.Load(t.Context(), "key")
				if _, back := docs["leaked"]; err != nil || back || len(docs) != 2 || docs["revoked"].Version != w || string(docs["revoked"].Body) != "revoked" {
					t.Errorf("for replica %d: %v, %v", i, docs, err)
				}
			}
			if _, err := b.Put(t.Context(), "key", "leaked", 0, nil); err != nil {
				t.Errorf("made anew: %v", err)
			}
		})
	}
}

// TestDocsForget has Redis forget in the end what was deleted.
func TestDocsForget(t *testing.T) {
	s := startRedis(t)
	d := s.open(nil).Docs(DocsOptions{})
	v, err := d.Put(t.Context(), "key", "k", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Delete(t.Context(), "key", "k", v); err != nil {
		t.Fatal(err)
	}
	has := func(after time.Duration) bool {
		t.Helper()
		d.r.opt.Now = func() time.Time { return time.Now().Add(after) }
		for range 2 { // nor does it come back
			if _, err := d.Load(t.Context(), "key"); err != nil {
				t.Fatal(err)
			}
		}
		is, err := d.r.client.HExists(t.Context(), d.key("key"), "k").Result()
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	if !has(goneFor) {
		t.Error("it is forgotten early")
	}
	if has(goneFor + 2*goneLate) {
		t.Error("it is not forgotten")
	}
}
