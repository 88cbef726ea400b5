package config

import (
	"path/filepath"
	"strings"
)

// Off is the state directory, and the admin address, of those who want none.
const Off = "off"

// settle finds the state directory: that of the file, else the environment's, of which the first that says something counts.
func (s *State) settle(c *Config, getenv func(string) (string, bool)) {
	env := func(name string) string {
		v, _ := getenv(name)
		return v
	}
	switch {
	case s.Dir == Off:
		return
	case s.Dir != "":
		if !filepath.IsAbs(s.Dir) && c.source != "" { // as other names in the file
			s.Dir = filepath.Join(filepath.Dir(c.source), s.Dir)
		}
	case env(EnvStateDir) != "":
		s.Dir = env(EnvStateDir)
	case env("STATE_DIRECTORY") != "": // systemd's, several of them parted by colons
		s.Dir = filepath.SplitList(env("STATE_DIRECTORY"))[0]
	case filepath.IsAbs(env("XDG_STATE_HOME")): // the specification has others ignored
		s.Dir = filepath.Join(env("XDG_STATE_HOME"), "headrace")
	case filepath.IsAbs(env("HOME")):
		s.Dir = filepath.Join(env("HOME"), ".local", "state", "headrace")
	default:
		s.Dir = Off
	}
	if s.Dir != Off {
		s.Dir = filepath.Clean(s.Dir)
	}
}

// checkState looks at the prefix: braces would have a Cluster keep all keys at one node.
func (c *Config) checkState() []Problem {
	const at = "state.prefix"
	p := c.State.Prefix
	odd := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`{}*?[]\`, r) }
	if c.good(at) && (p == "" || len(p) > 64 || strings.ContainsFunc(p, odd)) {
		return []Problem{c.problem(at, c.shown(at, p)+"is no beginning of a key", `use up to 64 letters, digits and signs such as ":", "-" and "."`)}
	}
	return nil
}
