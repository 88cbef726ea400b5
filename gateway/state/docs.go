package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Docs is the Store of a Redis. Each kind is one hash, each field of it a document: its version, a colon and its body; behind an x, the
// version at which it was deleted. Changes reach those who Watch within milliseconds, while Redis.Run runs.
//
// What was read last is kept in memory, and in a directory where there is one: a replica that starts while Redis is away knows that, and a
// Redis that comes back without its data, or with older ones, gets it back. Of two versions of a document, or of its end, the greater one
// holds, whoever has it. The field of no name says that a hash is one that was written to.
type Docs struct {
	r    *Redis
	opt  DocsOptions
	copy string // directory, "" for none
	kept *Files // what Keep keeps, nil for nowhere
	Census

	mu     sync.Mutex // guards all below
	read   map[string]map[string]entry
	copied map[string]bool // kinds of which the log says that they are as an earlier process read them
	warned bool
}

// entry is what is known of a document: the last version, or the one at which it was deleted.
type entry struct {
	Doc
	gone bool
}

// living are those that were not deleted.
func living(all map[string]entry) map[string]Doc {
	docs := make(map[string]Doc, len(all))
	for name, e := range all {
		if !e.gone {
			docs[name] = e.Doc
		}
	}
	return docs
}

const (
	// goneFor is how long it is known of a document that it was deleted, and passingFor of those of which no copies are kept. A replica that is cut
	// off for longer has them back.
	goneFor    = 90 * 24 * time.Hour
	passingFor = 24 * time.Hour
	// goneLate is how much later Redis forgets it than replicas give it back.
	goneLate = time.Hour
)

// DocsOptions say what becomes of copies.
type DocsOptions struct {
	// Dir is where copies outlive the process, in its folder copies, and what Keep keeps in kept: those of each Redis by themselves. "" is for
	// nowhere.
	Dir string
	// Passing are kinds of which no copy is kept there: nothing is lost with them.
	Passing []string
}

// Docs returns the Store that all replicas of this Redis share.
func (r *Redis) Docs(o DocsOptions) *Docs {
	d := &Docs{r: r, opt: o, read: map[string]map[string]entry{}, copied: map[string]bool{}}
	if o.Dir != "" {
		d.copy = filepath.Join(o.Dir, "copies", r.place)
		d.kept = NewFiles(filepath.Join(o.Dir, "kept", r.place), nil)
		d.Census = newCensus(o.Dir)
		sweepTemps(d.copy, time.Now())
	}
	return d
}

//nolint:gochecknoglobals // tables
var (
	// docScript puts (ARGV[3] is "put") or deletes a document of the version ARGV[2], tells the others by the event ARGV[6] on the channel
	// ARGV[5], and returns the new version; 0 for a conflict, and "lost" where Redis has less than the caller knows: version ARGV[7] of this one,
	// and with ARGV[8] some of the kind. Versions are microseconds of Redis's clock, and grow.
	docScript = redis.NewScript(`if ARGV[8] == "1" and redis.call("EXISTS", KEYS[1]) == 0 then return "lost" end
local is = redis.call("HGET", KEYS[1], ARGV[1])
local last = is and string.match(is, "^x?(%d+)") or "0"
if tonumber(last) < tonumber(ARGV[7]) then return "lost" end
local lives = is and string.sub(is, 1, 1) ~= "x"
if (lives and last or "0") ~= ARGV[2] then return "0" end
local t = redis.call("TIME")
local v = string.format("%.0f", math.max(tonumber(last) + 1, t[1] * 1000000 + t[2]))
if ARGV[3] == "put" then
  redis.call("HSET", KEYS[1], "", "", ARGV[1], v .. ":" .. ARGV[4])
else
  if not lives then return "0" end
  redis.call("HSET", KEYS[1], ARGV[1], "x" .. v .. ":")
end
redis.call("PUBLISH", ARGV[5], ARGV[6])
return v`)
	// restoreScript writes those fields, from ARGV[3] on, that are newer than what is there, returns how many, and tells the others.
	restoreScript = redis.NewScript(`local n = 0
for i = 3, #ARGV, 2 do
  local is = redis.call("HGET", KEYS[1], ARGV[i])
  local last = is and string.match(is, "^x?(%d+)") or "0"
  if tonumber(last) < tonumber(string.match(ARGV[i + 1], "^x?(%d+)")) then
    redis.call("HSET", KEYS[1], "", "", ARGV[i], ARGV[i + 1])
    n = n + 1
  end
end
if n > 0 then redis.call("PUBLISH", ARGV[1], ARGV[2]) end
return n`)
	// clockScript returns the seconds and microseconds of the clock where KEYS[1] lies: a Cluster sends TIME itself to any node.
	clockScript = redis.NewScript(`local t = redis.call("TIME") return {tonumber(t[1]), tonumber(t[2])}`)
	// forgetScript deletes the fields of ARGV that hold no document and have not changed: name, value and so on.
	forgetScript = redis.NewScript(`for i = 1, #ARGV, 2 do
  if redis.call("HGET", KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call("HDEL", KEYS[1], ARGV[i]) end
end
return 1`)
)

func (d *Docs) key(kind string) string { return d.r.opt.Prefix + "docs:" + kind }

// Load implements Store. While Redis does not answer, a kind that this process has not read yet is as it was when its directory's last
// process read it; without such a copy that is an error, as it is for kinds that were read.
func (d *Docs) Load(ctx context.Context, kind string) (map[string]Doc, error) {
	if err := checkKind(kind); err != nil {
		return nil, err
	}
	docs, there, err := d.fetch(ctx, kind)
	d.mu.Lock()
	defer d.mu.Unlock()
	was, here := d.read[kind]
	known := here
	if !here {
		was, known = d.readCopy(kind)
	}
	if err != nil {
		if here || !known || ctx.Err() != nil {
			return nil, err
		}
		left := living(was)
		if !d.copied[kind] { // it is asked for again and again
			d.copied[kind] = true
			d.r.opt.Log.Warn("Redis does not answer: documents are as they were read last, by an earlier process", "kind", kind, "documents", len(left))
		}
		return left, nil
	}
	back := make(map[string]entry)
	for name, e := range was {
		is, ok := docs[name]
		// What a copy has and Redis has not may have been deleted long ago, unless Redis has nothing.
		if e.Version > is.Version && (ok || here || !there) && !(e.gone && d.age(e) > d.goneFor(kind)) {
			back[name] = e
		}
	}
	if len(back) > 0 {
		if docs, err = d.restore(ctx, kind, back); err != nil {
			return nil, err
		}
	}
	if !here || !maps.EqualFunc(was, docs, func(a, b entry) bool { return a.Version == b.Version }) {
		d.writeCopy(kind, docs)
	}
	d.read[kind] = docs
	d.forget(ctx, kind, docs)
	return living(docs), nil
}

// age is how long ago an entry was written. The clocks of Redis and of this replica may differ.
func (d *Docs) age(e entry) time.Duration {
	return d.r.opt.Now().Sub(time.UnixMicro(int64(e.Version))) //nolint:gosec // below 2^53
}

func (d *Docs) goneFor(kind string) time.Duration {
	if slices.Contains(d.opt.Passing, kind) {
		return passingFor
	}
	return goneFor
}

// forget has Redis forget what was deleted so long ago that nobody gives it back. It is tried again at the next Load.
func (d *Docs) forget(ctx context.Context, kind string, docs map[string]entry) {
	var args []any
	for name, e := range docs {
		if e.gone && d.age(e) > d.goneFor(kind)+goneLate {
			args = append(args, name, e.field())
		}
	}
	if len(args) == 0 {
		return
	}
	c, cancel := context.WithTimeout(ctx, d.r.opt.Timeout)
	defer cancel()
	_ = forgetScript.Run(c, d.r.client, []string{d.key(kind)}, args...).Err()
}

// field is an entry as Redis has it.
func (e entry) field() string {
	s := strconv.FormatUint(uint64(e.Version), 10) + ":"
	if e.gone {
		return "x" + s
	}
	return s + string(e.Body)
}

// fetch reads a kind from Redis; there is false when nobody has ever written to it, or its data was lost.
func (d *Docs) fetch(ctx context.Context, kind string) (docs map[string]entry, there bool, err error) {
	c, cancel := context.WithTimeout(ctx, d.r.opt.Timeout)
	defer cancel()
	all, err := d.r.client.HGetAll(c, d.key(kind)).Result()
	if err != nil {
		return nil, false, d.failed(ctx, "read documents from Redis", err)
	}
	docs = make(map[string]entry, len(all))
	for name, s := range all {
		s, gone := strings.CutPrefix(s, "x")
		version, body, ok := strings.Cut(s, ":")
		if v, err := strconv.ParseUint(version, 10, 53); ok && err == nil && v > 0 && name != "" {
			docs[name] = entry{Doc{Version(v), []byte(body)}, gone}
		}
	}
	return docs, len(all) > 0, nil
}

// restore gives a Redis that has lost data what is known to be newer than what it has, and returns what it has then. The caller holds mu.
func (d *Docs) restore(ctx context.Context, kind string, back map[string]entry) (map[string]entry, error) {
	args := make([]any, 0, 2+2*len(back))
	args = append(args, d.r.channel(), d.r.event(docEvent+kind, nil))
	for name, e := range back {
		args = append(args, name, e.field())
	}
	c, cancel := context.WithTimeout(ctx, d.r.opt.Timeout)
	defer cancel()
	n, err := restoreScript.Run(c, d.r.client, []string{d.key(kind)}, args...).Int()
	if err != nil {
		return nil, d.failed(ctx, "give Redis its documents back", err)
	}
	if n > 0 {
		d.r.opt.Log.Warn("Redis has lost data: it got back documents as they were read last", "kind", kind, "documents", n)
	}
	docs, _, err := d.fetch(ctx, kind)
	return docs, err
}

// copied is a kind in a file.
type copied map[string]copiedDoc

type copiedDoc struct {
	Version Version `json:"version"`
	Body    []byte  `json:"body,omitempty"`
	Gone    bool    `json:"gone,omitempty"`
}

func (d *Docs) readCopy(kind string) (docs map[string]entry, ok bool) {
	if d.copy == "" {
		return nil, false
	}
	b, err := os.ReadFile(filepath.Join(d.copy, kind))
	var c copied
	if err != nil || json.Unmarshal(b, &c) != nil {
		return nil, false
	}
	docs = make(map[string]entry, len(c))
	for name, doc := range c {
		if checkDoc(kind, name, doc.Body) == nil && doc.Version > 0 {
			docs[name] = entry{Doc{doc.Version, doc.Body}, doc.Gone}
		}
	}
	return docs, true
}

// writeCopy keeps what was read. Where it cannot, a restart without Redis knows less: no more.
func (d *Docs) writeCopy(kind string, docs map[string]entry) {
	if d.copy == "" || slices.Contains(d.opt.Passing, kind) {
		return
	}
	path := filepath.Join(d.copy, kind)
	if _, err := os.Stat(path); len(docs) == 0 && errors.Is(err, fs.ErrNotExist) {
		return
	}
	c := make(copied, len(docs))
	for name, doc := range docs {
		c[name] = copiedDoc{doc.Version, doc.Body, doc.gone}
	}
	b, err := json.Marshal(c)
	if err == nil {
		err = os.MkdirAll(d.copy, 0o700)
	}
	if err == nil {
		err = replace(d.copy, path, b)
	}
	if err != nil && !d.warned {
		d.warned = true
		d.r.opt.Log.Warn("no copy of what is in Redis can be kept: a start without it will know no documents", "dir", d.copy, "error", err)
	}
}

func (d *Docs) failed(ctx context.Context, what string, err error) error {
	if ctx.Err() == nil && !isReply(err) {
		d.r.report(err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Put implements Store.
func (d *Docs) Put(ctx context.Context, kind, name string, old Version, body []byte) (Version, error) {
	if err := checkDoc(kind, name, body); err != nil {
		return 0, err
	}
	return d.change(ctx, kind, name, old, "put", body)
}

// Delete implements Store.
func (d *Docs) Delete(ctx context.Context, kind, name string, old Version) error {
	if err := checkDoc(kind, name, nil); err != nil {
		return err
	}
	_, err := d.change(ctx, kind, name, old, "delete", nil)
	return err
}

func (d *Docs) change(ctx context.Context, kind, name string, old Version, what string, body []byte) (Version, error) {
	d.mu.Lock()
	_, here := d.read[kind]
	d.mu.Unlock()
	for tries := 0; ; tries++ {
		if !here || tries > 0 { // what this replica knows, a Redis that has lost it is given back first
			if _, err := d.Load(ctx, kind); err != nil {
				return 0, err
			}
		}
		v, lost, err := d.ask(ctx, kind, name, old, what, body)
		if err != nil {
			return 0, err
		}
		if !lost {
			d.r.docs.tell(kind)
			return v, nil
		}
		if tries == 2 {
			return 0, fmt.Errorf("%s a document in Redis: it loses what it is given", what)
		}
	}
}

// ask is one try of a change; lost when Redis has less than this replica knows.
func (d *Docs) ask(ctx context.Context, kind, name string, old Version, what string, body []byte) (v Version, lost bool, err error) {
	d.mu.Lock()
	least, some := d.read[kind][name].Version, btoi(len(d.read[kind]) > 0)
	d.mu.Unlock()
	c, cancel := context.WithTimeout(ctx, d.r.opt.Timeout)
	defer cancel()
	s, err := docScript.Run(c, d.r.client, []string{d.key(kind)}, name, strconv.FormatUint(uint64(old), 10), what, body,
		d.r.channel(), d.r.event(docEvent+kind, nil), strconv.FormatUint(uint64(least), 10), some).Text()
	if err != nil {
		return 0, false, d.failed(ctx, what+" a document in Redis", err)
	}
	if s == "lost" {
		return 0, true, nil
	}
	n, err := strconv.ParseUint(s, 10, 53)
	if err != nil {
		return 0, false, fmt.Errorf("%s a document in Redis: it returned %q", what, s)
	}
	if n == 0 {
		return 0, false, ErrConflict
	}
	v = Version(n)
	d.mu.Lock()
	defer d.mu.Unlock()
	if known, here := d.read[kind]; here && known[name].Version < v { // nobody else may know it yet
		known[name] = entry{Doc{v, slices.Clone(body)}, what != "put"}
		d.writeCopy(kind, known)
	}
	return v, false, nil
}

// Now is the time by the clock of the Redis that has the documents of a kind, which all replicas share: the nodes of a Cluster have one each, and
// they differ.
func (d *Docs) Now(ctx context.Context, kind string) (time.Time, error) {
	if err := checkKind(kind); err != nil {
		return time.Time{}, err
	}
	c, cancel := context.WithTimeout(ctx, d.r.opt.Timeout)
	defer cancel()
	t, err := clockScript.Run(c, d.r.client, []string{d.key(kind)}).Int64Slice()
	if err == nil && len(t) != 2 {
		err = fmt.Errorf("it returned %d numbers", len(t))
	}
	if err != nil {
		return time.Time{}, d.failed(ctx, "read Redis's clock", err)
	}
	return time.Unix(t[0], t[1]*int64(time.Microsecond)), nil
}

// docsAgain is when documents are read again though nobody said that they changed: an event may have been lost.
const docsAgain = 30 * time.Second

// Watch implements Store.
func (d *Docs) Watch(kind string) (changes <-chan struct{}, stop func()) { return d.r.docs.add(kind) }
