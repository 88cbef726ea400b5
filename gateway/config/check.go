package config

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"headrace/router/endpoint"
)

// settle fills in what follows from other values of the host.
func (h *StaticHost) settle(c *Config, path string) {
	price := path + ".price"
	switch {
	case c.given(price + ".usd_per_hour"):
		h.Price.Basis = endpoint.PerHour
	case c.given(price + ".usd_per_worker_second"):
		h.Price.Basis = endpoint.PerWorkerSecond
	case c.given(price + ".usd_per_mtok"):
		h.Price.Basis = endpoint.PerToken
		if !c.given(price + ".usd_per_mtok.cached") {
			h.Price.USDPerMTok.Cached = h.Price.USDPerMTok.In
		}
	}
	if !c.given(path + ".tenure") {
		switch h.Price.Basis {
		case endpoint.PerHour:
			h.Tenure = endpoint.OnDemand
		case endpoint.PerWorkerSecond:
			h.Tenure = endpoint.Serverless
		case endpoint.PerToken:
			h.Tenure = endpoint.TenurePerToken
		case endpoint.BasisUnknown:
		}
	}
	h.BaseURL = strings.TrimRight(h.BaseURL, "/")
}

func staticPath(i int) string { return fmt.Sprintf("providers.static[%d]", i) }

// listenerPath is the key of c.Listen[i], which need not be a list in the file.
func (c *Config) listenerPath(i int) string {
	if at := fmt.Sprintf("listen[%d]", i); c.given(at) {
		return at
	}
	return "listen"
}

// given says whether the key has a value, be it a bad one.
func (c *Config) given(path string) bool {
	_, ok := c.origin[path]
	return ok
}

// good says whether the key has a value that could be read.
func (c *Config) good(path string) bool {
	from, ok := c.origin[path]
	return ok && !from.bad
}

// problem is one about the value at path.
func (c *Config) problem(path, what, hint string) Problem {
	from, ok := c.origin[path]
	if !ok {
		from.source = c.source
		if c.source != "" {
			from.line, from.column = 1, 1
		}
	}
	if from.source != c.source {
		path = "" // the variable or flag says which value it is
	}
	return Problem{Source: from.source, Line: from.line, Column: from.column, Path: path, What: what, Hint: hint}
}

// shown is a value for a message, with a space behind it: in quotes, or only its origin when it came
// from the environment.
func (c *Config) shown(path, value string) string {
	from := c.origin[path]
	if from.env != "" {
		return "the value of " + from.env + " "
	}
	if strings.HasPrefix(from.source, "environment variable") {
		return ""
	}
	return strconv.Quote(abridged(value)) + " "
}

// check finds what is wrong with values that could be read.
func (c *Config) check() []Problem {
	problems := c.checkAddresses()
	problems = append(problems, c.checkHosts()...)
	problems = append(problems, c.checkCatalogue()...)
	problems = append(problems, c.checkState()...)
	problems = append(problems, c.checkKeys()...)
	problems = append(problems, c.checkExperiments()...)
	return append(problems, c.checkModels()...)
}

// Validate says what keeps a configuration from being served though nothing in it is wrong: at
// present, that it names no host. The error is a *Problems.
func (c *Config) Validate() error {
	if len(c.Providers.Static) > 0 || c.Providers.RunPod != nil || c.Providers.Vast != nil {
		return nil
	}
	p := c.problem("providers", "", "")
	p.Path = "providers"
	p.What = "no host is configured, so there is nowhere to send requests"
	where := "add one to the file"
	if c.source == "" {
		where = "write one to headrace.yaml, or name another file with --config"
	}
	p.Hint = "set RUNPOD_API_KEY or VAST_API_KEY to use what an account has rented, or " + where + `, for example:

providers:
  static:
    - name: lab
      base_url: "http://127.0.0.1:8000/v1"
      price: {usd_per_hour: 1.80}
      tenure: on_demand`
	return asError([]Problem{p})
}

func (c *Config) checkHosts() []Problem {
	var problems []Problem
	add := func(path string, m *mistake) {
		if m != nil {
			problems = append(problems, c.problem(path, m.what, m.hint))
		}
	}
	names := make(map[string]string) // name -> its key
	for i := range c.Providers.Static {
		h, path := &c.Providers.Static[i], staticPath(i)
		if at := path + ".name"; c.good(at) {
			if m := checkName(h.Name); m != nil {
				add(at, &mistake{c.shown(at, h.Name) + m.what, m.hint})
			} else if first, double := names[h.Name]; double {
				add(at, &mistake{c.shown(at, h.Name) + "is the name of " + strings.TrimSuffix(first, ".name") + " too", "give every host a name of its own"})
			} else {
				names[h.Name] = at
			}
		}
		if at := path + ".base_url"; c.good(at) {
			add(at, checkURL(h.BaseURL))
		}
		problems = append(problems, c.checkHostModels(h, path)...)
		problems = append(problems, c.checkPrice(path+".price")...)
		if at := path + ".tls"; c.given(at) && strings.HasPrefix(h.BaseURL, "http:") && h.TLS != (HostTLS{}) {
			add(at, &mistake{"has no effect: base_url is plain http", "write https:// in base_url, or delete tls"})
		}
	}
	allNamed := true // as far as can be told
	for i := range c.Providers.Static {
		allNamed = allNamed && c.good(staticPath(i)+".name")
	}
	if at := "passthrough"; c.good(at) && allNamed {
		if _, ok := names[c.Passthrough]; !ok {
			hint := "write the name of a host under providers.static"
			var literal []string
			for i, h := range c.Providers.Static {
				if c.origin[staticPath(i)+".name"].env == "" && h.Name != "" {
					literal = append(literal, h.Name)
				}
			}
			if near := nearest(c.Passthrough, literal); near != "" {
				hint = fmt.Sprintf("did you mean %q?", near)
			}
			add(at, &mistake{c.shown(at, c.Passthrough) + "is no host under providers.static", hint})
		}
	}
	return problems
}

// checkCatalogue looks for lines that say nothing.
func (c *Config) checkCatalogue() []Problem {
	var problems []Problem
	for i := range c.Catalogue {
		at := fmt.Sprintf("catalogue[%d]", i)
		if !slices.ContainsFunc([]string{"tps", "slope", "ttft", "prefill_tps", "max_num_seqs"}, func(k string) bool { return c.given(at + "." + k) }) {
			problems = append(problems, c.problem(at, "says nothing of the hosts it is for", "add tps, slope, ttft, prefill_tps or max_num_seqs, or delete it"))
		}
	}
	return problems
}

func checkName(name string) *mistake {
	for i, r := range name {
		alnum := 'a' <= r && r <= 'z' || '0' <= r && r <= '9'
		if alnum || i > 0 && (r == '.' || r == '_' || r == '-') {
			continue
		}
		return &mistake{"is no name for a host", `use lower case letters, digits, ".", "_" and "-", starting with a letter or digit`}
	}
	switch {
	case name == "":
		return &mistake{"is no name for a host", "write a short one, such as lab"}
	case len(name) > 128:
		return &mistake{"is too long for a name", "keep to 128 characters"}
	}
	return nil
}

// checkURL looks at a base URL. Its messages do not repeat it: a key may have been written into it.
func checkURL(s string) *mistake {
	const form = `for example "http://gpu-box:8000/v1"`
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || scheme != "http" && scheme != "https" {
		return &mistake{"does not start with http:// or https://", form}
	}
	if strings.ContainsFunc(s, unicode.IsSpace) {
		return &mistake{"holds a space", form}
	}
	authority, _, _ := strings.Cut(rest, "/")
	if strings.Contains(authority, "@") {
		return &mistake{"holds a user name or password", `remove what is in front of the "@"; a key belongs into api_key`}
	}
	u, err := url.Parse(s)
	if err != nil {
		return &mistake{"is not a URL", form}
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return &mistake{"has no port from 1 to 65535", form}
		}
	}
	switch {
	case u.Hostname() == "":
		return &mistake{"names no host", form}
	case strings.ContainsAny(s, "?#"):
		return &mistake{`holds a query ("?") or fragment ("#")`, "end it with the path; a key belongs into api_key"}
	case strings.HasSuffix(u.Path, "/chat/completions") || strings.HasSuffix(u.Path, "/completions") || strings.HasSuffix(u.Path, "/models"):
		return &mistake{"goes on to one route of the API", `end it before that, such as ".../v1"`}
	}
	return nil
}

func (c *Config) checkHostModels(h *StaticHost, path string) []Problem {
	var problems []Problem
	at := path + ".models"
	if c.good(at) && len(h.Models) == 0 {
		problems = append(problems, c.problem(at, "is an empty list", "name a model, or delete the line to have the host asked"))
	}
	first := make(map[string]int)
	for i, m := range h.Models {
		item := fmt.Sprintf("%s[%d]", at, i)
		if key := item + ".name"; c.given(key) {
			item = key
		} else if !c.origin[item].short {
			continue // a section without its name: reported as missing
		}
		if !c.good(item) {
			continue
		}
		if bad := checkModelName(m.Name); bad != nil {
			problems = append(problems, c.problem(item, c.shown(item, m.Name)+bad.what, bad.hint))
			continue
		}
		if j, double := first[m.Name]; double {
			problems = append(problems, c.problem(item, fmt.Sprintf("%sis in the list twice, first as models[%d]", c.shown(item, m.Name), j), "keep one"))
			continue
		}
		first[m.Name] = i
	}
	return problems
}

func checkModelName(name string) *mistake {
	odd := func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }
	switch {
	case name == "":
		return &mistake{"is an empty model name", "write the id, such as llama-70b"}
	case strings.ContainsFunc(name, odd):
		return &mistake{"is no model name: it holds a space", "write one id"}
	case strings.Contains(name, "*"):
		return &mistake{`holds a "*"`, `patterns are understood in the "serves" of models only`}
	}
	return nil
}

func (c *Config) checkPrice(path string) []Problem {
	if !c.good(path) {
		return nil
	}
	var given []string
	for _, basis := range []string{"usd_per_hour", "usd_per_worker_second", "usd_per_mtok"} {
		if c.given(path + "." + basis) {
			given = append(given, basis)
		}
	}
	var problems []Problem
	switch {
	case len(given) == 0:
		problems = append(problems, c.problem(path, "has no basis", "write one of usd_per_hour, usd_per_worker_second or usd_per_mtok; delete price if it is unknown"))
	case len(given) > 1:
		problems = append(problems, c.problem(path+"."+given[1], "is a second basis besides "+given[0], "keep one"))
	}
	for _, key := range []string{"cold_start", "idle_timeout"} {
		if at := path + "." + key; c.given(at) && len(given) > 0 && !slices.Contains(given, "usd_per_worker_second") {
			problems = append(problems, c.problem(at, "has no effect on "+given[0], "delete it; only usd_per_worker_second bills it"))
		}
	}
	return problems
}

func (c *Config) checkModels() []Problem {
	var problems []Problem
	for _, name := range slices.Sorted(maps.Keys(c.Models)) {
		m := c.Models[name]
		path := join("models", name)
		if bad := checkModelName(name); bad != nil {
			problems = append(problems, c.problem(path, "the name "+bad.what, bad.hint))
		}
		at := path + ".serves"
		if c.good(at) && len(m.Serves) == 0 {
			problems = append(problems, c.problem(at, "is an empty list", `name the ids that hosts serve, such as ["meta-llama/Llama-3.1-70B-Instruct"]`))
		}
		readable := c.good(at)
		for i, id := range m.Serves {
			item := fmt.Sprintf("%s[%d]", at, i)
			if !c.good(item) {
				readable = false
				continue
			}
			if star := strings.IndexByte(id, '*'); star >= 0 && star != len(id)-1 {
				problems = append(problems, c.problem(item, c.shown(item, id)+`has a "*" that is not at its end`, `write the beginning of the ids and one "*" behind it`))
				readable = false
			} else if bad := checkModelName(strings.TrimSuffix(id, "*")); bad != nil && id != "*" {
				problems = append(problems, c.problem(item, c.shown(item, id)+bad.what, bad.hint))
				readable = false
			}
		}
		if readable && len(m.Serves) > 0 && !c.anyHostServes(m.Serves) {
			problems = append(problems, c.problem(at, "names nothing that a host under providers.static serves", "compare with the models of the hosts; both are case sensitive"))
		}
	}
	return problems
}

// anyHostServes says whether a host serves one of the ids, or may do so because it is yet to be asked.
func (c *Config) anyHostServes(ids []string) bool {
	if len(c.Providers.Static) == 0 || c.Providers.RunPod != nil || c.Providers.Vast != nil {
		return true // Validate has more to say, or nobody knows yet
	}
	for i := range c.Providers.Static {
		path := staticPath(i) + ".models"
		if !c.good(path) {
			return true
		}
		for j, m := range c.Providers.Static[i].Models {
			if m.Name == "" || c.origin[fmt.Sprintf("%s[%d]", path, j)].bad {
				return true
			}
			if slices.ContainsFunc(ids, func(id string) bool {
				prefix, pattern := strings.CutSuffix(id, "*")
				return id == m.Name || pattern && strings.HasPrefix(m.Name, prefix)
			}) {
				return true
			}
		}
	}
	return false
}
