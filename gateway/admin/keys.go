package admin

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"headrace/gateway/admission"
)

const (
	maxKeyBody   = 64 << 10
	defaultGrace = 24 * time.Hour
	mostGrace    = 90 * 24 * time.Hour
)

// keyRoutes are for the keys of callers.
func (o *Options) keyRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /admin/v1/keys", func(w http.ResponseWriter, r *http.Request) {
		write(w, http.StatusOK, map[string]any{"keys": o.Keys.Views(r.Context()), "required": !o.Keys.Open()})
	})
	mux.HandleFunc("POST /admin/v1/keys", o.createKey)
	mux.HandleFunc("GET /admin/v1/keys/{id}", func(w http.ResponseWriter, r *http.Request) {
		v, err := o.Keys.View(r.Context(), r.PathValue("id"))
		if err != nil {
			keyFailed(w, r, err)
			return
		}
		write(w, http.StatusOK, map[string]any{"key": v})
	})
	mux.HandleFunc("PATCH /admin/v1/keys/{id}", o.updateKey)
	mux.HandleFunc("POST /admin/v1/keys/{id}/rotate", o.rotateKey)
	mux.HandleFunc("POST /admin/v1/keys/{id}/revoke", o.revokeKey)
}

// readBody reads one JSON object into v; an empty body leaves it as it is. If it is none, it says so to the caller.
func readBody(w http.ResponseWriter, r *http.Request, v any, want string) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxKeyBody))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if errors.Is(err, io.EOF) {
		return true
	}
	if err == nil && d.More() {
		err = errMoreThanOne
	}
	if err != nil {
		fail(w, http.StatusBadRequest, "invalid_body", "The body is not understood: "+err.Error()+". Give "+want+".")
		return false
	}
	return true
}

func (o *Options) createKey(w http.ResponseWriter, r *http.Request) {
	var s admission.Spec
	if !readBody(w, r, &s, `{"name": "search", "models": ["llama-*"], "rpm": 600, "budget": {"usd_per_day": 20}}; docs/keys.md has all fields`) {
		return
	}
	k := admission.Key{Name: s.Name}
	err := s.Apply(&k)
	var secret string
	if err == nil {
		k, secret, err = o.Keys.Create(r.Context(), k)
	}
	o.answerKey(w, r, http.StatusCreated, k, secret, err)
}

func (o *Options) updateKey(w http.ResponseWriter, r *http.Request) {
	var s admission.Spec
	if !readBody(w, r, &s, `what changes, such as {"rpm": 1200}`) {
		return
	}
	k, err := o.Keys.Update(r.Context(), r.PathValue("id"), &s)
	o.answerKey(w, r, http.StatusOK, k, "", err)
}

func (o *Options) rotateKey(w http.ResponseWriter, r *http.Request) {
	ask := struct {
		Grace *string `json:"grace"`
	}{}
	const want = `{"grace": "24h"}, how long the old key is good beside the new one, from "0" to "2160h"`
	if !readBody(w, r, &ask, want) {
		return
	}
	grace := defaultGrace
	if ask.Grace != nil {
		d, err := time.ParseDuration(*ask.Grace)
		if err != nil || d < 0 || d > mostGrace {
			fail(w, http.StatusBadRequest, "invalid_body", "The field grace is not understood. Give "+want+".")
			return
		}
		grace = d
	}
	k, secret, err := o.Keys.Rotate(r.Context(), r.PathValue("id"), grace)
	o.answerKey(w, r, http.StatusOK, k, secret, err)
}

func (o *Options) revokeKey(w http.ResponseWriter, r *http.Request) {
	k, err := o.Keys.Revoke(r.Context(), r.PathValue("id"))
	o.answerKey(w, r, http.StatusOK, k, "", err)
}

// answerKey answers with the key as it is now. The secret is shown this once.
func (o *Options) answerKey(w http.ResponseWriter, r *http.Request, status int, k admission.Key, secret string, err error) {
	if err != nil {
		keyFailed(w, r, err)
		return
	}
	v, verr := o.Keys.View(r.Context(), k.Name)
	if verr != nil {
		v = admission.View{Key: k}
	}
	out := map[string]any{"key": v}
	if secret != "" {
		out["secret"] = secret
	}
	write(w, status, out)
}

func keyFailed(w http.ResponseWriter, r *http.Request, err error) {
	var field *admission.FieldError
	switch {
	case errors.As(err, &field):
		write(w, http.StatusBadRequest, map[string]any{"error": map[string]any{
			"message": "The field " + field.Error() + ".", "type": "invalid_request_error", "param": field.Field, "code": "invalid_key",
		}})
	case errors.Is(err, admission.ErrUnknownKey):
		fail(w, http.StatusNotFound, "key_not_found", "There is no key "+strconv.Quote(r.PathValue("id"))+". /admin/v1/keys lists them.")
	case errors.Is(err, admission.ErrTaken):
		fail(w, http.StatusConflict, "key_exists", "There is a key of this name already. Choose another name, or rotate that key.")
	case errors.Is(err, admission.ErrInConfig):
		fail(w, http.StatusConflict, "key_in_config", "This key stands in the config. Change it there: the gateway reads it again at once.")
	case errors.Is(err, admission.ErrLastAdmin):
		fail(w, http.StatusConflict, "last_admin_key", "No other key opens the admin API, which would be open to all without this one. Create another one with \"admin\" first, or rotate this one.")
	case errors.Is(err, admission.ErrRevoked):
		fail(w, http.StatusConflict, "key_revoked", "This key is revoked, which is final. Create another one, under the same name if you like.")
	default:
		write(w, http.StatusServiceUnavailable, map[string]any{"error": map[string]any{
			"message": "The store of keys does not answer: nothing was changed, as far as is known. The log says more.", "type": "server_error", "param": nil, "code": "store_unavailable",
		}})
	}
}
