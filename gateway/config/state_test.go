package config

import (
	"strings"
	"testing"
)

// TestStateDir takes the directory of the file, then those of the environment in their order.
func TestStateDir(t *testing.T) {
	for name, tc := range map[string]struct {
		file, yaml string
		env        map[string]string
		want       string
	}{
		"nothing is known":        {want: "off"},
		"off":                     {yaml: "state: {dir: off}", env: map[string]string{"HEADRACE_STATE_DIR": "/a"}, want: "off"},
		"file":                    {yaml: "state: {dir: /x/../y/}", env: map[string]string{"HEADRACE_STATE_DIR": "/a"}, want: "/y"},
		"file, relative":          {file: "/etc/headrace/headrace.yaml", yaml: "state: {dir: data}", want: "/etc/headrace/data"},
		"our own variable":        {env: map[string]string{"HEADRACE_STATE_DIR": "/a", "STATE_DIRECTORY": "/b", "HOME": "/h"}, want: "/a"},
		"our own variable is off": {env: map[string]string{"HEADRACE_STATE_DIR": "off", "HOME": "/h"}, want: "off"},
		"systemd":                 {env: map[string]string{"STATE_DIRECTORY": "/b:/c", "XDG_STATE_HOME": "/x", "HOME": "/h"}, want: "/b"},
		"desktop":                 {env: map[string]string{"XDG_STATE_HOME": "/x", "HOME": "/h"}, want: "/x/headrace"},
		"desktop, relative":       {env: map[string]string{"XDG_STATE_HOME": "x", "HOME": "/h"}, want: "/h/.local/state/headrace"},
		"home":                    {env: map[string]string{"HOME": "/h"}, want: "/h/.local/state/headrace"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Parse(tc.file, []byte(tc.yaml), Overrides{}, func(name string) (string, bool) { v, ok := tc.env[name]; return v, ok })
			if err != nil {
				t.Fatal(err)
			}
			if c.State.Dir != tc.want {
				t.Errorf("%q, want %q", c.State.Dir, tc.want)
			}
		})
	}
}

// TestStatePrefix takes what may begin a key.
func TestStatePrefix(t *testing.T) {
	for prefix, good := range map[string]bool{
		"headrace:": true, "eu-1.prod:": true, "x": true, `""`: false, `"a b"`: false, `"{a}:"`: false, `"*"`: false, `"ü"`: false, strings.Repeat("x", 65): false,
	} {
		c, err := Parse("headrace.yaml", []byte("state: {prefix: "+prefix+"}"), Overrides{}, func(string) (string, bool) { return "", false })
		if (err == nil) != good {
			t.Errorf("%s: %v", prefix, err)
		}
		if good && c.State.Prefix != prefix {
			t.Errorf("%s became %q", prefix, c.State.Prefix)
		}
		if !good && !strings.Contains(err.Error(), "headrace.yaml:1:17: state.prefix") {
			t.Errorf("%s: %v", prefix, err)
		}
	}
	if c, err := Parse("", nil, Overrides{}, func(string) (string, bool) { return "", false }); err != nil || c.State.Prefix != "headrace:" {
		t.Errorf("without a file: %q, %v", c.State.Prefix, err)
	}
}
