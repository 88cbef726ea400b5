package admission

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"headrace/gateway/openai"
	"headrace/gateway/state"
	"headrace/router/endpoint"
)

// running is a gate that follows its store.
type running struct {
	*Gate
	stop func()
}

func run(t *testing.T, store state.Store, config ...Key) *running {
	t.Helper()
	g := New(Options{Store: store})
	g.Configure(config, false)
	g.Start(t.Context())
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	r := &running{g, sync.OnceFunc(func() { cancel(); <-done })}
	t.Cleanup(r.stop)
	return r
}

// opens tells whether a key opens the door.
func (r *running) opens(key string) bool {
	gr, e := r.Enter([]byte(key), time.Now())
	return e == nil && gr != nil
}

// patience is how long a test waits for what is to happen at all, however busy the machine.
const patience = time.Minute

// await waits until ok, and tells how long that took.
func await(t *testing.T, what string, ok func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if <-tick.C; time.Since(begin) > patience {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
	return time.Since(begin)
}

// TestKeysOfTheStore follows a key through its life at two gates that share a store.
func TestKeysOfTheStore(t *testing.T) {
	for name, open := range map[string]func() state.Store{
		"memory": func() state.Store { return state.NewMemory() },
		"files":  func() state.Store { return state.NewFiles(t.TempDir(), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of it waits for the end of a secret
			keysOfTheStore(t, open())
		})
	}
}

func keysOfTheStore(t *testing.T, store state.Store) {
	t.Helper()
	a, b := run(t, store), run(t, store, Key{Name: "fixed", Hash: HashOf("a-key-of-the-config-000")})
	ctx := t.Context()
	if !a.Open() || b.Open() {
		t.Fatal("who has no key is open, who has one is not")
	}
	k, secret, err := a.Create(ctx, Key{Name: "team", Models: []string{"m"}, Trust: endpoint.TrustVerified, RPM: 7, Budget: Budget{USDTotal: 3}})
	if err != nil || !a.opens(secret) || k.Source != FromStore || k.Created.IsZero() {
		t.Fatal(k, err)
	}
	took := await(t, "the other gate knows the key", func() bool { return b.opens(secret) })
	t.Logf("known to the other after %s", took)
	gr, _ := b.Enter([]byte(secret), time.Now())
	if gr.ID() != k.ID || !gr.Model("m") || gr.Model("x") || gr.Key.RPM != 7 || gr.Demand() == nil || gr.Demand().Trust != endpoint.TrustVerified || gr.total != 3*nanosPerUSD {
		t.Errorf("%+v", gr)
	}
	if _, _, err := b.Create(ctx, Key{Name: "team"}); !errors.Is(err, ErrTaken) {
		t.Errorf("a second one of that name: %v", err)
	}
	if _, _, err := b.Create(ctx, Key{Name: "fixed"}); !errors.Is(err, ErrInConfig) {
		t.Errorf("one of the config's name: %v", err)
	}
	if _, _, err := b.Create(ctx, Key{Name: "No Name"}); !errors.As(err, new(*FieldError)) {
		t.Errorf("a bad name: %v", err)
	}
	if _, err := b.Revoke(ctx, "fixed"); !errors.Is(err, ErrInConfig) {
		t.Errorf("revoke one of the config: %v", err)
	}
	if _, err := b.Revoke(ctx, "nobody"); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("revoke none: %v", err)
	}
	if _, err := b.Update(ctx, secret[:11], &Spec{RPM: new(int64(9)), Models: &[]string{"x"}, Trust: new("")}); err != nil {
		t.Error(err)
	}
	await(t, "the change is known", func() bool {
		gr, e := a.Enter([]byte(secret), time.Now())
		return e == nil && gr.Key.RPM == 9 && gr.Model("x") && !gr.Model("m") && gr.Demand() == nil
	})
	if _, err := b.Update(ctx, "team", &Spec{RPM: new(int64(-9))}); !errors.As(err, new(*FieldError)) {
		t.Errorf("a bad limit: %v", err)
	}
	_, second, err := b.Rotate(ctx, k.ID, 2*time.Second)
	if err != nil || second == secret || second[:11] != secret[:11] || !b.opens(second) || !b.opens(secret) {
		t.Fatal(second, err)
	}
	await(t, "the new secret is known", func() bool { return a.opens(second) })
	await(t, "the old secret ends", func() bool { return !a.opens(secret) && !b.opens(secret) })
	_, third, err := a.Rotate(ctx, "team", 0)
	if err != nil || a.opens(second) || !a.opens(third) {
		t.Fatal("a rotation without grace", err)
	}
	await(t, "and at the other", func() bool { return !b.opens(second) && b.opens(third) })
	if _, err := a.Update(ctx, "team", &Spec{Disabled: new(true)}); err != nil || a.opens(third) {
		t.Fatal(err)
	}
	if _, err := a.Update(ctx, "team", &Spec{Disabled: new(false)}); err != nil || !a.opens(third) {
		t.Fatal(err)
	}
	if _, err := a.Revoke(ctx, "team"); err != nil || a.opens(third) {
		t.Fatal(err)
	}
	await(t, "the revocation is known", func() bool { return !b.opens(third) })
	if _, err := b.Update(ctx, "team", &Spec{Disabled: new(false)}); !errors.Is(err, ErrRevoked) {
		t.Errorf("a revoked key is changed: %v", err)
	}
	if a.Open() {
		t.Error("to revoke the last key opens the door to everybody")
	}
	again, fourth, err := b.Create(ctx, Key{Name: "team"})
	if err != nil || again.ID == k.ID || !b.opens(fourth) || b.opens(third) {
		t.Errorf("the name given anew: %+v, %v", again, err)
	}
}

// Of many that make keys at once, and change one at once, each is told the truth.
func TestManyOperators(t *testing.T) {
	store := state.NewMemory()
	a, b := run(t, store), run(t, store)
	var made, taken, changed sync.WaitGroup
	var mu sync.Mutex
	var secrets []string
	for i := range 20 {
		made.Go(func() {
			_, secret, err := []*running{a, b}[i%2].Create(t.Context(), Key{Name: "k" + strconv.Itoa(i/4)})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				secrets = append(secrets, secret)
			} else if !errors.Is(err, ErrTaken) {
				t.Error(err)
			}
		})
	}
	made.Wait()
	taken.Wait()
	if len(secrets) != 5 {
		t.Errorf("%d keys were made under 5 names", len(secrets))
	}
	for _, s := range secrets {
		await(t, "both know the keys", func() bool { return a.opens(s) && b.opens(s) })
	}
	ok := 0
	for i := range 8 {
		changed.Go(func() {
			_, err := []*running{a, b}[i%2].Update(t.Context(), "k0", &Spec{RPM: new(int64(100 + i))})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				ok++
			} else if !errors.Is(err, state.ErrConflict) {
				t.Error(err)
			}
		})
	}
	changed.Wait()
	if ok == 0 {
		t.Error("nobody's change was made")
	}
}

// A store that has a key which cannot be read lets nobody in without one: what it said of its key is not known.
func TestDamagedKey(t *testing.T) {
	store := state.NewMemory()
	if _, err := store.Put(t.Context(), keyKind, "team", 0, []byte(`{"name":"team"}`)); err != nil {
		t.Fatal(err)
	}
	g := run(t, store)
	if _, e := g.Enter(nil, time.Now()); e == nil || e.Status != 401 {
		t.Errorf("%v", e)
	}
}

// away is a store that can be switched off.
type away struct {
	state.Store
	mu  sync.Mutex // guards off
	off bool
}

func (s *away) set(off bool) { s.mu.Lock(); s.off = off; s.mu.Unlock() }

func (s *away) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off {
		return errors.New("away")
	}
	return nil
}

func (s *away) Load(ctx context.Context, kind string) (map[string]state.Doc, error) {
	if err := s.err(); err != nil {
		return nil, err
	}
	return s.Store.Load(ctx, kind)
}

func (s *away) Put(ctx context.Context, kind, name string, old state.Version, body []byte) (state.Version, error) {
	if err := s.err(); err != nil {
		return 0, err
	}
	return s.Store.Put(ctx, kind, name, old, body)
}

// A store that is gone changes nothing of what is known, and what was spent meanwhile is written when it is back.
func TestStoreGone(t *testing.T) {
	t.Parallel()
	s := &away{Store: state.NewMemory()}
	a := run(t, s)
	_, secret, err := a.Create(t.Context(), Key{Name: "team", Budget: Budget{USDTotal: 1}})
	if err != nil {
		t.Fatal(err)
	}
	s.set(true)
	if _, _, err := a.Create(t.Context(), Key{Name: "other"}); err == nil {
		t.Error("a key was made that is nowhere kept")
	}
	spend(t, a.Gate, secret, 0.25, time.Now())
	await(t, "it is noticed", a.away.Load)
	if !a.opens(secret) {
		t.Error("the key is forgotten")
	}
	s.set(false)
	await(t, "it is written", func() bool {
		g := New(Options{Store: s})
		g.Start(t.Context())
		v, err := g.View(t.Context(), "team")
		return err == nil && v.SpentTotal == 0.25
	})
}

func spend(t testing.TB, g *Gate, key string, usd float64, now time.Time) {
	t.Helper()
	if e := trySpend(t, g, key, usd, now); e != nil {
		t.Fatal(e)
	}
}

func trySpend(t testing.TB, g *Gate, key string, usd float64, now time.Time) *openai.Error {
	t.Helper()
	p, e := enter(t, g, key, now).Admit(&Ask{Now: now, Prompt: 1, Output: 1}, nil)
	if e == nil {
		p.Settle(&Used{Now: now, Prompt: 1, Output: 1, Began: true, USD: usd})
	}
	return e
}

// What was spent outlives the process, by its sum, and by the day and month it belongs to.
func TestSpendingOutlivesTheProcess(t *testing.T) {
	dir := t.TempDir()
	config := Key{Name: "team", Hash: HashOf(goodKey), Budget: Budget{USDPerDay: 1, USDTotal: 10}}
	now := start
	open := func() *Gate {
		g := New(Options{Store: state.NewFiles(dir, nil), Now: func() time.Time { return now }})
		g.Configure([]Key{config}, false)
		g.Start(t.Context())
		return g
	}
	for i, step := range []struct {
		after              time.Duration
		today, month, ever float64
	}{{0, 0, 0, 0}, {time.Hour, 0.3, 0.3, 0.3}, {24 * time.Hour, 0, 0.6, 0.6}, {30 * 24 * time.Hour, 0, 0, 0.9}} {
		now = now.Add(step.after)
		g := open()
		v, err := g.View(t.Context(), "team")
		if err != nil || math.Abs(v.SpentToday-step.today) > 1e-12 || math.Abs(v.SpentMonth-step.month) > 1e-12 || math.Abs(v.SpentTotal-step.ever) > 1e-12 {
			t.Errorf("step %d: %+v, %v", i, v, err)
		}
		spend(t, g, goodKey, 0.3, now)
		if err := g.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	a, b := open(), open() // two processes of one machine: each adds to what the other has written
	for range 5 {
		spend(t, a, goodKey, 0.01, now)
		spend(t, b, goodKey, 0.02, now)
		if err := errors.Join(a.flush(t.Context()), b.flush(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	if v, _ := open().View(t.Context(), "team"); math.Abs(v.SpentTotal-1.35) > 1e-12 {
		t.Errorf("%f were spent by both, want 1.35", v.SpentTotal)
	}
}

const childDir = "ADMISSION_TEST_CHILD"

// TestKilled has a child spend a cent every few milliseconds and kills it with SIGKILL: no more than one flush interval is lost, and
// nothing is counted twice.
func TestKilled(t *testing.T) {
	config := Key{Name: "team", Hash: HashOf(goodKey), Budget: Budget{USDTotal: 1e6}}
	if dir := os.Getenv(childDir); dir != "" {
		g := run(t, state.NewFiles(dir, nil), config)
		for i := 1; ; i++ {
			spend(t, g.Gate, goodKey, 0.01, time.Now())
			_, _ = fmt.Fprintf(os.Stdout, "spent %d\n", i)
			<-time.After(2 * time.Millisecond)
		}
	}
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel()
	dir := t.TempDir()
	total := 0
	for range 2 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$", "-test.timeout=5m")
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var at []time.Time // when each was told of
		lines := bufio.NewScanner(out)
		begin := time.Now()
		for lines.Scan() && (time.Since(begin) < 3500*time.Millisecond || len(at) < 200) {
			if strings.HasPrefix(lines.Text(), "spent ") {
				at = append(at, time.Now())
			}
		}
		_ = cmd.Process.Kill()
		killed := time.Now()
		for rest := bufio.NewScanner(io.MultiReader(out)); rest.Scan(); {
			if strings.HasPrefix(rest.Text(), "spent ") {
				at = append(at, killed)
			}
		}
		_ = cmd.Wait()
		g := New(Options{Store: state.NewFiles(dir, nil)})
		g.Configure([]Key{config}, false)
		g.Start(t.Context())
		v, _ := g.View(t.Context(), "team")
		kept := int(math.Round(v.SpentTotal*100)) - total
		pause := time.Duration(0) // the longest: so long may a busy machine have held up a write too
		for i := range at[1:] {
			pause = max(pause, at[i+1].Sub(at[i]))
		}
		recent := 0 // within a flush interval of the end, and what a write takes
		for _, when := range at {
			if killed.Sub(when) < flushEvery+time.Second+3*pause {
				recent++
			}
		}
		if kept > len(at)+1 || len(at)-kept > recent {
			t.Errorf("%d cents were spent, %d of them within the last moments, %d are kept", len(at), recent, kept)
		}
		t.Logf("%d cents were spent, %d of them within the last moments, %d are kept", len(at), recent, kept)
		total += kept
	}
}
