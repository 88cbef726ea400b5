package vast

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"headrace/router/endpoint"
)

const (
	maxWebhook    = 64 << 10        // bytes of a body
	webhookWindow = 5 * time.Minute // by which a delivery's timestamp may differ from our clock
	maxSeen       = 1024            // events that are remembered; more within the window than that push the oldest out
)

// hooks remembers which deliveries were taken.
type hooks struct {
	secret endpoint.Secret

	mu   sync.Mutex // guards all below
	seen map[string]struct{}
	ring [maxSeen]event // in the order of arrival
	next int
}

type event struct {
	id string
	at time.Time
}

// Webhook takes what Vast.ai posts when something happens to the account's instances. Deliveries name no instance and are not
// relied on: one that is signed, timely and new makes the account be looked at, and that is all. The status is for the
// answer: 2xx for what was taken, now or before; 4xx, which Vast.ai does not repeat, for what is not ours.
func (p *Provider) Webhook(header func(name string) string, body []byte, now time.Time) (status int) {
	secret := p.hooks.secret.Reveal()
	if secret == "" {
		return http.StatusNotFound
	}
	if len(body) > maxWebhook {
		return http.StatusRequestEntityTooLarge
	}
	stamp := header("X-Vast-Timestamp")
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(stamp + "."))
	mac.Write(body)
	given, ok := strings.CutPrefix(header("X-Vast-Signature-256"), "sha256=")
	sum, err := hex.DecodeString(given)
	if !ok || err != nil || !hmac.Equal(sum, mac.Sum(nil)) {
		p.odd("webhook with a wrong signature")
		return http.StatusUnauthorized
	}
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || now.Sub(time.Unix(seconds, 0)).Abs() > webhookWindow {
		p.odd("webhook outside its time")
		return http.StatusUnauthorized
	}
	var m struct {
		EventID text `json:"event_id"`
		Type    text `json:"notif_type"`
	}
	if json.Unmarshal(body, &m) != nil {
		p.odd("webhook that is no JSON object")
		return http.StatusBadRequest
	}
	id := string(m.EventID) // the header's is not signed
	if id == "" || len(id) > 128 {
		id = given
	}
	if !p.hooks.fresh(id, now) {
		return http.StatusOK
	}
	kind := strings.TrimPrefix(clip(string(m.Type), 64), "client:")
	if kind == "low_credit" { // at 0, all instances stop together
		p.log.Warn("Vast.ai says that the account's credit is low: without any, all its instances stop")
	} else {
		p.log.Info("Vast.ai tells of an event, its instances are looked at", "event", kind)
	}
	p.look()
	return http.StatusOK
}

// fresh notes an event; false when it was noted before.
func (h *hooks) fresh(id string, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := h.seen[id]; known {
		return false
	}
	if h.seen == nil {
		h.seen = map[string]struct{}{}
	}
	if old := &h.ring[h.next]; old.id != "" {
		delete(h.seen, old.id)
	}
	h.ring[h.next] = event{id, now}
	h.next = (h.next + 1) % maxSeen
	h.seen[id] = struct{}{}
	return true
}
