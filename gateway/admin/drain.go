package admin

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"

	"headrace/router/endpoint"
)

const maxDrainBody = 4 << 10

// drain keeps new requests from a host until undrain, or until the gateway is started anew. With "move" in the body what runs
// there goes on elsewhere, where it can.
func (o *Options) drain(w http.ResponseWriter, r *http.Request) {
	var ask struct {
		Move bool `json:"move"`
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxDrainBody))
	d.DisallowUnknownFields()
	err := d.Decode(&ask)
	if errors.Is(err, io.EOF) { // no body
		err = nil
	} else if err == nil && d.More() {
		err = errMoreThanOne
	}
	if err != nil {
		fail(w, http.StatusBadRequest, "invalid_body", `The body is not understood. Give {"move": true} to have what runs there go on elsewhere, {"move": false} or nothing to let it finish.`)
		return
	}
	id := endpoint.ID(r.PathValue("id"))
	o.drained(w, id, o.Drain != nil && o.Drain(id, ask.Move), ask.Move)
}

var errMoreThanOne = errors.New("more than one value")

// undrain lets requests in again.
func (o *Options) undrain(w http.ResponseWriter, r *http.Request) {
	id := endpoint.ID(r.PathValue("id"))
	o.drained(w, id, o.Undrain != nil && o.Undrain(id), false)
}

// drained answers with how the host is now.
func (o *Options) drained(w http.ResponseWriter, id endpoint.ID, known, moves bool) {
	if known {
		for _, h := range o.Router.Hosts() {
			if h.ID == id {
				write(w, http.StatusOK, map[string]any{"id": id, "drained": h.Drained, "move": moves, "in_flight": h.InFlight})
				return
			}
		}
	}
	fail(w, http.StatusNotFound, "host_not_found", "There is no host "+strconv.Quote(string(id))+". /admin/v1/hosts lists them.")
}
