package serverless

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Vast.ai's shapes move: numbers come as text, lists as null, rows with half of their members. What can be read is
// read, one row at a time, and what cannot is reported to odd.

// number is a JSON number, or text that holds one; anything else is 0.
type number float64

// UnmarshalJSON never fails: an odd member costs its own value only.
func (n *number) UnmarshalJSON(b []byte) error {
	f, err := strconv.ParseFloat(string(bytes.Trim(b, `" `)), 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		f = 0
	}
	*n = number(f)
	return nil
}

// word is a JSON text; anything else is "".
type word string

// UnmarshalJSON never fails.
func (w *word) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) != nil {
		s = ""
	}
	*w = word(s)
	return nil
}

// jobRow is an endpoint of GET /api/v0/endptjobs/.
type jobRow struct {
	ID         number `json:"id"`
	Name       word   `json:"endpoint_name"`
	APIKey     word   `json:"api_key"` // secret: becomes an endpoint.Secret as soon as the row is looked at
	State      word   `json:"endpoint_state"`
	Inactivity number `json:"inactivity_timeout"` // seconds
}

// workerRow is a worker of POST /get_endpoint_workers/. Load and perf are in the same unit, per second.
type workerRow struct {
	ID      number `json:"id"`
	Status  word   `json:"status"`
	CurLoad number `json:"cur_load"`
	Perf    number `json:"perf"`
}

// instanceRow is what is read of an instance in GET /api/v1/instances/.
type instanceRow struct {
	ID       number          `json:"id"`
	DPHTotal number          `json:"dph_total"` // USD/h while it runs, without traffic
	GPU      word            `json:"gpu_name"`
	GPUs     number          `json:"num_gpus"`
	Env      json.RawMessage `json:"extra_env"`
}

// rows decodes a list row by row; null is an empty one.
func rows[T any](list json.RawMessage, odd func(string)) ([]T, error) {
	var raw []json.RawMessage
	if len(list) == 0 {
		return nil, errors.New("the answer has no list")
	}
	if err := json.Unmarshal(list, &raw); err != nil {
		return nil, fmt.Errorf("the answer has another shape than expected: %w", err)
	}
	out := make([]T, 0, len(raw))
	for _, r := range raw {
		var t T
		if r = bytes.TrimSpace(r); len(r) == 0 || r[0] != '{' || json.Unmarshal(r, &t) != nil {
			odd("row of a list that is not what it should be")
			continue
		}
		out = append(out, t)
	}
	return out, nil
}

// refusal is how Vast.ai says no, sometimes under status 200.
type refusal struct {
	Success *bool `json:"success"`
	Error   word  `json:"error"`
	Msg     word  `json:"msg"`
	ErrMsg  word  `json:"error_msg"`
}

func (r *refusal) err() error {
	if r.Success == nil || *r.Success {
		return nil
	}
	return fmt.Errorf("refused under a good status: %s", clip(strings.TrimSpace(string(r.Error)+" "+string(r.Msg)+string(r.ErrMsg))))
}

// decodeJobs reads GET /api/v0/endptjobs/.
func decodeJobs(b []byte, odd func(string)) ([]jobRow, error) {
	var a struct {
		refusal
		Results json.RawMessage `json:"results"`
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return nil, fmt.Errorf("the answer is not the JSON that was expected: %w", err)
	}
	if err := a.err(); err != nil {
		return nil, err
	}
	return rows[jobRow](a.Results, odd)
}

// errNoWorkers is an engine that answers with a message in place of its workers; most often nobody is up yet.
type errNoWorkers struct{ msg string }

func (e errNoWorkers) Error() string { return "no worker list: " + e.msg }

// decodeWorkers reads POST /get_endpoint_workers/: an array, as the engine sends it, or the object that its
// description promises.
func decodeWorkers(b []byte, odd func(string)) ([]workerRow, error) {
	if b = bytes.TrimSpace(b); len(b) > 0 && b[0] == '[' {
		return rows[workerRow](b, odd)
	}
	var a struct {
		refusal
		Workers json.RawMessage `json:"workers"`
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return nil, fmt.Errorf("the answer is not the JSON that was expected: %w", err)
	}
	if len(a.Workers) > 0 {
		return rows[workerRow](a.Workers, odd)
	}
	if msg := a.ErrMsg + a.Error; msg != "" {
		return nil, errNoWorkers{clip(string(msg))}
	}
	return nil, errors.New("the answer has no list of workers")
}

// decodeInstances reads a page of GET /api/v1/instances/ and the token of the next one, "" at the end.
func decodeInstances(b []byte, odd func(string)) (list []instanceRow, next string, err error) {
	var a struct {
		refusal
		Instances json.RawMessage `json:"instances"`
		Next      word            `json:"next_token"`
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return nil, "", fmt.Errorf("the answer is not the JSON that was expected: %w", err)
	}
	if err := a.err(); err != nil {
		return nil, "", err
	}
	list, err = rows[instanceRow](a.Instances, odd)
	return list, string(a.Next), err
}

// model reads from a worker's environment which model it serves, "" when it does not say. Templates of Vast.ai set
// MODEL_NAME (serverless) or VLLM_MODEL, and vLLM's arguments in VLLM_ARGS.
func model(env json.RawMessage) (name string, maxContext int) {
	vars := map[string]string{}
	var pairs [][]any
	var object map[string]any
	if json.Unmarshal(env, &pairs) == nil {
		for _, kv := range pairs {
			if len(kv) == 2 {
				k, _ := kv[0].(string)
				vars[k], _ = kv[1].(string)
			}
		}
	} else if json.Unmarshal(env, &object) == nil {
		for k, v := range object {
			vars[k], _ = v.(string)
		}
	}
	args := strings.Fields(vars["VLLM_ARGS"])
	for i, a := range args {
		flag, value, joined := strings.Cut(a, "=")
		if !joined && i+1 < len(args) {
			value = args[i+1]
		}
		value = strings.Trim(value, `"'`)
		switch flag {
		case "--served-model-name":
			name = value
		case "--max-model-len":
			if n, err := strconv.Atoi(value); err == nil && n > 0 {
				maxContext = n
			}
		}
	}
	for _, v := range []string{name, vars["MODEL_NAME"], vars["VLLM_MODEL"]} {
		if v != "" {
			return v, maxContext
		}
	}
	return "", 0
}

const maxQuote = 200 // bytes of a provider's words that are quoted

func clip(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > maxQuote {
		s = strings.ToValidUTF8(s[:maxQuote], "") + "…"
	}
	return s
}
