package admin

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"headrace/router"
	"headrace/router/affinity"
	"headrace/router/endpoint"
)

// decisions answers with the newest decisions of the router: n (default 50); request_id picks those of one request, one
// for each of its attempts.
func (o *Options) decisions(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	n, ok := count(w, q)
	if !ok {
		return
	}
	list := o.Router.Decisions(n, q.Get("request_id"))
	if list == nil {
		list = []router.Explanation{}
	}
	write(w, http.StatusOK, map[string]any{"decisions": list})
}

// explain answers where a request would go now, and why. It goes nowhere and takes no lease.
func (o *Options) explain(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	ask, refused := asked(q)
	if refused != "" {
		fail(w, http.StatusBadRequest, "invalid_parameter", refused)
		return
	}
	if name := q.Get("session"); name != "" {
		ask.Affinity.Session = affinity.SessionHash(ask.Model, []byte(name))
	}
	salt, known := o.Keys.SaltOf(q.Get("key"))
	if !known {
		fail(w, http.StatusNotFound, "key_not_found", fmt.Sprintf("There is no key %q. /admin/v1/keys lists them.", q.Get("key")))
		return
	}
	ask.Affinity.Salt(salt)
	model := ask.Model
	if o.Experiments != nil {
		pool, err := o.Experiments.Pool(model, q.Get("unit"), q.Get("arm"))
		if err != nil {
			fail(w, http.StatusBadRequest, "invalid_parameter", err.Error()+". /admin/v1/experiments lists them.")
			return
		}
		if _, there := o.Router.Snapshot().Pool(pool); there {
			ask.Model = pool
		}
	}
	x, err := o.Router.Explain(ask)
	if err != nil { // ErrUnknownModel, nothing else
		fail(w, http.StatusNotFound, "model_not_found", fmt.Sprintf("The model %q does not exist. Available: %s.", model, listed(o.Router.Snapshot().Models())))
		return
	}
	write(w, http.StatusOK, &x)
}

const (
	bytesPerToken = 4
	mostTokens    = 100_000_000
	mostListed    = 20
)

// asked reads the request that is asked about; refused says what is wrong with it.
func asked(q url.Values) (ask *router.Request, refused string) {
	ask = &router.Request{Model: q.Get("model")}
	for _, name := range slices.Sorted(maps.Keys(q)) {
		value := strings.TrimSpace(q.Get(name))
		want := ""
		switch name {
		case "model":
		case "unit", "arm":
			if value == "" {
				want = "a user, session or key, as the experiment's assign_by has it"
				if name == "arm" {
					want = "experiment=arm"
				}
			}
		case "key":
			if value == "" {
				want = "the name or ID of a key"
			}
		case "session":
			if value == "" || len(value) > 256 {
				want = "a name of at most 256 bytes"
			}
		case "prompt_tokens":
			ask.PromptTokens, want = tokens(value)
			ask.BodyBytes = int64(ask.PromptTokens) * bytesPerToken
		case "max_tokens":
			ask.MaxTokens, want = tokens(value)
		default:
			var known bool
			if want, known = ask.Wish(name, value); !known {
				return nil, "There is no parameter " + strconv.Quote(name) + ". There are model, prompt_tokens, max_tokens, policy, ttft, tps, trust, region, session, key, unit and arm."
			}
		}
		if want != "" {
			return nil, "The parameter " + name + " is not understood. Give " + want + ", or leave it out."
		}
	}
	if ask.Model == "" {
		return nil, "You must provide a model parameter, such as /admin/v1/explain?model=NAME&prompt_tokens=500."
	}
	return ask, ""
}

func tokens(value string) (n int, want string) {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 || n > mostTokens {
		return 0, "a whole number of tokens from 1"
	}
	return n, ""
}

func listed(names []string) string {
	switch {
	case len(names) == 0:
		return "none yet: no host has told what it serves"
	case len(names) > mostListed:
		return strings.Join(names[:mostListed], ", ") + " and " + strconv.Itoa(len(names)-mostListed) + " more (/admin/v1/status)"
	}
	return strings.Join(names, ", ")
}

// calibration answers how true the router's predictions were, of all requests and by host.
func (o *Options) calibration(w http.ResponseWriter, _ *http.Request) {
	type host struct {
		ID endpoint.ID `json:"id"`
		router.HostCalibration
	}
	hosts := []host{}
	for _, h := range o.Router.Hosts() {
		hosts = append(hosts, host{h.ID, h.Calibration})
	}
	write(w, http.StatusOK, map[string]any{"calibration": o.Router.Calibration(), "hosts": hosts})
}
