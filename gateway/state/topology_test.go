package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"headrace/gateway/state/redistest"
)

// node is a real redis-server at a TCP port, a Sentinel or a node of a Cluster.
type node struct {
	t    *testing.T
	port int
	args []string
	cmd  *exec.Cmd
	at   *redis.Client // without the settings that are tested here
}

func startNode(t *testing.T, args ...string) *node {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("no redis-server in PATH (Debian: apt-get install redis-server)")
	}
	dir := t.TempDir()
	n := &node{t: t, port: redistest.Port(t)}
	conf := filepath.Join(dir, "conf") // Sentinels write into theirs
	lines := append([]string{"bind 127.0.0.1", fmt.Sprint("port ", n.port), "dir " + dir, `save ""`}, args...)
	if err := os.WriteFile(conf, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.args = []string{conf}
	if slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "sentinel ") }) {
		n.args = append(n.args, "--sentinel")
	}
	n.at = redis.NewClient(&redis.Options{Addr: n.addr(), ContextTimeoutEnabled: true})
	t.Cleanup(func() { _ = n.at.Close() })
	n.start()
	t.Cleanup(n.kill)
	return n
}

func (n *node) addr() string { return fmt.Sprint("127.0.0.1:", n.port) }

func (n *node) start() {
	n.t.Helper()
	n.cmd = exec.Command("redis-server", n.args...)
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	await(n.t, "a redis-server", func() bool { return n.at.Ping(n.t.Context()).Err() == nil })
}

func (n *node) kill() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait()
		n.cmd = nil
	}
}

func (n *node) do(args ...any) {
	n.t.Helper()
	if err := n.at.Do(n.t.Context(), args...).Err(); err != nil {
		n.t.Fatalf("%v: %v", args, err)
	}
}

// openURL opens and runs a Redis until the test ends.
func openURL(t *testing.T, url string) *Redis {
	t.Helper()
	r, err := Open(Options{URL: url, Timeout: patience / 6})
	if err != nil {
		t.Fatal(err)
	}
	runs(t, r)
	return r
}

// useAll uses all there is between two replicas, so that every script has run.
func useAll(t *testing.T, what string, a, b *Redis) {
	t.Helper()
	ctx := t.Context()
	got := make(chan string, 10)
	defer b.Subscribe("greeting", func(_ string, payload []byte) { got <- string(payload) })()
	changes, stop := b.Docs(DocsOptions{}).Watch("key")
	defer stop()
	for len(changes) > 0 {
		<-changes
	}
	name := what
	v, err := a.Docs(DocsOptions{}).Put(ctx, "key", name, 0, []byte(what))
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	select {
	case <-changes:
	case <-time.After(patience):
		t.Errorf("%s: nobody was told of the document", what)
	}
	docs, err := b.Docs(DocsOptions{}).Load(ctx, "key")
	if err != nil || string(docs[name].Body) != what || docs[name].Version != v {
		t.Errorf("%s: read %v, %v", what, docs, err)
	}
	if _, err := b.Docs(DocsOptions{}).Put(ctx, "key", name, 0, nil); !errors.Is(err, ErrConflict) {
		t.Errorf("%s: %v, want a conflict", what, err)
	}
	if err := a.Publish(ctx, "greeting", []byte("hello")); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if err := a.Note(ctx, "greeting", "n", []byte("noted"), time.Minute, false); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	for left := []string{"hello", "noted"}; len(left) > 0; {
		select {
		case s := <-got:
			if left = slices.DeleteFunc(left, func(l string) bool { return l == s }); s != "hello" && s != "noted" {
				t.Errorf("%s: an event says %q", what, s)
			}
		case <-time.After(patience):
			t.Fatalf("%s: no event %q", what, left)
		}
	}
	if notes, err := b.Notes(ctx, "greeting"); err != nil || len(notes) != 1 || string(notes[0].Body) != "noted" || notes[0].Left > time.Minute {
		t.Errorf("%s: notes %v, %v", what, notes, err)
	}
	x, err := a.Poll(ctx, what, time.Minute, func(context.Context) ([]byte, error) { return []byte("x"), nil })
	y, err2 := b.Poll(ctx, what, time.Minute, func(context.Context) ([]byte, error) { return []byte("y"), nil })
	if err := errors.Join(err, err2); err != nil || string(x) != "x" || string(y) != "x" {
		t.Errorf("%s: polled %q and %q, %v", what, x, y, err)
	}
	turn := a.Turn(what)
	if ours, anew, err := turn.Take(ctx); !ours || !anew || err != nil {
		t.Errorf("%s: the turn is ours %t, anew %t, %v", what, ours, anew, err)
	}
	if err := turn.Save(ctx, []byte("kept")); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if ours, _, err := b.Turn(what).Take(ctx); ours || err != nil {
		t.Errorf("%s: the turn is the other's too (%v)", what, err)
	}
	if kept, err := b.Turn(what).Load(ctx); err != nil || string(kept) != "kept" {
		t.Errorf("%s: kept %q, %v", what, kept, err)
	}
	if err := a.Call(ctx, time.Second, func(ctx context.Context, c redis.UniversalClient) error { return c.Ping(ctx).Err() }); err != nil && !errors.Is(err, ErrAway) {
		t.Errorf("%s: %v", what, err)
	}
	await(t, what+": two replicas", func() bool { return a.Replicas() == 2 && b.Replicas() == 2 })
}

// TestCluster shares through a Cluster of three real servers, goes on when one of them is killed as far as its keys allow, and wholly once
// it is back.
func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	t.Parallel()
	var nodes []*node
	for range 3 {
		nodes = append(nodes, startNode(t, "cluster-enabled yes", "cluster-node-timeout 500", "cluster-require-full-coverage no",
			"appendonly yes", fmt.Sprint("cluster-port ", redistest.Port(t))))
	}
	for i, n := range nodes {
		n.do("CLUSTER", "ADDSLOTSRANGE", i*5462, min(16383, i*5462+5461))
		n.do("CLUSTER", "SET-CONFIG-EPOCH", i+1)
	}
	for _, n := range nodes[1:] {
		bus := 0
		for line := range strings.SplitSeq(readFile(t, n.args[0]), "\n") {
			_, _ = fmt.Sscanf(line, "cluster-port %d", &bus)
		}
		nodes[0].do("CLUSTER", "MEET", "127.0.0.1", n.port, bus)
	}
	for _, n := range nodes {
		await(t, "the Cluster", func() bool {
			info := n.at.ClusterInfo(t.Context()).Val()
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3") && strings.Contains(info, "cluster_slots_ok:16384")
		})
	}
	url := fmt.Sprintf("redis+cluster://%s,%s", nodes[0].addr(), nodes[1].addr())
	a, b := openURL(t, url), openURL(t, url)
	useAll(t, "whole", a, b)
	clockOfDocs(t, a, nodes)

	lost := nodes[2]
	lost.kill()
	began := time.Now()
	kinds := make([]string, 26) // one of many lies elsewhere
	for i := range kinds {
		kinds[i] = "kind-" + string(rune('a'+i))
	}
	worked, failed := 0, 0
	for _, kind := range kinds {
		if _, err := a.Docs(DocsOptions{}).Put(t.Context(), kind, "n", 0, nil); err == nil {
			worked++
			continue
		}
		failed++
		if at, err := a.Docs(DocsOptions{}).Now(t.Context(), kind); err == nil {
			t.Errorf("the node of %s is gone, and it is %s by it", kind, at)
		}
	}
	if worked == 0 || failed == 0 {
		t.Errorf("with a third of the keys gone %d writes worked and %d failed", worked, failed)
	}
	lost.start()
	for _, kind := range kinds {
		await(t, "all keys again", func() bool {
			_, err := b.Docs(DocsOptions{}).Put(t.Context(), kind, "m", 0, nil)
			return err == nil || errors.Is(err, ErrConflict)
		})
	}
	await(t, "events again", func() bool { return a.Hears() && b.Hears() })
	t.Logf("back %s after it was killed; of %d kinds %d could be written meanwhile", time.Since(began).Round(time.Millisecond), len(kinds), worked)
	useAll(t, "whole again", a, b)
}

// clockOfDocs: the time comes from the node that has the documents, every time.
func clockOfDocs(t *testing.T, a *Redis, nodes []*node) {
	t.Helper()
	const times = 50
	for _, kind := range []string{"experiment", "kind-a", "kind-b"} {
		d := a.Docs(DocsOptions{})
		slot := int(nodes[0].at.ClusterKeySlot(t.Context(), d.key(kind)).Val())
		holder := nodes[slot/5462] // as they were shared out
		holder.do("CONFIG", "RESETSTAT")
		for range times {
			if at, err := d.Now(t.Context(), kind); err != nil || at.Before(time.Now().Add(-time.Hour)) || at.After(time.Now().Add(time.Hour)) {
				t.Fatalf("it is %s, %v", at, err)
			}
		}
		asked := 0
		for line := range strings.Lines(holder.at.Info(t.Context(), "commandstats").Val()) {
			_, _ = fmt.Sscanf(line, "cmdstat_time:calls=%d,", &asked)
		}
		if asked < times {
			t.Errorf("of %d questions for the time of %s its node was asked %d", times, kind, asked)
		}
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestSentinel shares through the master that a real Sentinel names, and through the one that it makes of the replica when that is killed.
func TestSentinel(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	t.Parallel()
	master := startNode(t, "repl-diskless-sync-delay 0")
	replica := startNode(t, fmt.Sprint("replicaof 127.0.0.1 ", master.port), "repl-diskless-sync-delay 0")
	await(t, "the replica", func() bool {
		return strings.Contains(replica.at.Info(t.Context(), "replication").Val(), "master_link_status:up")
	})
	sentinel := startNode(t, fmt.Sprint("sentinel monitor mymaster 127.0.0.1 ", master.port, " 1"), "sentinel down-after-milliseconds mymaster 300",
		"sentinel failover-timeout mymaster 3000")
	await(t, "the Sentinel", func() bool {
		n, err := sentinel.at.Do(t.Context(), "SENTINEL", "REPLICAS", "mymaster").Slice()
		return err == nil && len(n) == 1
	})
	url := fmt.Sprintf("redis+sentinel://%s/mymaster", sentinel.addr())
	a, b := openURL(t, url), openURL(t, url)
	useAll(t, "before", a, b)
	await(t, "the replica has all", func() bool { return replica.at.HLen(t.Context(), "headrace:docs:key").Val() == 2 }) // one, and what says that it is there

	master.kill()
	began := time.Now()
	await(t, "a write at the new master", func() bool {
		_, err := a.Docs(DocsOptions{}).Put(t.Context(), "key", "first", 0, nil)
		return err == nil || errors.Is(err, ErrConflict)
	})
	wrote := time.Since(began)
	joins := b.Stats().Joins
	await(t, "events again", func() bool { return a.Hears() && b.Hears() && b.Stats().Joins >= joins })
	t.Logf("written %s and heard %s after the master was killed", wrote.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	docs, err := b.Docs(DocsOptions{}).Load(t.Context(), "key")
	if err != nil || string(docs["before"].Body) != "before" {
		t.Errorf("what was written before: %v, %v", docs, err)
	}
	useAll(t, "after", a, b)
}
