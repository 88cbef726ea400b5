// Package script reads a fleet at the fake clouds, and what is to happen to it, from a small YAML file, and plays it.
// Tests in other languages and the demo are written in it.
//
// Durations in a script are those of life; time_scale divides those of the clouds' lives and of events, so that a bid
// war of days is seen in a minute. How fast models answer is set by engine_scale alone.
package script

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"headrace/providers/fakecloud"
)

// Script is a fleet and what happens to it.
type Script struct {
	Seed        uint64   `yaml:"seed"`
	TimeScale   *float64 `yaml:"time_scale"`   // default 1
	EngineScale *float64 `yaml:"engine_scale"` // default 1
	RunPod      *RunPod  `yaml:"runpod"`       // nil for no RunPod
	Vast        *Vast    `yaml:"vast"`         // nil for no Vast.ai
	Events      []Event  `yaml:"events"`
}

// RunPod is an account at RunPod.
type RunPod struct {
	Key        string     `yaml:"key"`        // default "rpa_FAKE"
	TimeScale  *float64   `yaml:"time_scale"` // of RunPod alone; default the script's
	RateLimits bool       `yaml:"rate_limits"`
	Endpoints  []Endpoint `yaml:"endpoints"`
	Pods       []Pod      `yaml:"pods"`
}

// Endpoint is a serverless endpoint at RunPod.
type Endpoint struct {
	Name        string   `yaml:"name"` // its id too
	Type        string   `yaml:"type"` // "queue", the default, or "load_balancer"
	Handler     string   `yaml:"handler"`
	Class       string   `yaml:"class"`
	Models      []string `yaml:"models"`
	WorkersMin  int      `yaml:"workers_min"`
	WorkersMax  int      `yaml:"workers_max"`  // default 3
	ColdStart   Duration `yaml:"cold_start"`   // default 45s
	IdleTimeout Duration `yaml:"idle_timeout"` // default 5s
}

// Pod is a pod at RunPod.
type Pod struct {
	Name      string   `yaml:"name"` // its id too
	Class     string   `yaml:"class"`
	Models    []string `yaml:"models"`
	Price     float64  `yaml:"usd_per_hour"` // default RunPod's catalogue
	Key       string   `yaml:"key"`          // that its server asks for
	Community bool     `yaml:"community"`
	Spot      bool     `yaml:"spot"`
	TCP       bool     `yaml:"tcp"` // its port is public and not behind the proxy
}

// Vast is an account at Vast.ai.
type Vast struct {
	Key        string       `yaml:"key"`        // default "vast-key"
	TimeScale  *float64     `yaml:"time_scale"` // of Vast.ai alone; default the script's
	RateLimits bool         `yaml:"rate_limits"`
	BidWar     *BidWar      `yaml:"bid_war"`
	Instances  []Instance   `yaml:"instances"`
	Serverless []Serverless `yaml:"serverless"`
}

// BidWar is other people's bidding: it takes each interruptible instance away now and then.
type BidWar struct {
	Every Duration `yaml:"every"` // how often each instance is outbid, on average; 6h in life
	Away  Duration `yaml:"away"`  // until it serves again, give or take half of it; 10m in life
}

// Instance is a rented instance at Vast.ai.
type Instance struct {
	ID      int64    `yaml:"id"`   // default the next free one
	Name    string   `yaml:"name"` // its label too
	Class   string   `yaml:"class"`
	Models  []string `yaml:"models"`
	Bid     float64  `yaml:"bid"`          // USD per hour; makes it interruptible
	Price   float64  `yaml:"usd_per_hour"` // on demand; default by the class
	Region  string   `yaml:"region"`       // "California, US"
	Trust   string   `yaml:"trust"`        // "community", "verified" (the default) or "datacenter"
	Key     string   `yaml:"key"`          // that its server asks for
	Booting bool     `yaml:"booting"`      // it does not serve yet
}

// Serverless is a serverless endpoint at Vast.ai.
type Serverless struct {
	Name       string   `yaml:"name"`
	Class      string   `yaml:"class"`
	Models     []string `yaml:"models"`
	Ready      int      `yaml:"ready"`       // workers that are up
	WorkersMax int      `yaml:"workers_max"` // default 3
}

// Duration is a duration as Go writes it: 90s, 10m, 6h.
type Duration time.Duration

// UnmarshalYAML reads a duration.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := time.ParseDuration(n.Value)
	if err != nil || v < 0 || n.Kind != yaml.ScalarNode {
		return wrong(n.Line, "%q is no duration: write 90s, 10m or 6h", n.Value)
	}
	*d = Duration(v)
	return nil
}

// wrong is a mistake at a line, in the form that the YAML package collects.
func wrong(line int, format string, args ...any) error {
	return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: ", line) + fmt.Sprintf(format, args...)}}
}

// Parse reads a script; name is for its errors, which say FILE:LINE: what is wrong.
func Parse(name string, text []byte) (*Script, error) {
	var s Script
	var doc yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&s); errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: it is empty", name)
	} else if err != nil {
		return nil, explain(name, err)
	}
	if err := d.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: more than one document", name)
	}
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, explain(name, err)
	}
	c := &checker{name: name, root: &doc, taken: map[string]kind{}}
	c.script(&s)
	return &s, errors.Join(c.errs...)
}

var (
	lineOf     = regexp.MustCompile(`^(?:yaml: )?line (\d+): (?s:(.*))$`)
	unknownKey = regexp.MustCompile(`^field (\S+) not found in type script\.(\S+)$`)
	wrongType  = regexp.MustCompile("^cannot unmarshal !!\\S+(?: `(.*)`)? into (\\S+)$")
	typeNames  = map[string]string{
		"int": "a whole number", "int64": "a whole number", "uint64": "a whole number", "float64": "a number", "bool": "true or false", "string": "text",
	}
)

// explain puts the YAML package's errors into our words.
func explain(name string, err error) error {
	texts := []string{err.Error()}
	if te, ok := errors.AsType[*yaml.TypeError](err); ok {
		texts = te.Errors
	}
	var errs []error
	for _, t := range texts {
		m := lineOf.FindStringSubmatch(t)
		if m == nil {
			errs = append(errs, fmt.Errorf("%s: %s", name, strings.TrimPrefix(t, "yaml: ")))
			continue
		}
		what := m[2]
		if k := unknownKey.FindStringSubmatch(what); k != nil {
			what = fmt.Sprintf("unknown key %q", k[1])
		} else if k := wrongType.FindStringSubmatch(what); k != nil {
			want, ok := typeNames[k[2]]
			if !ok {
				want = "a list"
				if !strings.HasPrefix(k[2], "[]") {
					want = "a section"
				}
			}
			what = fmt.Sprintf("%q is not %s", k[1], want)
		}
		errs = append(errs, fmt.Errorf("%s:%s: %s", name, m[1], what))
	}
	return errors.Join(errs...)
}

// checker finds what is wrong with the values of a script.
type checker struct {
	name  string
	root  *yaml.Node
	taken map[string]kind
	errs  []error
}

// line is that of what path leads to, or of the nearest thing around it that is written.
func (c *checker) line(path []any) int {
	n := c.root.Content[0]
	line := n.Line
	for _, p := range path {
		var next *yaml.Node
		switch p := p.(type) {
		case string:
			for i := 0; i+1 < len(n.Content) && n.Kind == yaml.MappingNode; i += 2 {
				if n.Content[i].Value == p {
					next = n.Content[i+1]
					line = n.Content[i].Line
				}
			}
		case int:
			if p < len(n.Content) && n.Kind == yaml.SequenceNode {
				next = n.Content[p]
				line = next.Line
			}
		}
		if next == nil {
			break
		}
		n = next
	}
	return line
}

func (c *checker) bad(path []any, format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf("%s:%d: %s", c.name, c.line(path), fmt.Sprintf(format, args...)))
}

func (c *checker) script(s *Script) {
	c.scale(s.TimeScale, "time_scale")
	c.scale(s.EngineScale, "engine_scale")
	if s.RunPod == nil && s.Vast == nil {
		c.bad(nil, "there is no cloud: write runpod or vast")
	}
	if r := s.RunPod; r != nil {
		c.scale(r.TimeScale, "runpod", "time_scale")
		for i := range r.Endpoints {
			c.endpoint(&r.Endpoints[i], "runpod", "endpoints", i)
		}
		for i := range r.Pods {
			p := &r.Pods[i]
			c.host(p.Name, p.Class, pod, "runpod", "pods", i)
			c.atLeast(p.Price, "runpod", "pods", i, "usd_per_hour")
		}
	}
	if v := s.Vast; v != nil {
		c.vast(v)
	}
	for i := range s.Events {
		c.event(s, &s.Events[i])
	}
}

func (c *checker) vast(v *Vast) {
	c.scale(v.TimeScale, "vast", "time_scale")
	if w := v.BidWar; w != nil {
		if w.Every <= 0 || w.Away <= 0 {
			c.bad([]any{"vast", "bid_war"}, "every and away must be above 0")
		}
		if !slices.ContainsFunc(v.Instances, func(i Instance) bool { return i.Bid > 0 }) {
			c.bad([]any{"vast", "bid_war"}, "no instance has a bid")
		}
	}
	ids := map[int64]bool{}
	for n := range v.Instances {
		i := &v.Instances[n]
		c.host(i.Name, i.Class, instance, "vast", "instances", n)
		c.atLeast(i.Bid, "vast", "instances", n, "bid")
		c.atLeast(i.Price, "vast", "instances", n, "usd_per_hour")
		c.oneOf(i.Trust, []string{"", "community", "verified", "datacenter"}, "vast", "instances", n, "trust")
		if i.Bid > 0 && i.Price > 0 {
			c.bad([]any{"vast", "instances", n}, "bid and usd_per_hour exclude each other: who bids pays the bid")
		}
		if i.ID < 0 || ids[i.ID] {
			c.bad([]any{"vast", "instances", n, "id"}, "id %d is below 0 or taken", i.ID)
		}
		ids[i.ID] = i.ID != 0
	}
	for n := range v.Serverless {
		s := &v.Serverless[n]
		c.host(s.Name, s.Class, serverless, "vast", "serverless", n)
		c.atLeast(float64(s.Ready), "vast", "serverless", n, "ready")
		c.atLeast(float64(s.WorkersMax), "vast", "serverless", n, "workers_max")
		if s.Ready > cmp.Or(s.WorkersMax, 3) {
			c.bad([]any{"vast", "serverless", n}, "ready is more than workers_max")
		}
	}
}

func (c *checker) endpoint(e *Endpoint, path ...any) {
	c.host(e.Name, e.Class, service, path...)
	c.oneOf(e.Type, []string{"", "queue", "load_balancer"}, append(path, "type")...)
	c.oneOf(e.Handler, append([]string{""}, handlerNames()...), append(path, "handler")...)
	c.atLeast(float64(e.WorkersMin), append(path, "workers_min")...)
	c.atLeast(float64(e.WorkersMax), append(path, "workers_max")...)
	if e.WorkersMin > cmp.Or(e.WorkersMax, 3) {
		c.bad(path, "workers_min is more than workers_max")
	}
	if e.Type == "load_balancer" && e.Handler != "" {
		c.bad(append(path, "handler"), "a load_balancer has no handler")
	}
}

var goodName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

func (c *checker) host(name, class string, k kind, path ...any) {
	_, taken := c.taken[name]
	switch {
	case !goodName.MatchString(name):
		c.bad(append(path, "name"), "name %q: write letters, digits, dots and hyphens", name)
	case taken:
		c.bad(append(path, "name"), "name %q is taken", name)
	}
	c.taken[name] = k
	if _, ok := fakecloud.ClassNamed(class); !ok && class != "" {
		names := []string{}
		for _, k := range fakecloud.Classes {
			names = append(names, k.Name)
		}
		c.oneOf(class, names, append(path, "class")...)
	}
}

func (c *checker) scale(f *float64, path ...any) {
	if f != nil && !(*f > 0) {
		c.bad(path, "%v is not above 0", *f)
	}
}

func (c *checker) atLeast(f float64, path ...any) {
	if !(f >= 0) {
		c.bad(path, "%s is below 0", strconv.FormatFloat(f, 'g', -1, 64))
	}
}

func (c *checker) oneOf(word string, words []string, path ...any) {
	if !slices.Contains(words, word) {
		words = slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "" })
		c.bad(path, "%q: want one of %s", word, strings.Join(words, ", "))
	}
}
