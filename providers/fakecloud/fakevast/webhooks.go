package fakevast

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"headrace/providers/fakecloud"
)

// webhook is an address that wants to know of events.
type webhook struct {
	id               int64
	name             *string
	url, secret      string
	events           []string
	created, updated float64
}

// maxWebhooks is for each account.
const maxWebhooks = 4

// events are the keys that can be subscribed to, with the subject of what is sent.
var events = map[string]string{
	"client:outbid": "Your instance was outbid", "client:instance_stopped": "Your instance stopped",
	"client:instance_offline": "Your instance is offline", "client:instance_online": "Your instance is online",
	"client:instance_started": "Your instance started", "client:instance_created": "Your instance was created",
	"client:instance_deleted": "Your instance was deleted", "client:upcoming_downtime": "Maintenance is planned",
	"client:low_credit": "Warning - Your Vast.ai Credit Balance Is Getting Low",
}

func (h *webhook) json(secret bool) map[string]any {
	m := map[string]any{
		"id": h.id, "name": h.name, "webhook_url": h.url, "event_types": h.events, "created_at": h.created, "updated_at": h.updated,
	}
	if secret {
		m["webhook_secret"] = h.secret
	}
	return m
}

// notificationTypes is GET /api/v0/notification-types/.
func (c *Cloud) notificationTypes(a *asked) {
	types := []any{}
	for _, key := range slices.Sorted(maps.Keys(events)) {
		who, slug, _ := strings.Cut(key, ":")
		types = append(types, map[string]any{
			"key": key, "slug": slug, "context": who, "topic": "instances", "category": "instances", "display_name": events[key],
			"default_preferences": map[string]bool{"email": true, "webhooks": false}, "mandatory_email": false,
		})
	}
	a.json(map[string]any{"success": true, "notification_types": types})
}

// webhookBody is what creates or changes a webhook.
type webhookBody struct {
	Name   *string  `json:"name"`
	URL    *string  `json:"webhook_url"`
	Events []string `json:"event_types"`
}

// check returns why the body is refused, "" when it is not.
func (b *webhookBody) check(strict, whole bool) string {
	if whole && (b.URL == nil || len(b.Events) == 0) {
		return "webhook_url and event_types are required"
	}
	if b.Name != nil && len(*b.Name) > 120 {
		return "name is too long"
	}
	for _, e := range b.Events {
		if events[e] == "" {
			return "unknown event type " + e
		}
	}
	if b.URL == nil {
		return ""
	}
	u, err := url.Parse(*b.URL)
	if err != nil || u.Hostname() == "" || len(*b.URL) > 2048 {
		return "webhook_url is not valid"
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme != "https" && (strict || ip == nil || !ip.IsLoopback()) {
		return "webhook_url must use https"
	}
	return ""
}

// createWebhook is POST /api/v0/webhooks/.
func (c *Cloud) createWebhook(a *asked) {
	var b webhookBody
	if !a.decode(&b) {
		return
	}
	if why := b.check(c.cfg.StrictWebhooks, true); why != "" {
		a.fail(http.StatusBadRequest, "invalid_args", why)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.webhooks) >= maxWebhooks {
		a.fail(http.StatusBadRequest, "too_many_webhooks", "An account has at most 4 webhooks.")
		return
	}
	c.lastWebhook++
	now := unix(c.cfg.Now())
	h := &webhook{id: c.lastWebhook, name: b.Name, url: *b.URL, secret: c.hex(64), events: b.Events, created: now, updated: now}
	c.webhooks = append(c.webhooks, h)
	m := h.json(true)
	m["user_id"] = c.cfg.UserID
	a.json(map[string]any{"success": true, "webhook": m, "enabled_notification_preferences": h.events})
}

// listWebhooks is GET /api/v0/webhooks/.
func (c *Cloud) listWebhooks(a *asked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := []any{}
	for _, h := range c.webhooks {
		list = append(list, h.json(false))
	}
	a.json(map[string]any{"success": true, "webhooks": list})
}

// oneWebhook finds the webhook of the path and lets f change it under the lock.
func (c *Cloud) oneWebhook(a *asked, f func(h *webhook)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.IndexFunc(c.webhooks, func(h *webhook) bool { return h.id == a.id })
	if at < 0 {
		a.fail(http.StatusNotFound, "not_found", "Webhook not found")
		return
	}
	f(c.webhooks[at])
}

// changeWebhook is PUT /api/v0/webhooks/{id}/.
func (c *Cloud) changeWebhook(a *asked) {
	var b webhookBody
	if !a.decode(&b) {
		return
	}
	if why := b.check(c.cfg.StrictWebhooks, false); why != "" {
		a.fail(http.StatusBadRequest, "invalid_args", why)
		return
	}
	c.oneWebhook(a, func(h *webhook) {
		if b.Name != nil {
			h.name = b.Name
		}
		if b.URL != nil {
			h.url = *b.URL
		}
		if len(b.Events) > 0 {
			h.events = b.Events
		}
		h.updated = unix(c.cfg.Now())
		a.json(map[string]any{"success": true, "webhook": h.json(false), "enabled_notification_preferences": h.events})
	})
}

// deleteWebhook is DELETE /api/v0/webhooks/{id}/.
func (c *Cloud) deleteWebhook(a *asked) {
	c.oneWebhook(a, func(h *webhook) {
		c.webhooks = slices.DeleteFunc(c.webhooks, func(o *webhook) bool { return o == h })
		a.json(map[string]any{"success": true})
	})
}

// rotateSecret is POST /api/v0/webhooks/{id}/rotate-secret/.
func (c *Cloud) rotateSecret(a *asked) {
	c.oneWebhook(a, func(h *webhook) {
		h.secret = c.hex(64)
		h.updated = unix(c.cfg.Now())
		a.json(map[string]any{"success": true, "webhook": h.json(true)})
	})
}

// testWebhook is POST /api/v0/webhooks/{id}/test/. What it sends is tried once.
func (c *Cloud) testWebhook(a *asked) {
	var d *delivery
	c.oneWebhook(a, func(h *webhook) {
		d = c.delivery(h, "webhook_test", "Test", 1)
		a.json(map[string]any{"success": true, "msg": "Test webhook delivered"})
	})
	if d != nil {
		c.send(d)
	}
}

// Fire tells all webhooks that want to know of an event, such as "client:outbid".
func (c *Cloud) Fire(event string) {
	var ds []*delivery
	c.mu.Lock()
	for _, h := range c.webhooks {
		if slices.Contains(h.events, event) {
			_, slug, _ := strings.Cut(event, ":")
			ds = append(ds, c.delivery(h, slug, events[event], maxDeliveries))
		}
	}
	c.mu.Unlock()
	for _, d := range ds {
		c.send(d)
		if c.cfg.DoubleWebhooks {
			c.send(d)
		}
	}
}

// maxDeliveries is how often an event is tried; the real number is not known.
const maxDeliveries = 5

// delivery is one event for one webhook.
type delivery struct {
	url, secret, id string
	body            []byte
	tries           int
}

// delivery makes one. The caller holds mu.
func (c *Cloud) delivery(h *webhook, slug, subject string, tries int) *delivery {
	d := &delivery{url: h.url, secret: h.secret, id: c.hex(32), tries: tries}
	var err error
	d.body, err = json.Marshal(map[string]any{
		"event_id": d.id, "user_id": c.cfg.UserID, "notif_type": slug, "subject": subject, "message": subject + ".",
		"data": nil, "data_truncated": false, "timestamp": unix(c.cfg.Now()),
	})
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return d
}

// send delivers in a goroutine of its own, with further tries after failures that may pass.
func (c *Cloud) send(d *delivery) {
	c.books.update(func(s *Stats) { s.Pending++ })
	c.spawn(func() {
		ok := false
		for try := 1; try <= d.tries; try++ {
			var again bool
			if ok, again = c.deliver(d, try); ok || !again {
				break
			}
			wait := c.scaled(time.Duration(try) * 2 * time.Second)
			if fakecloud.Pause(c.ctx, max(wait, 10*time.Millisecond)) != nil {
				break
			}
		}
		c.books.update(func(s *Stats) {
			s.Pending--
			if !ok {
				s.Failed++
			}
		})
	})
}

// Sign is the signature of a webhook's body: what X-Vast-Signature-256 holds.
func Sign(secret, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = io.WriteString(mac, timestamp+".")
	_, _ = mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

func (c *Cloud) deliver(d *delivery, try int) (ok, again bool) {
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url, bytes.NewReader(d.body))
	if err != nil {
		return false, false
	}
	stamp := strconv.FormatInt(c.cfg.Now().Unix(), 10)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Vast-Event-Id", d.id)
	req.Header.Set("X-Vast-Delivery-Attempt", strconv.Itoa(try))
	req.Header.Set("X-Vast-Timestamp", stamp)
	req.Header.Set("X-Vast-Signature-256", Sign(d.secret, stamp, d.body))
	resp, err := c.courier.Do(req)
	if err == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
		_ = resp.Body.Close()
		ok = resp.StatusCode/100 == 2
		again = resp.StatusCode == http.StatusRequestTimeout || resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500
	}
	c.books.update(func(s *Stats) {
		s.Deliveries++
		if ok {
			s.Delivered++
		}
	})
	return ok, again || err != nil
}
