package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Overrides are values of command line flags; they win over environment and file. The zero value
// overrides nothing.
type Overrides struct {
	Listen               string // --listen: addresses parted by commas
	Admin                string // --admin: an address, or "off"
	LogLevel             string // --log-level: debug, info, warn or error
	AllowUnauthenticated *bool  // --allow-unauthenticated; nil when it was not given
}

// Names of the environment variables that stand between file and flags. An empty variable counts
// as absent.
const (
	EnvListen               = "HEADRACE_LISTEN"
	EnvAdmin                = "HEADRACE_ADMIN"
	EnvAllowUnauthenticated = "HEADRACE_ALLOW_UNAUTHENTICATED"
	EnvStateDir             = "HEADRACE_STATE_DIR"
)

// Load reads the file at path; an empty path stands for an empty file. Relative file names in it
// start from its directory, and files that it names must be readable. getenv is os.LookupEnv
// outside of tests. The error is a *Problems with everything that is wrong.
func Load(path string, o Overrides, getenv func(string) (string, bool)) (*Config, error) {
	var src []byte
	if path != "" {
		var err error
		if src, err = readFile(path); err != nil {
			return nil, asError([]Problem{{Source: path, What: "cannot be read: " + reason(err), Err: err}})
		}
	}
	c, problems := parse(path, src, o, getenv)
	for _, f := range c.namedFiles() {
		if from := c.origin[f.key]; !from.bad && from.source != "" {
			if err := readable(f.path); err != nil {
				p := c.problem(f.key, c.shown(f.key, f.path)+"cannot be read: "+reason(err), "relative names start from the directory of the configuration file")
				p.Err = err
				problems = append(problems, p)
			}
		}
	}
	if err := asError(problems); err != nil {
		return nil, err
	}
	return c, nil
}

// Parse is Load for a file's content. It touches no file; name is used in messages, and relative
// file names in src start from its directory.
func Parse(name string, src []byte, o Overrides, getenv func(string) (string, bool)) (*Config, error) {
	c, problems := parse(name, src, o, getenv)
	if err := asError(problems); err != nil {
		return nil, err
	}
	return c, nil
}

func parse(name string, src []byte, o Overrides, getenv func(string) (string, bool)) (*Config, []Problem) {
	d := decoder{source: name, getenv: getenv, origin: make(map[string]origin)}
	if name != "" {
		d.dir = filepath.Dir(name)
	}
	c := &Config{source: name, origin: d.origin}
	root, problem := parseTree(src)
	if problem != nil {
		problem.Source = name
		return c, []Problem{*problem} // what the rest would say follows from a file not understood
	}
	d.decode(root, c)
	c.settle()
	problems := append(d.problems, c.override(o, getenv)...)
	problems = append(problems, c.clouds(getenv)...)
	problems = append(problems, c.Telemetry.settle(c, getenv)...)
	c.State.settle(c, getenv)
	c.Ledger.settle(c)
	problems = append(problems, c.check()...)
	keepInside(src, problems)
	return c, problems
}

// settle fills in what follows from other values.
func (c *Config) settle() {
	for i := range c.Providers.Static {
		c.Providers.Static[i].settle(c, staticPath(i))
	}
}

// A setting is one value from outside the file.
type setting struct{ source, value string }

// override applies environment and flags.
func (c *Config) override(o Overrides, getenv func(string) (string, bool)) []Problem {
	pick := func(env, flag, flagValue string) (s setting) {
		if env != "" {
			if v, _ := getenv(env); v != "" {
				s = setting{"environment variable " + env, v}
			}
		}
		if flagValue != "" {
			s = setting{"flag " + flag, flagValue}
		}
		return s
	}
	var problems []Problem
	if s := pick(EnvListen, "--listen", o.Listen); s.value != "" {
		problems = append(problems, c.overrideListen(s)...)
	}
	if s := pick(EnvAdmin, "--admin", o.Admin); s.value != "" {
		c.Admin = s.value
		c.origin["admin"] = origin{source: s.source}
	}
	allow := ""
	if o.AllowUnauthenticated != nil {
		allow = strconv.FormatBool(*o.AllowUnauthenticated)
	}
	if s := pick(EnvAllowUnauthenticated, "--allow-unauthenticated", allow); s.value != "" {
		from := origin{source: s.source}
		switch s.value {
		case "true", "1":
			c.AllowUnauthenticated = true
		case "false", "0":
			c.AllowUnauthenticated = false
		default:
			from.bad = true
			problems = append(problems, Problem{Source: s.source, What: "is neither true nor false", Hint: "write true or false"})
		}
		c.origin["allow_unauthenticated"] = from
	}
	if s := pick("", "--log-level", o.LogLevel); s.value != "" {
		words := []string{"debug", "info", "warn", "error"}
		var level slog.Level
		if !slices.Contains(words, s.value) || level.UnmarshalText([]byte(s.value)) != nil {
			problems = append(problems, Problem{Source: s.source, What: fmt.Sprintf("%q is not known", s.value), Hint: suggestWord(s.value, words)})
		} else {
			c.Log.Level = level
		}
	}
	return problems
}

// overrideListen replaces the addresses. TLS stays where it is plain which listener is meant, and
// is never dropped in silence.
func (c *Config) overrideListen(s setting) []Problem {
	addresses := strings.Split(s.value, ",")
	next := make([]Listener, len(addresses))
	for i, a := range addresses {
		next[i].Address = strings.TrimSpace(a)
	}
	secured := slices.ContainsFunc(c.Listen, func(l Listener) bool { return l.TLS != nil })
	from := origin{source: s.source, short: true}
	c.origin["listen"] = from
	switch {
	case secured && len(c.Listen) == 1 && len(next) == 1:
		next[0].TLS = c.Listen[0].TLS
		if at, ok := c.origin["listen[0].tls.cert"]; ok {
			c.origin["listen.tls.cert"], c.origin["listen.tls.key"] = at, c.origin["listen[0].tls.key"]
		}
	case secured:
		return []Problem{{
			Source: s.source, What: "would drop the TLS that the file sets under listen",
			Hint: "change the addresses in the file, or keep one listener on both sides",
		}}
	}
	for key := range c.origin {
		if strings.HasPrefix(key, "listen[") || key == "listen.address" {
			delete(c.origin, key)
		}
	}
	for i := range next {
		if len(next) > 1 {
			c.origin[fmt.Sprintf("listen[%d]", i)] = from
		}
	}
	c.Listen = next
	return nil
}

// readFile reads a configuration file; one byte more than allowed is enough to refuse it.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, maxFileBytes+1))
}

// readable says whether a file can be opened for reading.
func readable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return errors.New("it is a directory")
	}
	return nil
}

// reason is an error of a file operation without the path, which the caller has named.
func reason(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err.Error()
	}
	return err.Error()
}
