package affinity_test

import (
	"fmt"
	"math"
	"sync"
	"testing"
	"time"
	"unsafe"

	"headrace/router/affinity"
)

var noon = time.Unix(1_800_000_000, 0)

// key is a prompt of n marks, of which the first shared are those of every prompt of its family.
func key(family, own uint64, n, shared int) *affinity.Key {
	var k affinity.Key
	for i := range n {
		h := family<<32 + uint64(i)
		if i >= shared {
			h += own << 16
		}
		k.Add(affinity.Mark{Hash: h * 0x9e3779b97f4a7c15, Tokens: int32(i+1) * 100})
	}
	return &k
}

// held is what h is expected to hold of k.
func held(t *affinity.Table, k *affinity.Key, h affinity.Host, now time.Time) (int32, bool) {
	var m affinity.Matches
	t.Lookup(k, now, &m)
	return m.Tokens(h)
}

func TestLongestPrefix(t *testing.T) {
	table := affinity.New(affinity.Options{})
	table.Learn(key(1, 1, 10, 3), 7, noon)
	table.Learn(key(1, 2, 5, 3), 8, noon)
	for name, tc := range map[string]struct {
		k    *affinity.Key
		want map[affinity.Host]int32
	}{
		"the same prompt":     {key(1, 1, 10, 3), map[affinity.Host]int32{7: 1000, 8: 300}},
		"another turn of it":  {key(1, 1, 12, 3), map[affinity.Host]int32{7: 1000, 8: 300}},
		"a shorter one":       {key(1, 1, 6, 3), map[affinity.Host]int32{7: 600, 8: 300}},
		"only the same head":  {key(1, 9, 10, 3), map[affinity.Host]int32{7: 300, 8: 300}},
		"nothing in common":   {key(2, 1, 10, 3), map[affinity.Host]int32{7: 0, 8: 0}},
		"no prompt":           {&affinity.Key{}, map[affinity.Host]int32{7: 0, 8: 0}},
		"the other's session": {key(1, 2, 10, 3), map[affinity.Host]int32{7: 300, 8: 500}},
	} {
		t.Run(name, func(t *testing.T) {
			for h, want := range tc.want {
				if got, session := held(table, tc.k, h, noon); got != want || session {
					t.Errorf("host %d holds %d tokens, session %t; want %d", h, got, session, want)
				}
			}
		})
	}
}

func TestAddKeepsTheLongest(t *testing.T) {
	k := key(1, 1, affinity.MaxMarks+5, 0)
	if k.N != affinity.MaxMarks || k.Marks[k.N-1].Tokens != (affinity.MaxMarks+5)*100 || k.Marks[k.N-2].Tokens != (affinity.MaxMarks-1)*100 {
		t.Errorf("%d marks, the last of %d and %d tokens", k.N, k.Marks[k.N-2].Tokens, k.Marks[k.N-1].Tokens)
	}
}

func TestSessions(t *testing.T) {
	table := affinity.New(affinity.Options{})
	k := key(1, 1, 4, 0)
	k.Session = affinity.SessionHash("m", []byte("a"))
	table.Learn(k, 1, noon)
	other := &affinity.Key{Session: k.Session}
	if tokens, session := held(table, other, 1, noon); tokens != 0 || !session {
		t.Errorf("%d tokens, session %t, want none of another prompt in the session", tokens, session)
	}
	if tokens, session := held(table, k, 1, noon); tokens != 400 || !session {
		t.Errorf("%d tokens, session %t, want 400 in the session", tokens, session)
	}
	table.Learn(k, 2, noon)
	if tokens, session := held(table, k, 1, noon); tokens != 400 || session {
		t.Errorf("%d tokens, session %t, want 400 and the session elsewhere", tokens, session)
	}
	if _, session := held(table, other, 2, noon); !session {
		t.Error("the session did not move")
	}
	seen := map[uint64]string{0: "none"}
	for _, s := range [][2]string{{"m", "a"}, {"m", "b"}, {"n", "a"}, {"m", ""}, {"", "m"}, {"", ""}} {
		h := affinity.SessionHash(s[0], []byte(s[1]))
		if was, dup := seen[h]; dup {
			t.Errorf("%q hashes like %q", s, was)
		}
		seen[h] = fmt.Sprint(s)
	}
}

// TestSessionAmongMany finds a session's host also where more hosts than are looked at hold the prompt.
func TestSessionAmongMany(t *testing.T) {
	table := affinity.New(affinity.Options{})
	k := key(1, 1, affinity.MaxMarks, affinity.MaxMarks)
	h := affinity.Host(1)
	for n := affinity.MaxMarks; n > 0; n-- { // each mark is held by four others
		part := *k
		part.N = n
		for range 4 {
			table.Learn(&part, h, noon)
			h++
		}
	}
	k.Session = 5
	table.Learn(&affinity.Key{Session: 5}, 999, noon)
	if _, session := held(table, k, 999, noon); !session {
		t.Error("the session's host is not among the matches")
	}
}

func TestForgotten(t *testing.T) {
	for name, tc := range map[string]struct {
		later time.Duration
		want  int32
	}{
		"at once":                    {0, 300},
		"within Keep":                {time.Minute, 300},
		"after Keep":                 {time.Minute + time.Second, 0},
		"a clock that goes back":     {-30 * time.Second, 300},
		"a clock that was far ahead": {-time.Hour, 0},
	} {
		t.Run(name, func(t *testing.T) {
			table := affinity.New(affinity.Options{Keep: time.Minute})
			k := key(1, 1, 3, 0)
			k.Session = 9
			table.Learn(k, 1, noon)
			tokens, session := held(table, k, 1, noon.Add(tc.later))
			if tokens != tc.want || session != (tc.want > 0) {
				t.Errorf("%d tokens, session %t; want %d", tokens, session, tc.want)
			}
		})
	}
	t.Run("use keeps it", func(t *testing.T) {
		table := affinity.New(affinity.Options{Keep: time.Minute})
		k := key(1, 1, 3, 0)
		for i := range 10 {
			table.Learn(k, 1, noon.Add(time.Duration(i)*50*time.Second))
		}
		if tokens, _ := held(table, k, 1, noon.Add(500*time.Second)); tokens != 300 {
			t.Errorf("%d tokens", tokens)
		}
	})
	t.Run("learned anew by another", func(t *testing.T) {
		table := affinity.New(affinity.Options{Keep: time.Minute})
		k := key(1, 1, 3, 0)
		table.Learn(k, 1, noon)
		table.Learn(k, 2, noon.Add(time.Hour))
		if tokens, _ := held(table, k, 1, noon.Add(time.Hour)); tokens != 0 {
			t.Errorf("the first host still holds %d tokens", tokens)
		}
		if tokens, _ := held(table, k, 2, noon.Add(time.Hour)); tokens != 300 {
			t.Errorf("the second host holds %d tokens", tokens)
		}
	})
}

// TestRestart has nothing expected of an engine that came back, which has a new Host.
func TestRestart(t *testing.T) {
	table := affinity.New(affinity.Options{})
	k := key(1, 1, 3, 0)
	k.Session = 9
	table.Learn(k, 1, noon)
	if tokens, session := held(table, k, 2, noon); tokens != 0 || session {
		t.Errorf("%d tokens, session %t", tokens, session)
	}
	table.Learn(k, 0, noon) // nobody
	if tokens, session := held(table, k, 0, noon); tokens != 0 || session {
		t.Errorf("nobody holds %d tokens, session %t", tokens, session)
	}
}

// TestMoreHostsThanSlots remembers those that came last to a prefix that all hosts hold.
func TestMoreHostsThanSlots(t *testing.T) {
	table := affinity.New(affinity.Options{})
	k := key(1, 1, 3, 3)
	for h := affinity.Host(1); h <= 20; h++ {
		table.Learn(k, h, noon)
		table.Learn(k, h, noon) // does not push out another
	}
	for h := affinity.Host(1); h <= 20; h++ {
		want := int32(0)
		if h > 16 {
			want = 300
		}
		if tokens, _ := held(table, k, h, noon); tokens != want {
			t.Errorf("host %d holds %d tokens, want %d", h, tokens, want)
		}
	}
}

func TestHashZero(t *testing.T) {
	table := affinity.New(affinity.Options{Prefixes: 4})
	zero := affinity.Key{N: 1, Marks: [affinity.MaxMarks]affinity.Mark{{Tokens: 50}}}
	if tokens, _ := held(table, &zero, 1, time.Unix(0, 0)); tokens != 0 {
		t.Errorf("an empty table has %d tokens", tokens)
	}
	table.Learn(&zero, 1, noon)
	var added affinity.Key
	added.Add(affinity.Mark{Hash: 0, Tokens: 50})
	if tokens, _ := held(table, &added, 1, noon); tokens != 50 {
		t.Errorf("%d tokens", tokens)
	}
	for i := range uint64(4) { // its slot is not taken for a free one while others are
		table.Learn(key(i+2, 1, 1, 0), 2, noon.Add(time.Second))
		if tokens, _ := held(table, &zero, 1, noon); i < 3 && tokens != 50 {
			t.Errorf("after %d others: %d tokens", i+1, tokens)
		}
	}
	if tokens, _ := held(table, &zero, 1, noon); tokens != 0 {
		t.Error("the slot used least of a full set was not taken")
	}
}

// TestBounded learns far more prompts than there is room for: nothing grows, and what is in use stays.
func TestBounded(t *testing.T) {
	const prefixes, prompts = 1 << 12, 1 << 16
	table := affinity.New(affinity.Options{Prefixes: prefixes})
	head := key(1, 0, 1, 1)
	n := uint64(0)
	learn := func() {
		n++
		now := noon.Add(time.Duration(n) * 10 * time.Millisecond)
		table.Learn(head, affinity.Host(n%3+1), now)
		table.Learn(key(2, n, 1, 0), affinity.Host(n%3+1), now)
	}
	for range prompts {
		learn()
	}
	if a := testing.AllocsPerRun(1000, learn); a != 0 {
		t.Errorf("%v allocations to learn", a)
	}
	now := noon.Add(time.Duration(n) * 10 * time.Millisecond)
	if tokens, _ := held(table, head, 1, now); tokens != 100 {
		t.Errorf("a prompt that is always in use is forgotten: %d tokens", tokens)
	}
	found := func(from, to uint64) (share float64) {
		for i := from; i < to; i++ {
			if tokens, _ := held(table, key(2, i, 1, 0), affinity.Host(i%3+1), now); tokens > 0 {
				share++
			}
		}
		return share / float64(to-from)
	}
	if f := found(n-prefixes/2, n); f < 0.9 {
		t.Errorf("of the newest half of what it has room for %.2f is known", f)
	}
	if f := found(0, n-4*prefixes); f > 0.01 {
		t.Errorf("of the oldest %.2f is known", f)
	}
}

// TestClockWasAhead lets entries from the future give way to new ones.
func TestClockWasAhead(t *testing.T) {
	table := affinity.New(affinity.Options{Prefixes: 4})
	for i := range uint64(4) {
		table.Learn(key(i+1, 1, 1, 0), 1, noon.Add(24*time.Hour))
	}
	for i := range uint64(4) {
		table.Learn(key(i+10, 1, 1, 0), 1, noon)
	}
	for i := range uint64(4) {
		if tokens, _ := held(table, key(i+10, 1, 1, 0), 1, noon); tokens != 100 {
			t.Errorf("prompt %d is not known", i)
		}
	}
}

func TestVirtualTime(t *testing.T) {
	table := affinity.New(affinity.Options{Keep: time.Minute})
	for _, start := range []int64{0, 1, -1e6, math.MaxUint32 - 10} {
		now := time.Unix(start, 0)
		k := key(uint64(start)+5, 1, 3, 0) //nolint:gosec // any number
		table.Learn(k, 1, now)
		if tokens, _ := held(table, k, 1, now.Add(30*time.Second)); tokens != 300 {
			t.Errorf("from %d: %d tokens", start, tokens)
		}
		if tokens, _ := held(table, k, 1, now.Add(2*time.Minute)); tokens != 0 {
			t.Errorf("from %d: %d tokens after Keep", start, tokens)
		}
	}
}

// TestConcurrent has many goroutines fight for few slots. What they then read are hosts that exist and prompts as long as
// those that were learned; afterwards a prompt learned by one alone is found.
func TestConcurrent(t *testing.T) {
	table := affinity.New(affinity.Options{Prefixes: 64})
	var wg sync.WaitGroup
	for g := range uint64(8) {
		wg.Go(func() {
			var m affinity.Matches
			for i := range uint64(3000) {
				k := key(i%7, g, 6, 3)
				k.Session = i%5 + 1
				now := noon.Add(time.Duration(i) * time.Millisecond)
				table.Learn(k, affinity.Host(g+1), now)
				table.Lookup(k, now, &m)
				for h := range affinity.Host(20) {
					if tokens, session := m.Tokens(h); (h == 0 || h > 8) && (tokens != 0 || session) || tokens < 0 || tokens > 600 {
						t.Errorf("host %d holds %d tokens, session %t", h, tokens, session)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	k := key(100, 1, 6, 3)
	table.Learn(k, 5, noon.Add(time.Minute))
	if tokens, _ := held(table, k, 5, noon.Add(time.Minute)); tokens != 600 {
		t.Errorf("%d tokens", tokens)
	}
}

func TestRendezvous(t *testing.T) {
	const hosts, keys = 8, 8000
	ids := make([]uint64, hosts)
	for i := range ids {
		ids[i] = affinity.EndpointHash(fmt.Sprintf("vast:4873892%d", i))
	}
	home := func(key uint64, ids []uint64) (best int) {
		rank := -1.0
		for i, id := range ids {
			r := affinity.Rendezvous(key, id)
			if r < 0 || r >= 1 {
				t.Fatalf("rank %v", r)
			}
			if r > rank {
				best, rank = i, r
			}
		}
		return best
	}
	var homes [hosts]float64
	moved := 0
	for k := range uint64(keys) {
		h := home(k+1, ids)
		homes[h]++
		if g := home(k+1, ids[:hosts-1]); g != h {
			moved++
			if h != hosts-1 {
				t.Errorf("key %d moved from host %d, which stayed", k, h)
			}
		}
	}
	for h, n := range homes {
		if n < 0.85*keys/hosts || n > 1.15*keys/hosts {
			t.Errorf("host %d is home to %v of %d keys", h, n, keys)
		}
	}
	if float64(moved) != homes[hosts-1] {
		t.Errorf("%d keys moved, %v were at the host that left", moved, homes[hosts-1])
	}
	// Replicas of different builds have to agree.
	if got, want := affinity.Rendezvous(42, affinity.EndpointHash("vast:48738927")), 0.6392886757323561; got != want {
		t.Errorf("rank %v, want %v", got, want)
	}
	if got, want := affinity.SessionHash("llama-70b", []byte("chat-1")), uint64(0xe914b99abbc6ef7b); got != want {
		t.Errorf("session %#x, want %#x", got, want)
	}
}

func TestHome(t *testing.T) {
	for _, tc := range []struct{ session, root, want uint64 }{{0, 0, 0}, {0, 7, 7}, {5, 7, 5}, {5, 0, 5}} {
		if got := (&affinity.Key{Session: tc.session, Root: tc.root}).Home(); got != tc.want {
			t.Errorf("session %d, root %d: home %d, want %d", tc.session, tc.root, got, tc.want)
		}
	}
}

// TestKeySize keeps a key small enough to be copied into each lease.
func TestKeySize(t *testing.T) {
	if n := unsafe.Sizeof(affinity.Key{}); n > 512 {
		t.Errorf("a key takes %d bytes", n)
	}
}

func BenchmarkTable(b *testing.B) {
	for name, distinct := range map[string]uint64{"warm": 16, "cold": 1 << 14} { // cold: most slots are in no cache
		b.Run(name, func(b *testing.B) {
			table := affinity.New(affinity.Options{})
			keys := make([]*affinity.Key, distinct)
			for i := range keys {
				keys[i] = key(uint64(i)/8, uint64(i), affinity.MaxMarks, 4) //nolint:gosec // not negative
				keys[i].Session = uint64(i + 1)                             //nolint:gosec // likewise
			}
			b.Run("Lookup", func(b *testing.B) {
				var m affinity.Matches
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					table.Lookup(keys[uint64(i)%distinct], noon, &m) //nolint:gosec // likewise
				}
			})
			b.Run("LookupLearn", func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					var m affinity.Matches
					for i := uint64(0); pb.Next(); i++ {
						k := keys[i*0x9e3779b9%distinct]
						table.Lookup(k, noon, &m)
						table.Learn(k, affinity.Host(i%4+1), noon) //nolint:gosec // likewise
					}
				})
			})
		})
	}
}
