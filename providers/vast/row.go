package vast

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// columns are what is asked of GET /api/v1/instances/. Columns that Vast.ai does not know come back as null. What moves all the
// time and is not used (gpu_util, time_remaining) is left out, so that a row that says nothing new is the same bytes.
var columns = [...]string{
	"id", "machine_id", "host_id", "label", "is_bid",
	"actual_status", "intended_status", "cur_state", "next_state", "status_msg",
	"image_uuid", "image_args", "extra_env", "jupyter_token", "template_id", "template_hash_id", "template_name",
	"public_ipaddr", "static_ip", "ports",
	"gpu_name", "num_gpus", "gpu_frac", "disk_space", "disk_usage",
	"dph_total", "storage_total_cost", "search", "instance", "credit_discount",
	"internet_up_cost_per_tb", "internet_down_cost_per_tb", "inet_up_cost", "inet_down_cost",
	"reliability2", "verification", "hosting_type", "geolocation", "country_code", "start_date", "end_date",
}

// row is an instance as the API shows it. Fields take whatever shape they come in: one that is odd is left empty and
// never hides the others.
type row struct {
	ID           number   `json:"id"`
	Machine      number   `json:"machine_id"`
	HostID       number   `json:"host_id"`
	Label        text     `json:"label"`
	IsBid        truth    `json:"is_bid"`
	Actual       text     `json:"actual_status"`
	Intended     text     `json:"intended_status"`
	Cur          text     `json:"cur_state"`
	Next         text     `json:"next_state"`
	Msg          text     `json:"status_msg"`
	Image        text     `json:"image_uuid"`
	Args         words    `json:"image_args"`
	Env          env      `json:"extra_env"`
	Token        text     `json:"jupyter_token"`
	TemplateID   text     `json:"template_id"`
	TemplateHash text     `json:"template_hash_id"`
	TemplateName text     `json:"template_name"`
	IP           text     `json:"public_ipaddr"`
	StaticIP     truth    `json:"static_ip"`
	Ports        portMap  `json:"ports"`
	GPU          text     `json:"gpu_name"`
	GPUs         number   `json:"num_gpus"`
	GPUFrac      number   `json:"gpu_frac"`
	DiskSpace    number   `json:"disk_space"` // GB
	DiskUsage    number   `json:"disk_usage"` // GB, -1 until running
	DPHTotal     number   `json:"dph_total"`  // USD per hour while running, storage included
	StorageTotal number   `json:"storage_total_cost"`
	Search       hourCost `json:"search"`   // what it costs when it runs
	Accrues      hourCost `json:"instance"` // what it costs now
	Discount     number   `json:"credit_discount"`
	UpPerTB      number   `json:"internet_up_cost_per_tb"`
	DownPerTB    number   `json:"internet_down_cost_per_tb"`
	UpPerGB      number   `json:"inet_up_cost"`
	DownPerGB    number   `json:"inet_down_cost"`
	Reliability  number   `json:"reliability2"`
	Verification text     `json:"verification"`
	HostingType  text     `json:"hosting_type"`
	Geolocation  text     `json:"geolocation"`
	Country      text     `json:"country_code"`
	Start        number   `json:"start_date"` // Unix seconds
	End          number   `json:"end_date"`   // Unix seconds
}

// hourCost is a breakdown of prices, in USD per hour.
type hourCost struct {
	DiskHour   number `json:"diskHour"`
	Total      number `json:"totalHour"`
	Discount   number `json:"discountTotalHour"`
	Discounted number `json:"discountedTotalPerHour"`
}

// UnmarshalJSON takes anything; only an object says something.
func (h *hourCost) UnmarshalJSON(b []byte) error {
	type plain hourCost
	var p plain
	if json.Unmarshal(b, &p) == nil {
		*h = hourCost(p)
	}
	return nil
}

var errNoID = errors.New("an instance without an id")

func parseRow(raw []byte) (*row, error) {
	r := new(row)
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, errors.New("an instance that is no object") // json's own words may quote a key
	}
	if r.id() <= 0 {
		return nil, errNoID
	}
	return r, nil
}

func (r *row) id() int64 {
	if r.ID.v > 1<<53 {
		return 0
	}
	return int64(r.ID.v)
}

// number is a JSON number, also one in quotes; set is false for anything else.
type number struct {
	v   float64
	set bool
}

// UnmarshalJSON never fails.
func (n *number) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseFloat(string(bytes.Trim(b, `"`)), 64)
	if *n = (number{}); err == nil && !math.IsNaN(v) && !math.IsInf(v, 0) {
		*n = number{v, true}
	}
	return nil
}

// time reads Unix seconds; zero when there are none.
func (n number) time() time.Time {
	if !n.set || n.v <= 0 || n.v > 1e11 { // the year 5138
		return time.Time{}
	}
	return time.UnixMilli(int64(n.v * 1e3)).UTC()
}

// text is a string without blanks around it; numbers are taken as written, anything else is "".
type text string

// UnmarshalJSON never fails.
func (t *text) UnmarshalJSON(b []byte) error {
	*t = ""
	switch {
	case b[0] == '"':
		var s string
		if json.Unmarshal(b, &s) == nil {
			*t = text(strings.TrimSpace(s))
		}
	case b[0] == '-' || b[0] >= '0' && b[0] <= '9':
		*t = text(b)
	}
	return nil
}

// word is the text as states are compared: in lower case.
func (t text) word() string { return strings.ToLower(string(t)) }

// truth is a boolean, also as a number or in quotes.
type truth struct{ yes, set bool }

// UnmarshalJSON never fails.
func (t *truth) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseBool(strings.ToLower(string(bytes.Trim(b, `"`))))
	*t = truth{v, err == nil}
	return nil
}

// words are the arguments of a command line, split at blanks: an argument may be a whole script for a shell.
type words []string

// UnmarshalJSON never fails.
func (w *words) UnmarshalJSON(b []byte) error {
	*w = nil
	var list []text
	if json.Unmarshal(b, &list) != nil {
		var one text
		_ = one.UnmarshalJSON(b) // never fails
		list = []text{one}
	}
	for _, s := range list {
		for f := range strings.FieldsSeq(string(s)) {
			*w = append(*w, strings.Trim(f, `"';`))
		}
	}
	return nil
}

// flag returns the value of "--name value" or "--name=value", "" without one.
func (w words) flag(name string) string {
	for i, s := range w {
		if v, ok := strings.CutPrefix(s, name+"="); ok {
			return v
		}
		if s == name && i+1 < len(w) && !strings.HasPrefix(w[i+1], "-") {
			return w[i+1]
		}
	}
	return ""
}

// env is a container's environment, in which Vast.ai also keeps its docker options such as "-p 8000:8000".
type env [][2]string

// UnmarshalJSON takes a list of pairs, an object or a list of "NAME=value", and never fails: the shape has changed before.
func (e *env) UnmarshalJSON(b []byte) error {
	*e = nil
	var items []json.RawMessage
	if json.Unmarshal(b, &items) == nil {
		for _, it := range items {
			var pair []text
			var line text
			switch {
			case json.Unmarshal(it, &pair) == nil && len(pair) == 2:
				*e = append(*e, [2]string{string(pair[0]), string(pair[1])})
			case line.UnmarshalJSON(it) == nil && line != "":
				k, v, _ := strings.Cut(string(line), "=")
				*e = append(*e, [2]string{k, v})
			}
		}
		return nil
	}
	var m map[string]text
	if json.Unmarshal(b, &m) == nil {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			*e = append(*e, [2]string{strings.TrimSpace(k), string(m[k])})
		}
	}
	return nil
}

func (e env) get(name string) string {
	for _, p := range e {
		if p[0] == name {
			return p[1]
		}
	}
	return ""
}

// portMap is docker's map of a container's TCP ports to those of its machine.
type portMap struct {
	tcp map[int][]binding
	odd bool // it came in a shape that says nothing of the mapping
}

type binding struct {
	hostIP string
	port   int
}

// UnmarshalJSON takes docker's object, and anything else as no map; it never fails.
func (p *portMap) UnmarshalJSON(b []byte) error {
	*p = portMap{}
	var m map[string]json.RawMessage
	if json.Unmarshal(b, &m) != nil {
		p.odd = string(b) != "null" && string(b) != "[]" // both are ordinary before an instance runs
		return nil
	}
	for k, raw := range m {
		inner, proto, _ := strings.Cut(k, "/")
		port, err := strconv.Atoi(inner)
		if err != nil || port <= 0 || proto != "" && proto != "tcp" {
			p.odd = p.odd || err != nil
			continue
		}
		type published struct {
			HostIP   text   `json:"HostIp"`
			HostPort number `json:"HostPort"`
		}
		var list []published
		var one published
		if json.Unmarshal(raw, &list) != nil && json.Unmarshal(raw, &one) == nil {
			list = []published{one}
		}
		for _, l := range list {
			if l.HostPort.v < 1 || l.HostPort.v > 65535 {
				continue
			}
			if p.tcp == nil {
				p.tcp = map[int][]binding{}
			}
			p.tcp[port] = append(p.tcp[port], binding{string(l.HostIP), int(l.HostPort.v)})
		}
	}
	return nil
}
