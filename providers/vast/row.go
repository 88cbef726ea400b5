package vast

import (
	"bytes"
	"errors"
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
	ID, Machine, HostID                    number
	Label                                  text
	IsBid                                  truth
	Actual, Intended, Cur, Next, Msg       text
	Image                                  text
	Args                                   words
	Env                                    env
	Token                                  text // jupyter_token
	TemplateID, TemplateHash, TemplateName text
	IP                                     text
	StaticIP                               truth
	Ports                                  portMap
	GPU                                    text
	GPUs, GPUFrac                          number
	DiskSpace, DiskUsage                   number // GB; -1 used until running
	DPHTotal                               number // USD per hour while running, storage included
	StorageTotal                           number // USD per hour
	Search                                 hourCost
	Accrues                                hourCost // "instance": what it costs now
	Discount                               number
	UpPerTB, DownPerTB, UpPerGB, DownPerGB number
	Reliability                            number
	Verification, HostingType              text
	Geolocation, Country                   text
	Start, End                             number // Unix seconds
}

var errNoID = errors.New("an instance without an id")

func parseRow(raw []byte) (*row, error) {
	r := new(row)
	if !members(raw, r.set) {
		return nil, errors.New("an instance that is no object")
	}
	if r.id() <= 0 {
		return nil, errNoID
	}
	return r, nil
}

func (r *row) set(key, v []byte) {
	switch string(key) {
	case "id":
		r.ID.read(v)
	case "machine_id":
		r.Machine.read(v)
	case "host_id":
		r.HostID.read(v)
	case "label":
		r.Label.read(v)
	case "is_bid":
		r.IsBid.read(v)
	case "actual_status":
		r.Actual.read(v)
	case "intended_status":
		r.Intended.read(v)
	case "cur_state":
		r.Cur.read(v)
	case "next_state":
		r.Next.read(v)
	case "status_msg":
		r.Msg.read(v)
	case "image_uuid":
		r.Image.read(v)
	case "image_args":
		r.Args.read(v)
	case "extra_env":
		r.Env.read(v)
	case "jupyter_token":
		r.Token.read(v)
	case "template_id":
		r.TemplateID.read(v)
	case "template_hash_id":
		r.TemplateHash.read(v)
	case "template_name":
		r.TemplateName.read(v)
	case "public_ipaddr":
		r.IP.read(v)
	case "static_ip":
		r.StaticIP.read(v)
	case "ports":
		r.Ports.read(v)
	case "gpu_name":
		r.GPU.read(v)
	case "num_gpus":
		r.GPUs.read(v)
	case "gpu_frac":
		r.GPUFrac.read(v)
	case "disk_space":
		r.DiskSpace.read(v)
	case "disk_usage":
		r.DiskUsage.read(v)
	case "dph_total":
		r.DPHTotal.read(v)
	case "storage_total_cost":
		r.StorageTotal.read(v)
	case "search":
		r.Search.read(v)
	case "instance":
		r.Accrues.read(v)
	case "credit_discount":
		r.Discount.read(v)
	case "internet_up_cost_per_tb":
		r.UpPerTB.read(v)
	case "internet_down_cost_per_tb":
		r.DownPerTB.read(v)
	case "inet_up_cost":
		r.UpPerGB.read(v)
	case "inet_down_cost":
		r.DownPerGB.read(v)
	case "reliability2":
		r.Reliability.read(v)
	case "verification":
		r.Verification.read(v)
	case "hosting_type":
		r.HostingType.read(v)
	case "geolocation":
		r.Geolocation.read(v)
	case "country_code":
		r.Country.read(v)
	case "start_date":
		r.Start.read(v)
	case "end_date":
		r.End.read(v)
	}
}

func (r *row) id() int64 {
	if r.ID.v > 1<<53 {
		return 0
	}
	return int64(r.ID.v)
}

// hourCost is a breakdown of prices, in USD per hour.
type hourCost struct{ DiskHour, Total, Discount, Discounted number }

func (h *hourCost) read(b []byte) {
	members(b, func(key, v []byte) {
		switch string(key) {
		case "diskHour":
			h.DiskHour.read(v)
		case "totalHour":
			h.Total.read(v)
		case "discountTotalHour":
			h.Discount.read(v)
		case "discountedTotalPerHour":
			h.Discounted.read(v)
		}
	})
}

// number is a JSON number, also one in quotes; set is false for anything else.
type number struct {
	v   float64
	set bool
}

func (n *number) read(b []byte) {
	v, err := strconv.ParseFloat(string(bytes.Trim(b, `"`)), 64)
	if *n = (number{}); err == nil && !math.IsNaN(v) && !math.IsInf(v, 0) {
		*n = number{v, true}
	}
}

// UnmarshalJSON never fails.
func (n *number) UnmarshalJSON(b []byte) error {
	n.read(b)
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

func (t *text) read(b []byte) {
	*t = ""
	if s, ok := unquoted(b); ok {
		*t = text(strings.TrimSpace(s))
	} else if len(b) > 0 && (b[0] == '-' || b[0] >= '0' && b[0] <= '9') {
		*t = text(b)
	}
}

// UnmarshalJSON never fails.
func (t *text) UnmarshalJSON(b []byte) error {
	t.read(b)
	return nil
}

// word is the text as states are compared: in lower case.
func (t text) word() string { return strings.ToLower(string(t)) }

// truth is a boolean, also as a number or in quotes.
type truth struct{ yes, set bool }

func (t *truth) read(b []byte) {
	v, err := strconv.ParseBool(strings.ToLower(string(bytes.Trim(b, `"`))))
	*t = truth{v, err == nil}
}

// words are the arguments of a command line, split at blanks: an argument may be a whole script for a shell.
type words []string

func (w *words) read(b []byte) {
	*w = nil
	add := func(v []byte) {
		var s text
		s.read(v)
		for f := range strings.FieldsSeq(string(s)) {
			*w = append(*w, strings.Trim(f, `"';`))
		}
	}
	if !elements(b, add) {
		*w = nil
		add(b)
	}
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

// read takes a list of pairs, an object, or a list of "NAME=value": the shape has changed before.
func (e *env) read(b []byte) {
	*e = nil
	list := elements(b, func(v []byte) {
		var pair [2]text
		n := 0
		if elements(v, func(w []byte) {
			if n < 2 {
				pair[n].read(w)
			}
			n++
		}) {
			if n == 2 {
				*e = append(*e, [2]string{string(pair[0]), string(pair[1])})
			}
			return
		}
		if pair[0].read(v); pair[0] != "" {
			name, value, _ := strings.Cut(string(pair[0]), "=")
			*e = append(*e, [2]string{name, value})
		}
	})
	if list {
		return
	}
	*e = nil
	members(b, func(key, v []byte) {
		var t text
		t.read(v)
		*e = append(*e, [2]string{strings.TrimSpace(string(key)), string(t)})
	})
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
	tcp []mapped // by container port
	odd bool     // it came in a shape that says nothing of the mapping
}

// mapped is one port of a container.
type mapped struct {
	inner int
	bound []binding
}

type binding struct {
	hostIP string
	port   int
}

// read takes docker's object, and anything else as no map.
func (p *portMap) read(b []byte) {
	*p = portMap{}
	if s := string(bytes.TrimSpace(b)); s == "null" || s == "[]" { // both are ordinary before an instance runs
		return
	}
	ok := members(b, func(key, v []byte) {
		name, proto, _ := strings.Cut(string(key), "/")
		inner, err := strconv.Atoi(name)
		if err != nil || inner <= 0 || proto != "" && proto != "tcp" {
			p.odd = p.odd || err != nil
			return
		}
		m := mapped{inner: inner}
		if !elements(v, m.bind) {
			m.bind(v)
		}
		if len(m.bound) > 0 {
			p.tcp = append(p.tcp, m)
		}
	})
	if p.odd = p.odd || !ok; !ok {
		p.tcp = nil
	}
	slices.SortStableFunc(p.tcp, func(a, b mapped) int { return a.inner - b.inner })
	p.tcp = slices.CompactFunc(p.tcp, func(a, b mapped) bool { return a.inner == b.inner })
}

func (m *mapped) bind(v []byte) {
	var ip text
	var port number
	members(v, func(key, w []byte) {
		switch string(key) {
		case "HostIp":
			ip.read(w)
		case "HostPort":
			port.read(w)
		}
	})
	if port.v >= 1 && port.v <= 65535 {
		m.bound = append(m.bound, binding{string(ip), int(port.v)})
	}
}
