package gateway

import (
	"fmt"
	"net/http"
	"testing"

	"headrace/gateway/admission"
)

// TestKeyIsRevokedWhileItsRequestWaits: the request is not served, and who stands behind it is.
func TestKeyIsRevokedWhileItsRequestWaits(t *testing.T) {
	for name, set := range map[string]func(*rigOptions){
		"for a host": waiting(1, roomy()),
		"at the door": func(o *rigOptions) {
			waiting(10, roomy())(o)
			o.set.MaxInFlight = 1
		},
	} {
		t.Run(name, func(t *testing.T) {
			up := newCounter(t)
			g := newRig(t, []string{up.url()}, set, func(o *rigOptions) {
				o.noTLS = true
				o.keys = gateOf(nil)
			})
			body := fmt.Sprintf(`{"model":%q,"stream":true,"messages":[]}`, model)
			g.goDo(post(chatPath, body, bearer(otherKey)))
			first := wait(t, up.came, "the first")
			revoked := g.goDo(post(chatPath, body, bearer(teamKey)))
			g.standing(1)
			g.goDo(post(chatPath, body, bearer(otherKey)))
			g.standing(2)
			g.srv.opt.Keys.Configure([]admission.Key{{Name: "other", Hash: admission.HashOf(otherKey)}}, true)
			close(first.serve)
			if r := wait(t, revoked, "the revoked key's answer"); r.err != nil || r.StatusCode != http.StatusUnauthorized {
				t.Errorf("answered %v %v", r.Response, r.err)
			}
			second := wait(t, up.came, "the one behind it")
			close(second.serve)
			eventually(t, "nobody is left", func() bool { return g.srv.room.Waiting() == 0 && g.srv.inside.Load() == 0 })
			if n := len(up.came); n != 0 {
				t.Errorf("%d more requests at the host", n)
			}
		})
	}
}
