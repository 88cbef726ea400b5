package state

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// Note is what a replica has said of something, for as long as that holds.
type Note struct {
	Name string
	Body []byte
	Left time.Duration // until it is forgotten
}

//nolint:gochecknoglobals // tables
var (
	// noteScript keeps the body ARGV[2] under the name ARGV[1] for ARGV[3] milliseconds, 0 to forget it, and tells the others by the event
	// ARGV[5] on the channel ARGV[4], unless that is empty.
	noteScript = redis.NewScript(`if ARGV[3] == "0" then
  redis.call("HDEL", KEYS[1], ARGV[1])
else
  local t = redis.call("TIME")
  redis.call("HSET", KEYS[1], ARGV[1], string.format("%.0f:", t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[3]) .. ARGV[2])
  if redis.call("PTTL", KEYS[1]) < tonumber(ARGV[3]) then redis.call("PEXPIRE", KEYS[1], ARGV[3]) end
end
if ARGV[5] ~= "" then redis.call("PUBLISH", ARGV[4], ARGV[5]) end
return 1`)
	// notesScript returns name, body and milliseconds left of each, and forgets those whose time is over.
	notesScript = redis.NewScript(`local t = redis.call("TIME")
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local all, out = redis.call("HGETALL", KEYS[1]), {}
for i = 1, #all, 2 do
  local till, body = string.match(all[i + 1], "^(%d+):(.*)$")
  if till and tonumber(till) > now then
    out[#out + 1] = all[i]
    out[#out + 1] = body
    out[#out + 1] = tostring(tonumber(till) - now)
  else
    redis.call("HDEL", KEYS[1], all[i])
  end
end
return out`)
)

// Note tells the others by an event of a kind, and keeps it for so long for those who come later, under a name that the next word of the
// same thing will have; 0 takes back what was kept. With quiet nobody is told.
func (r *Redis) Note(ctx context.Context, kind, name string, body []byte, keep time.Duration, quiet bool) error {
	if err := checkKind(kind); err != nil {
		return err
	}
	var event []byte
	if !quiet {
		event = r.event(kind, body)
	}
	c, cancel := context.WithTimeout(ctx, r.opt.Timeout)
	defer cancel()
	err := noteScript.Run(c, r.client, []string{r.opt.Prefix + "notes:" + kind}, name, body, keep.Milliseconds(), r.channel(), event).Err()
	if err != nil {
		if ctx.Err() == nil && !isReply(err) {
			r.report(err)
		}
		return fmt.Errorf("write a note to Redis: %w", err)
	}
	return nil
}

// Notes returns what is kept of a kind.
func (r *Redis) Notes(ctx context.Context, kind string) ([]Note, error) {
	c, cancel := context.WithTimeout(ctx, r.opt.Timeout)
	defer cancel()
	s, err := notesScript.Run(c, r.client, []string{r.opt.Prefix + "notes:" + kind}).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("read notes from Redis: %w", err)
	}
	notes := make([]Note, 0, len(s)/3)
	for i := 0; i+2 < len(s); i += 3 {
		left, _ := strconv.ParseInt(s[i+2], 10, 64)
		notes = append(notes, Note{s[i], []byte(s[i+1]), time.Duration(left) * time.Millisecond})
	}
	return notes, nil
}
