package vast_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"headrace/providers/fakecloud/fakevast"
	"headrace/providers/vast"
	"headrace/router/endpoint"
)

const hookSecret = "webhook-secret"

// delivery is what Vast.ai posts.
func delivery(secret string, at time.Time, body string) func(string) string {
	stamp := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(stamp + "." + body))
	return func(name string) string {
		switch name {
		case "X-Vast-Timestamp":
			return stamp
		case "X-Vast-Signature-256":
			return "sha256=" + hex.EncodeToString(mac.Sum(nil))
		case "X-Vast-Event-Id":
			return "unsigned, and not to be relied on: " + stamp
		}
		return ""
	}
}

func outbid(id string) string {
	return `{"event_id":"` + id + `","user_id":1,"notif_type":"outbid","subject":"s","message":"m","timestamp":1}`
}

func TestWebhookChecks(t *testing.T) {
	now := time.Unix(1_787_800_000, 0)
	alter := func(h func(string) string, name, value string) func(string) string {
		return func(n string) string {
			if n == name {
				return value
			}
			return h(n)
		}
	}
	good := delivery(hookSecret, now, outbid("e1"))
	for name, tc := range map[string]struct {
		header func(string) string
		body   string
		want   int
	}{
		"good":                {good, outbid("e1"), 200},
		"a little late":       {delivery(hookSecret, now.Add(-4*time.Minute), outbid("e1")), outbid("e1"), 200},
		"a little early":      {delivery(hookSecret, now.Add(4*time.Minute), outbid("e1")), outbid("e1"), 200},
		"no event id":         {delivery(hookSecret, now, "{}"), "{}", 200},
		"other secret":        {delivery("other", now, outbid("e1")), outbid("e1"), 401},
		"other body":          {good, outbid("e2"), 401},
		"other time":          {alter(good, "X-Vast-Timestamp", strconv.FormatInt(now.Unix()+1, 10)), outbid("e1"), 401},
		"no signature":        {alter(good, "X-Vast-Signature-256", ""), outbid("e1"), 401},
		"bare signature":      {alter(good, "X-Vast-Signature-256", strings.TrimPrefix(good("X-Vast-Signature-256"), "sha256=")), outbid("e1"), 401},
		"shortened signature": {alter(good, "X-Vast-Signature-256", good("X-Vast-Signature-256")[:20]), outbid("e1"), 401},
		"signature of no hex": {alter(good, "X-Vast-Signature-256", "sha256=xyz"), outbid("e1"), 401},
		"too late":            {delivery(hookSecret, now.Add(-6*time.Minute), outbid("e1")), outbid("e1"), 401},
		"too early":           {delivery(hookSecret, now.Add(6*time.Minute), outbid("e1")), outbid("e1"), 401},
		"no JSON":             {delivery(hookSecret, now, "hello"), "hello", 400},
		"too large":           {good, strings.Repeat("x", 64<<10+1), 413},
	} {
		t.Run(name, func(t *testing.T) {
			p := vast.New(vast.Options{Key: "k", WebhookSecret: hookSecret})
			if got := p.Webhook(tc.header, []byte(tc.body), now); got != tc.want {
				t.Errorf("status %d, want %d", got, tc.want)
			}
		})
	}
	if got := vast.New(vast.Options{Key: "k"}).Webhook(delivery("", now, outbid("e1")), []byte(outbid("e1")), now); got != 404 {
		t.Errorf("without a secret: status %d, want 404", got)
	}
}

// TestWebhookLooksAtOnce counts polls that deliveries cause while the interval is an hour.
func TestWebhookLooksAtOnce(t *testing.T) {
	r := start(t, fakevast.Config{}, func(o *vast.Options) { o.Poll, o.WebhookSecret = time.Hour, hookSecret }, fakevast.InstanceConfig{})
	i := r.cloud.Instances()[0]
	r.state(i, endpoint.Ready, "")
	now := time.Now()
	i.Outbid(fakevast.ExitedQueued)
	if got := r.p.Webhook(delivery(hookSecret, now, outbid("e1")), []byte(outbid("e1")), now); got != 200 {
		t.Fatalf("status %d", got)
	}
	r.state(i, endpoint.Preempted, "")
	polls := r.p.Status().Polls

	// Replays, also under a fresh time, are taken and cause nothing; what is new does.
	for k := range 50 {
		at := now.Add(time.Duration(k%3) * time.Second)
		if got := r.p.Webhook(delivery(hookSecret, at, outbid("e1")), []byte(outbid("e1")), now); got != 200 {
			t.Fatalf("a replay: status %d", got)
		}
	}
	i.Resume()
	r.p.Webhook(delivery(hookSecret, now, outbid("e2")), []byte(outbid("e2")), now)
	r.state(i, endpoint.Ready, "")
	if n := r.p.Status().Polls; n > polls+1 {
		t.Errorf("%d polls for one new delivery among 50 replays", n-polls)
	}

	// A storm of new events is few polls, and forgets none of the last thousand.
	for k := range 3000 {
		b := outbid(fmt.Sprint("storm", k))
		r.p.Webhook(delivery(hookSecret, now, b), []byte(b), now)
	}
	r.status("the storm's poll", func() bool { return r.p.Status().Polls > polls+1 })
	low := `{"event_id":"low","notif_type":"low_credit"}`
	r.p.Webhook(delivery(hookSecret, now, low), []byte(low), now)
	if !strings.Contains(r.log.String(), "credit is low") {
		t.Error("vast_7.14 nobody is told that the credit is low")
	}
	if n := r.p.Status().Polls; n-polls > 300 { // at the fakes' pace, and slower machines take longer over the storm
		t.Errorf("%d polls for a storm", n-polls)
	}
}

func TestWebhookMemory(t *testing.T) {
	p := vast.New(vast.Options{Key: "k", WebhookSecret: hookSecret})
	now := time.Unix(1_787_800_000, 0)
	hook := func(k int) {
		b := outbid("e" + strconv.Itoa(k))
		if got := p.Webhook(delivery(hookSecret, now, b), []byte(b), now); got != 200 {
			t.Fatalf("status %d", got)
		}
	}
	for k := range 2000 {
		hook(k)
	}
	before := heap()
	for k := range 50000 {
		hook(k)
	}
	grown := heap() - before
	runtime.KeepAlive(p) // or what it holds is not counted at the end
	if grown > 256<<10 {
		t.Errorf("50,000 deliveries keep %d bytes", grown)
	}
}

func FuzzWebhook(f *testing.F) {
	f.Add("1787800000", "sha256=00", []byte(outbid("e")))
	f.Add("", "", []byte("{}"))
	p := vast.New(vast.Options{Key: "k", WebhookSecret: hookSecret})
	now := time.Unix(1_787_800_000, 0)
	f.Fuzz(func(t *testing.T, stamp, signature string, body []byte) {
		got := p.Webhook(func(name string) string {
			if name == "X-Vast-Timestamp" {
				return stamp
			}
			return signature
		}, body, now)
		if got < 400 {
			t.Errorf("status %d for a delivery that nobody signed", got)
		}
	})
}
