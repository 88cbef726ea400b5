package rig

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed nginx.conf
var nginxConf string

// NginxConf is the configuration that nginx is measured with.
func NginxConf(listen, upstream string) string {
	return strings.NewReplacer("listen LISTEN", "listen "+listen, "server UPSTREAM", "server "+upstream).Replace(nginxConf)
}

// ErrNoNginx says that nginx is not installed and how it is.
var ErrNoNginx = errors.New("nginx not found, without which there are no ratios: install it " +
	"(apt-get install nginx-light, apk add nginx, dnf install nginx) or name it with --nginx PATH")

// FindNginx looks for nginx where packages put it, also when that is not in a user's PATH.
func FindNginx() (string, error) {
	for _, name := range []string{"nginx", "/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/local/nginx/sbin/nginx"} {
		if path, err := exec.LookPath(name); err == nil {
			return filepath.Abs(path)
		}
	}
	return "", ErrNoNginx
}

// Nginx is nginx as a plain proxy.
func Nginx(path string) Program {
	return Program{Name: "nginx", Command: func(p Place) ([]string, error) {
		conf := filepath.Join(p.Dir, "nginx.conf")
		if err := os.WriteFile(conf, []byte(NginxConf(p.Listen, p.Upstream)), 0o644); err != nil {
			return nil, err
		}
		return []string{path, "-e", "stderr", "-p", p.Dir + "/", "-c", conf}, nil
	}}
}

// Headrace is the gateway with the mock as its only host, and its ledger in a directory of its own. accessLog has it log every request, into
// the file that takes its output.
func Headrace(name, path, model string, accessLog bool) Program {
	level := "warn"
	if accessLog {
		level = "info"
	}
	return Program{Name: name, Command: func(p Place) ([]string, error) {
		conf := fmt.Sprintf(`listen: %q
admin: "off"
providers:
  static:
    - {name: mock, base_url: "http://%s/v1", models: [%q], price: {usd_per_hour: 1}}
log: {level: %s, access: %t}
state: {dir: %q}
`, p.Listen, p.Upstream, model, level, accessLog, p.Dir)
		file := filepath.Join(p.Dir, "headrace.yaml")
		if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
			return nil, err
		}
		return []string{path, "serve", "--config", file}, nil
	}}
}

// Command is any program, given as NAME=COMMAND, with {listen}, {upstream} and {dir} in place of what
// it is told at its start. Words may be quoted with ' or "; no shell takes part.
func Command(s string) (Program, error) {
	name, line, ok := strings.Cut(s, "=")
	if !ok || name == "" || strings.ContainsAny(name, " /{") {
		return Program{}, fmt.Errorf("proxy command %q: want NAME=COMMAND", s)
	}
	words, err := split(line)
	if err != nil {
		return Program{}, fmt.Errorf("proxy command %s: %w", name, err)
	}
	if !strings.Contains(line, "{listen}") {
		return Program{}, fmt.Errorf("proxy command %s: {listen} is missing", name)
	}
	if words[0], err = exec.LookPath(words[0]); err != nil {
		return Program{}, fmt.Errorf("proxy command %s: %w", name, err)
	}
	if words[0], err = filepath.Abs(words[0]); err != nil {
		return Program{}, fmt.Errorf("proxy command %s: %w", name, err)
	}
	return Program{Name: name, Command: func(p Place) ([]string, error) {
		fill := strings.NewReplacer("{listen}", p.Listen, "{upstream}", p.Upstream, "{dir}", p.Dir)
		args := make([]string, len(words))
		for i, w := range words {
			args[i] = fill.Replace(w)
		}
		return args, nil
	}}, nil
}

// split cuts a command line into words.
func split(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	inWord := false
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, inWord = r, true
		case r == ' ' || r == '\t' || r == '\n':
			if inWord {
				words = append(words, word.String())
				word.Reset()
			}
			inWord = false
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("no closing %c", quote)
	}
	if inWord {
		words = append(words, word.String())
	}
	if len(words) == 0 || words[0] == "" {
		return nil, errors.New("empty")
	}
	return words, nil
}
