package runpod

import (
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"strings"

	"headrace/providers/api"
)

// The shapes below are those of RunPod's REST v2 (https://docs.runpod.io/api-reference-v2/overview) and of /health
// (https://docs.runpod.io/serverless/endpoints/operation-reference), read leniently: a member of an unexpected type is
// left out and counted, and only an answer of which nothing can be used is an error.

// errShape says that an answer lacks what it is asked for.
var errShape = errors.New("the answer has not the expected shape")

// container is what endpoints and pods have in common. None of it is logged: env holds secrets.
type container struct {
	Image      string      `json:"image"`
	Env        environment `json:"env"`
	Args       arguments   `json:"args"`
	DockerArgs arguments   `json:"dockerArgs"` // REST v1's and GraphQL's name
}

type endpointJSON struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Type        string `json:"type"` // QUEUE or LOAD_BALANCER
	RequestURLs struct {
		Run  string `json:"run"`  // of queue endpoints
		Base string `json:"base"` // of load-balancing ones
	} `json:"requestUrls"`
	GPU *struct {
		Pools         []string `json:"pools"`
		ExcludedTypes []string `json:"excludedTypes"`
		Count         number   `json:"count"`
	} `json:"gpu"`
	CPU     json.RawMessage `json:"cpu"` // in place of gpu where workers have none
	Workers struct {
		Min         number `json:"min"`
		Max         number `json:"max"`
		IdleTimeout number `json:"idleTimeout"` // seconds; left out for queues that scale by requestCount
	} `json:"workers"`
	DataCenterIDs []string `json:"dataCenterIds"`
	container
}

type healthJSON struct {
	Jobs struct {
		Completed  number `json:"completed"`
		Failed     number `json:"failed"`
		InProgress number `json:"inProgress"`
		InQueue    number `json:"inQueue"`
	} `json:"jobs"`
	Workers *struct {
		Idle         number `json:"idle"`
		Initializing number `json:"initializing"`
		Ready        number `json:"ready"`
		Running      number `json:"running"`
		Throttled    number `json:"throttled"`
		Unhealthy    number `json:"unhealthy"`
	} `json:"workers"`
}

// tells whether any of the counters is there.
func (h *healthJSON) tells() bool {
	w := h.Workers
	return w != nil && (w.Idle.set || w.Initializing.set || w.Ready.set || w.Running.set || w.Throttled.set || w.Unhealthy.set)
}

type workerJSON struct {
	ID           string `json:"id"`
	Status       string `json:"status"`
	GPUCount     number `json:"gpuCount"`
	GPUTypeID    string `json:"gpuTypeId"`
	DataCenterID string `json:"dataCenterId"`
	Uptime       number `json:"uptimeSeconds"`
}

type gpuJSON struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Pool  string `json:"pool"`
	Price struct {
		Serverless number `json:"serverless"` // USD per hour of one GPU
	} `json:"price"`
}

type podJSON struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	Status     string `json:"status"`
	EndpointID string `json:"endpointId"` // of pods that are serverless workers
	Cloud      string `json:"cloud"`      // SECURE or COMMUNITY
	GPU        struct {
		ID    string `json:"id"`
		Count number `json:"count"`
	} `json:"gpu"`
	Cost    number `json:"cost"` // USD per hour now; 0 while it does not run
	Runtime *struct {
		Ports []struct {
			Private number `json:"private"`
			Public  number `json:"public"`
			Type    string `json:"type"`
			IP      string `json:"ip"`
		} `json:"ports"`
	} `json:"runtime"`
	Ports  []string `json:"ports"` // "8000/http"
	Mounts struct {
		Persistent struct {
			Size number `json:"size"` // GB
		} `json:"persistent"`
	} `json:"mounts"`
	DataCenterID string `json:"dataCenterId"`
	StartedAt    string `json:"startedAt"`
	container
}

// number is a JSON number, or one in quotes, of which RunPod's REST v1 has some. It is 0 and not set for null, for what is
// left out and for anything else, which is odd.
type number struct {
	v        float64
	set, odd bool
}

// UnmarshalJSON never fails.
func (n *number) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	t := strings.Trim(string(b), `"`)
	v, err := strconv.ParseFloat(strings.TrimSpace(t), 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		n.odd = true
		return nil //nolint:nilerr // one odd member hides no others; it is counted
	}
	n.v, n.set, n.odd = v, true, len(t) != len(b)
	return nil
}

// count is the number as a count of things, which is never below 0.
func (n number) count() int { return int(min(max(n.v, 0), 1<<30)) }

// environment reads {"NAME":"value"}, [{"key":"NAME","value":"value"}] and ["NAME=value"]; values that are no text are
// kept as JSON writes them.
type environment map[string]string

// UnmarshalJSON never fails.
func (e *environment) UnmarshalJSON(b []byte) error {
	var m map[string]json.RawMessage
	if json.Unmarshal(b, &m) == nil {
		if m != nil {
			*e = make(environment, len(m))
		}
		for k, v := range m {
			(*e)[k] = text(v)
		}
		return nil
	}
	var list []json.RawMessage
	if json.Unmarshal(b, &list) == nil {
		*e = environment{}
	}
	for _, item := range list {
		var kv struct {
			Key   string          `json:"key"`
			Value json.RawMessage `json:"value"`
		}
		if json.Unmarshal(item, &kv) == nil {
			(*e)[kv.Key] = text(kv.Value)
		} else if k, v, ok := strings.Cut(text(item), "="); ok {
			(*e)[k] = v
		}
	}
	return nil
}

func text(b json.RawMessage) string {
	var s string
	if json.Unmarshal(b, &s) == nil {
		return s
	}
	return string(b)
}

// arguments are the words of a command line, written as one text or as a list.
type arguments []string

// UnmarshalJSON never fails.
func (a *arguments) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*a = words(s)
		return nil
	}
	var list []string
	if json.Unmarshal(b, &list) == nil {
		*a = list
	}
	return nil
}

// words splits a command line as a shell does, as far as spaces, quotes and backslashes go.
func words(s string) []string {
	var out []string
	var w strings.Builder
	var quote byte
	begun := false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == '\'' && c != quote, quote == '"' && c != quote && c != '\\':
			w.WriteByte(c)
		case quote != 0 && c == quote:
			quote = 0
		case c == '\\' && i+1 < len(s):
			i++
			w.WriteByte(s[i])
			begun = true
		case c == '"' || c == '\'':
			quote, begun = c, true
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			if begun {
				out = append(out, w.String())
			}
			w.Reset()
			begun = false
		default:
			w.WriteByte(c)
			begun = true
		}
	}
	if begun {
		out = append(out, w.String())
	}
	return out
}

// decode reads an answer or a part of one. What is of an unexpected type is skipped and counted under what.
func (p *Provider) decode(b []byte, into any, what string) error {
	err := json.Unmarshal(b, into)
	if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && te.Field != "" {
		p.odd(what + ": unexpected type of " + te.Field) // encoding/json has read all the rest
		return nil
	}
	return err
}

// numbers counts those that came in an odd form.
func (p *Provider) numbers(what string, ns ...number) {
	for i := range ns {
		if ns[i].odd {
			p.odd(what + ": a number in another form")
			return
		}
	}
}

// wrapped is a list as REST v2 wraps it.
type wrapped struct {
	Endpoints []json.RawMessage `json:"endpoints"`
	Pods      []json.RawMessage `json:"pods"`
	GPUs      []json.RawMessage `json:"gpus"`
	Workers   []json.RawMessage `json:"workers"`
	Records   []json.RawMessage `json:"records"`
}

// list reads the entries of a wrapped list, of which there is the one that pick picks; null is an empty one.
func list(a *api.Answer, key string, pick func(*wrapped) []json.RawMessage) ([]json.RawMessage, error) {
	var w wrapped
	if err := json.Unmarshal(a.Body, &w); err != nil {
		return nil, errShape
	}
	entries := pick(&w)
	if entries == nil {
		var m map[string]json.RawMessage
		if json.Unmarshal(a.Body, &m) != nil || m[key] == nil {
			return nil, errShape
		}
	}
	return entries, nil
}

func endpointsOf(w *wrapped) []json.RawMessage { return w.Endpoints }
func podsOf(w *wrapped) []json.RawMessage      { return w.Pods }
func gpusOf(w *wrapped) []json.RawMessage      { return w.GPUs }
func workersOf(w *wrapped) []json.RawMessage   { return w.Workers }
func recordsOf(w *wrapped) []json.RawMessage   { return w.Records }
