package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"headrace/router/endpoint"
)

// Key is one key that opens the OpenAI surface, with what it allows.
type Key struct {
	Name   string          `yaml:"name" required:"true" eg:"search" doc:"Unique name, as logs, records and reports show it: lower case letters, digits, \".\", \"_\" and \"-\", starting with a letter or digit." aka:"id|user|team"`
	Key    endpoint.Secret `yaml:"key" otherwise:"sha256 is given" eg:"${SEARCH_KEY}" doc:"The key: 20 to 256 characters without a space, drawn at random; headrace keys new makes one." aka:"secret|token|api_key|value"`
	SHA256 string          `yaml:"sha256" otherwise:"key is given" eg:"${SEARCH_KEY_SHA256}" doc:"SHA-256 of the key in hex digits, in place of the key." aka:"hash"`
	Note   string          `yaml:"note" otherwise:"none" eg:"search team, ask Ada" doc:"Your own words." aka:"comment|description"`
	// Expires is a date or a time as it stands in the file; ExpiresAt the same.
	Expires  string `yaml:"expires" otherwise:"never" eg:"2027-06-30" doc:"When it stops to work: a date (its beginning, UTC) or a time such as 2027-06-30T18:00:00Z." aka:"expiry|until|expires_at"`
	Disabled bool   `yaml:"disabled" default:"false" doc:"Whether it is switched off for the time being." aka:"off"`

	Models      []string       `yaml:"models" otherwise:"all" eg:"llama-*" doc:"Models that it may name, exact or with \"*\" at the end; others do not exist for it." aka:"model|allowed_models"`
	Policies    []string       `yaml:"policies" words:"cost|latency|balanced|weighted" otherwise:"all" doc:"Policies that it may ask for by x-headrace-policy; a model's own is always allowed." aka:"policy"`
	Experiments []string       `yaml:"experiments" otherwise:"none" eg:"awq-canary" doc:"Experiments whose arm it may choose by x-headrace-arm, exact or with \"*\" at the end." aka:"arms|experiment"`
	Trust       endpoint.Trust `yaml:"trust" words:"community|verified|datacenter|secure" otherwise:"anybody" doc:"Least trust of the hosts that get its requests, beside what the model and the request ask for." aka:"min_trust"`
	Regions     []string       `yaml:"regions" otherwise:"anywhere" eg:"EU" doc:"Regions of the hosts that get its requests, any of them, beside what the model and the request ask for." aka:"region"`
	Passthrough bool           `yaml:"passthrough" default:"false" doc:"Whether it may use paths that are passed on unread (passthrough): they are not limited to its models, and nobody knows what they cost."`

	RPM         int     `yaml:"rpm" min:"1" max:"1000000000" otherwise:"no limit" eg:"600" doc:"Requests a minute; as many may come at once after a quiet minute." aka:"requests_per_minute|rate|rate_limit"`
	TPM         int     `yaml:"tpm" min:"1" max:"1000000000" otherwise:"no limit" eg:"200000" doc:"Tokens a minute, of prompts and answers together; estimated when a request comes, put right when it is over." aka:"tokens_per_minute"`
	Concurrency int     `yaml:"concurrency" min:"1" max:"1000000" otherwise:"no limit" eg:"32" doc:"Requests at once." aka:"max_in_flight|max_concurrency|parallel"`
	Budget      Budget  `yaml:"budget" otherwise:"no limit" doc:"What it may cost." aka:"budgets|spend"`
	Priority    string  `yaml:"priority" words:"interactive|batch" default:"interactive" doc:"Whether somebody waits for the answers. A request may lower it by x-headrace-priority, not raise it."`
	Weight      float64 `yaml:"weight" above:"0" max:"1000" default:"1" doc:"Its share against other keys while requests wait for a host." aka:"share"`
	Admin       bool    `yaml:"admin" default:"false" doc:"Whether it opens the admin API. While there is any such key, that API asks for one."`

	// ExpiresAt is zero for never.
	ExpiresAt time.Time `yaml:"-"`
}

// Budget is what a key may cost, in US dollars. Days and months are UTC's.
type Budget struct {
	USDPerDay   float64 `yaml:"usd_per_day" above:"0" max:"1000000" otherwise:"no limit" eg:"20" doc:"US dollars a day (UTC)." aka:"day|daily|per_day"`
	USDPerMonth float64 `yaml:"usd_per_month" above:"0" max:"1000000" otherwise:"no limit" eg:"300" doc:"US dollars a month (UTC)." aka:"month|monthly|per_month"`
	USDTotal    float64 `yaml:"usd_total" above:"0" max:"1000000" otherwise:"no limit" eg:"1000" doc:"US dollars in all." aka:"total|usd"`
	Soft        float64 `yaml:"soft" above:"0" max:"1" default:"0.8" doc:"Share of each beyond which the log warns once." aka:"alert|warn|soft_share"`
}

const (
	minKeyLen = 20
	maxKeyLen = 256
)

// checkKeys finds what is wrong with keys.
func (c *Config) checkKeys() []Problem {
	var problems []Problem
	add := func(path string, what, hint string) { problems = append(problems, c.problem(path, what, hint)) }
	names, secrets := map[string]int{}, map[string]int{}
	for i := range c.Keys {
		k, path := &c.Keys[i], fmt.Sprintf("keys[%d]", i)
		if at := path + ".name"; c.good(at) {
			m := checkName(k.Name)
			j, double := names[k.Name]
			switch {
			case m != nil:
				add(at, c.shown(at, k.Name)+strings.Replace(m.what, "a host", "a key", 1), m.hint)
			case len(k.Name) > 64:
				add(at, "is too long for a name", "keep to 64 characters")
			case double:
				add(at, c.shown(at, k.Name)+fmt.Sprintf("is the name of keys[%d] too", j), "give every key a name of its own")
			default:
				names[k.Name] = i
			}
		}
		problems = append(problems, c.checkSecret(k, path, secrets, i)...)
		if at := path + ".expires"; c.good(at) {
			var ok bool
			if k.ExpiresAt, ok = parseDate(k.Expires); !ok {
				add(at, c.shown(at, k.Expires)+"is no date", `write for example "2027-06-30" or "2027-06-30T18:00:00Z"`)
			}
		}
		for _, list := range []struct {
			key     string
			items   []string
			pattern bool
		}{{"models", k.Models, true}, {"experiments", k.Experiments, true}, {"regions", k.Regions, false}, {"policies", k.Policies, false}} {
			at := path + "." + list.key
			if c.good(at) && len(list.items) == 0 {
				add(at, "is an empty list", "name what is allowed, or delete the line")
			}
			if !list.pattern {
				continue
			}
			for j, s := range list.items {
				item := fmt.Sprintf("%s[%d]", at, j)
				if star := strings.IndexByte(s, '*'); c.good(item) && (s == "" || star >= 0 && star != len(s)-1) {
					add(item, c.shown(item, s)+`is no name, nor the beginning of one with "*" at its end`, `write for example "llama-*"`)
				}
			}
		}
	}
	return problems
}

// checkSecret looks at the key itself. Messages never show it.
func (c *Config) checkSecret(k *Key, path string, seen map[string]int, i int) (problems []Problem) {
	add := func(path, what, hint string) { problems = append(problems, c.problem(path, what, hint)) }
	key, hash := path+".key", path+".sha256"
	secret := k.Key.Reveal()
	switch {
	case c.given(key) && c.given(hash):
		add(hash, "is given beside key", "keep one")
		return problems
	case !c.given(key) && !c.given(hash):
		if c.given(path) && !c.origin[path].bad {
			add(path, "has no key", `add key: "${NAME}" with a key in that environment variable, or sha256 with its hash`)
		}
		return problems
	case c.good(hash):
		b, err := hex.DecodeString(k.SHA256)
		if err != nil || len(b) != 32 {
			add(hash, "is no SHA-256 in hex digits", "write its 64 digits, such as sha256sum prints for the key without a line's end")
			return problems
		}
		secret = strings.ToLower(k.SHA256)
		k.SHA256 = secret
	case c.good(key) && (len(secret) < minKeyLen || len(secret) > maxKeyLen):
		add(key, fmt.Sprintf("must have %d to %d characters", minKeyLen, maxKeyLen), "draw one at random: headrace keys new prints one")
		return problems
	case c.good(key) && strings.ContainsFunc(secret, func(r rune) bool { return r <= ' ' || r > '~' }):
		add(key, "holds a space or another character that no header field can carry", "draw one at random: headrace keys new prints one")
		return problems
	case c.good(key):
		h := sha256.Sum256([]byte(secret))
		secret = hex.EncodeToString(h[:])
	default:
		return problems
	}
	if j, double := seen[secret]; double {
		add(path, fmt.Sprintf("has the key of keys[%d]", j), "give every key a secret of its own")
		return problems
	}
	seen[secret] = i
	return problems
}

// parseDate reads a date or a time.
func parseDate(s string) (time.Time, bool) {
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), true
		}
	}
	return time.Time{}, false
}
