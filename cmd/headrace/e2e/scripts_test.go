package e2e_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// script is a client in another language: a program that runs the checks and prints a line for each.
type script struct {
	name     string
	language string
	lock     string   // file that pins the packages; its sum and the name are those of the folder they are installed in
	command  []string // {dir} is that folder, {plan} the plan's file
}

// scripts run the OpenAI SDKs.
var scripts = []script{
	{"node", "node", "node/package-lock.json", []string{"node", "node/sdk.cjs", "{dir}/node_modules", "{plan}"}},
	{"python", "python", "python/requirements.txt", []string{"{dir}/bin/python", "-I", "python/sdk.py", "{plan}"}},
}

// languages are all those that there is an SDK for.
func languages() []string {
	all := []string{"go"}
	for _, s := range scripts {
		all = append(all, s.language)
	}
	return all
}

// line is what a script prints for each check.
type line struct {
	Check string
	OK    bool
	Error string
	Trace string
	MS    int // milliseconds
}

// installed returns the folder of s's packages. It skips the test when they are not there, and fails it when
// $HEADRACE_E2E_REQUIRE names the language.
func (s script) installed(t *testing.T) string {
	t.Helper()
	lock, err := os.ReadFile(s.lock)
	if err != nil {
		t.Fatal(err)
	}
	cache := os.Getenv("HEADRACE_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(user, "headrace")
	}
	sum := sha256.Sum256(lock)
	dir := filepath.Join(cache, "e2e", s.name+"-"+hex.EncodeToString(sum[:])[:12])
	if _, err := os.Stat(dir); err != nil {
		if slices.Contains(strings.Split(os.Getenv("HEADRACE_E2E_REQUIRE"), ","), s.language) {
			t.Fatalf("the client %s is required and not installed (make sdks): %v", s.name, err)
		}
		t.Skipf("the client %s is not installed; make sdks installs it where %s is: %v", s.name, s.language, err)
	}
	return dir
}

// run starts s with p, its plan, and makes a subtest of each check it prints, which must be names; after runs behind each
// line, while the script goes on. No key and no settings of whoever runs the tests reach the script.
func (s script) run(t *testing.T, p any, names []string, after func(t *testing.T, check string)) {
	dir := s.installed(t)
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	planFile := filepath.Join(t.TempDir(), "plan.json")
	if err := os.WriteFile(planFile, data, 0o600); err != nil {
		t.Fatal(err)
	}
	args := slices.Clone(s.command)
	for i := range args {
		args[i] = strings.NewReplacer("{dir}", dir, "{plan}", planFile).Replace(args[i])
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "OPENAI_API_KEY=", "OPENAI_BASE_URL=", "OPENAI_LOG=", "RUNPOD_API_KEY=", "RUNPOD_AI_API_KEY=", "VAST_API_KEY=",
		"PYTHONDONTWRITEBYTECODE=1", "NO_PROXY=127.0.0.1", "HOME="+filepath.Dir(planFile), "XDG_CONFIG_HOME=", "XDG_CACHE_HOME=",
		"XDG_STATE_HOME=", "VASTAI_NO_UPDATE_CHECK=1")
	stderr := new(logBuffer)
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen []string
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil || l.Check == "" {
			t.Errorf("%s printed what is no result: %q", s.name, lines.Text())
			continue
		}
		seen = append(seen, l.Check)
		t.Run(l.Check, func(t *testing.T) {
			if !l.OK {
				t.Errorf("%s (%d ms)\n%s", l.Error, l.MS, l.Trace)
			}
			after(t, l.Check)
		})
	}
	if err := lines.Err(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v", strings.Join(args, " "), err)
	}
	if stderr.String() != "" {
		t.Errorf("%s wrote to stderr:\n%s", s.name, stderr)
	}
	if !slices.Equal(seen, names) {
		t.Errorf("%s ran the checks %q, want %q", s.name, seen, names)
	}
}
