package config

import "path/filepath"

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
