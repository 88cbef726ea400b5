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

// Docs is the Store of a Redis. Each kind is one hash, each field of it a document: its version, a colon and its body. Changes reach those
// who Watch within milliseconds, while Redis.Run runs.
//
// What was read last is kept in memory, and in a directory where there is one: a replica that starts while Redis is away knows that, and a
// Redis that comes back without its data gets it back. The first field of a hash, of no name, says that it is the one that was written to.
type Docs struct {
	r    *Redis
	opt  DocsOptions
	copy string // directory, "" for none

	mu     sync.Mutex // guards all below
	read   map[string]map[string]Doc
	warned bool
}

// DocsOptions say what becomes of copies.
type DocsOptions struct {
	// Dir is where copies outlive the process, in its folder copies: those of each Redis by themselves. "" is for nowhere.
	Dir string
	// Passing are kinds of which no copy is kept there: nothing is lost with them.
	Passing []string
}

// Docs returns the Store that all replicas of this Redis share.
func (r *Redis) Docs(o DocsOptions) *Docs {
	d := &Docs{r: r, opt: o, read: map[string]map[string]Doc{}}
	if o.Dir != "" {
		d.copy = filepath.Join(o.Dir, "copies", r.place)
	}
	return d
}

//nolint:gochecknoglobals // tables
var (
	// docScript puts (ARGV[3] is "put") or deletes a document of the version ARGV[2], tells the others by the event ARGV[6] on the channel
	// ARGV[5], and returns the new version; 0 for a conflict. Versions are microseconds of Redis's clock, and grow.
	docScript = redis.NewScript(`local is = redis.call("HGET", KEYS[1], ARGV[1])
local v = is and string.match(is, "^%d+") or "0"
if v ~= ARGV[2] then return "0" end
if ARGV[3] == "put" then
  local t = redis.call("TIME")
  v = string.format("%.0f", math.max(tonumber(v) + 1, t[1] * 1000000 + t[2]))
  redis.call("HSET", KEYS[1], "", "", ARGV[1], v .. ":" .. ARGV[4])
else
  if not is then return "0" end
  redis.call("HDEL", KEYS[1], ARGV[1])
  v = "1"
end
redis.call("PUBLISH", ARGV[5], ARGV[6])
return v`)
	// restoreScript writes a hash that is not there, field by field from ARGV[3] on, and tells the others.
	restoreScript = redis.NewScript(`if redis.call("EXISTS", KEYS[1]) == 1 then return 0 end
redis.call("HSET", KEYS[1], "", "")
for i = 3, #ARGV, 2 do redis.call("HSET", KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call("PUBLISH", ARGV[1], ARGV[2])
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
	was, known := d.read[kind]
	if !known && (err != nil || !there) {
		was, known = d.readCopy(kind)
	}
	if err != nil {
		if _, here := d.read[kind]; here || !known || ctx.Err() != nil {
			return nil, err
		}
		d.r.opt.Log.Warn("Redis does not answer: documents are as they were read last, by an earlier process", "kind", kind, "documents", len(was))
		return maps.Clone(was), nil
	}
	if !there && len(was) > 0 {
		if docs, err = d.restore(ctx, kind, was); err != nil {
			return nil, err
		}
	}
	if _, here := d.read[kind]; !here || !maps.EqualFunc(was, docs, func(a, b Doc) bool { return a.Version == b.Version }) {
		d.writeCopy(kind, docs)
	}
	d.read[kind] = maps.Clone(docs)
	return docs, nil
}

// fetch reads a kind from Redis; there is false when nobody has ever written to it, or its data was lost.
func (d *Docs) fetch(ctx context.Context, kind string) (docs map[string]Doc, there bool, err error) {
	c, cancel := context.WithTimeout(ctx, d.r.opt.Timeout)
	defer cancel()
	all, err := d.r.client.HGetAll(c, d.key(kind)).Result()
	if err != nil {
		return nil, false, d.failed(ctx, "read documents from Redis", err)
	}
	docs = make(map[string]Doc, len(all))
	for name, s := range all {
		version, body, ok := strings.Cut(s, ":")
		if v, err := strconv.ParseUint(version, 10, 53); ok && err == nil && v > 0 && name != "" {
			docs[name] = Doc{Version(v), []byte(body)}
		}
	}
	return docs, len(all) > 0, nil
}

// restore gives a Redis that has lost its data back what was read last, unless another replica has. The caller holds mu.
func (d *Docs) restore(ctx context.Context, kind string, was map[string]Doc) (map[string]Doc, error) {
	args := make([]any, 0, 2+2*len(was))
	args = append(args, d.r.channel(), d.r.event(docEvent+kind, nil))
	for name, doc := range was {
		args = append(args, name, append(strconv.AppendUint(nil, uint64(doc.Version), 10), append([]byte(":"), doc.Body...)...))
	}
	c, cancel := context.WithTimeout(ctx, d.r.opt.Timeout)
	defer cancel()
	done, err := restoreScript.Run(c, d.r.client, []string{d.key(kind)}, args...).Int()
	if err != nil {
		return nil, d.failed(ctx, "give Redis its documents back", err)
	}
	if done == 1 {
		d.r.opt.Log.Warn("Redis has lost its data: it got back the documents as they were read last", "kind", kind, "documents", len(was))
	}
	docs, _, err := d.fetch(ctx, kind)
	return docs, err
}

// copied is a kind in a file.
type copied map[string]struct {
	Version Version `json:"version"`
	Body    []byte  `json:"body"`
}

func (d *Docs) readCopy(kind string) (docs map[string]Doc, ok bool) {
	if d.copy == "" {
		return nil, false
	}
	b, err := os.ReadFile(filepath.Join(d.copy, kind))
	var c copied
	if err != nil || json.Unmarshal(b, &c) != nil {
		return nil, false
	}
	docs = make(map[string]Doc, len(c))
	for name, doc := range c {
		if checkDoc(kind, name, doc.Body) == nil && doc.Version > 0 {
			docs[name] = Doc{doc.Version, doc.Body}
		}
	}
	return docs, true
}

// writeCopy keeps what was read. Where it cannot, a restart without Redis knows less: no more.
func (d *Docs) writeCopy(kind string, docs map[string]Doc) {
	if d.copy == "" || slices.Contains(d.opt.Passing, kind) {
		return
	}
	path := filepath.Join(d.copy, kind)
	if _, err := os.Stat(path); len(docs) == 0 && errors.Is(err, fs.ErrNotExist) {
		return
	}
	c := make(copied, len(docs))
	for name, doc := range docs {
		c[name] = struct {
			Version Version `json:"version"`
			Body    []byte  `json:"body"`
		}{doc.Version, doc.Body}
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
	c, cancel := context.WithTimeout(ctx, d.r.opt.Timeout)
	defer cancel()
	s, err := docScript.Run(c, d.r.client, []string{d.key(kind)},
		name, strconv.FormatUint(uint64(old), 10), what, body, d.r.channel(), d.r.event(docEvent+kind, nil)).Text()
	if err != nil {
		return 0, d.failed(ctx, what+" a document in Redis", err)
	}
	v, err := strconv.ParseUint(s, 10, 53)
	if err != nil {
		return 0, fmt.Errorf("%s a document in Redis: it returned %q", what, s)
	}
	if v == 0 {
		return 0, ErrConflict
	}
	d.r.docs.tell(kind)
	return Version(v), nil
}

// docsAgain is when documents are read again though nobody said that they changed: an event may have been lost.
const docsAgain = 30 * time.Second

// Watch implements Store.
func (d *Docs) Watch(kind string) (changes <-chan struct{}, stop func()) { return d.r.docs.add(kind) }
