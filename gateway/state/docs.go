package state

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Docs is the Store of a Redis. Each kind is one hash, each field of it a document: its version, a colon and its body. Changes reach those
// who Watch within milliseconds, while Redis.Run runs.
type Docs struct{ r *Redis }

// Docs returns the Store that all replicas of this Redis share.
func (r *Redis) Docs() *Docs { return &Docs{r} }

// docScript puts (ARGV[3] is "put") or deletes a document of the version ARGV[2], tells the others by the event ARGV[6] on the channel
// ARGV[5], and returns the new version; 0 for a conflict. Versions are microseconds of Redis's clock, and grow.
//
//nolint:gochecknoglobals // a table
var docScript = redis.NewScript(`local is = redis.call("HGET", KEYS[1], ARGV[1])
local v = is and string.match(is, "^%d+") or "0"
if v ~= ARGV[2] then return "0" end
if ARGV[3] == "put" then
  local t = redis.call("TIME")
  v = string.format("%.0f", math.max(tonumber(v) + 1, t[1] * 1000000 + t[2]))
  redis.call("HSET", KEYS[1], ARGV[1], v .. ":" .. ARGV[4])
else
  if not is then return "0" end
  redis.call("HDEL", KEYS[1], ARGV[1])
  v = "1"
end
redis.call("PUBLISH", ARGV[5], ARGV[6])
return v`)

func (d *Docs) key(kind string) string { return d.r.opt.Prefix + "docs:" + kind }

// Load implements Store.
func (d *Docs) Load(ctx context.Context, kind string) (map[string]Doc, error) {
	if err := checkKind(kind); err != nil {
		return nil, err
	}
	c, cancel := context.WithTimeout(ctx, d.r.opt.Timeout)
	defer cancel()
	all, err := d.r.client.HGetAll(c, d.key(kind)).Result()
	if err != nil {
		return nil, d.failed(ctx, "read documents from Redis", err)
	}
	docs := make(map[string]Doc, len(all))
	for name, s := range all {
		version, body, ok := strings.Cut(s, ":")
		if v, err := strconv.ParseUint(version, 10, 53); ok && err == nil && v > 0 {
			docs[name] = Doc{Version(v), []byte(body)}
		}
	}
	return docs, nil
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
