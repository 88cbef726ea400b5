package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// module is the path of this module; the fixture uses the same, so that one table of rules serves both.
const module = "headrace"

// room is one line of ARCHITECTURE.md: packages of a kind and what they may import from this module.
// Patterns are paths below the module; "x/..." means x and all below it, the first room that matches counts.
type room struct {
	pattern string
	imports []string // of this module, besides the package's own internal/ folders
	tests   []string // further ones for its _test.go files
	pure    bool     // no I/O and no clock of its own
}

// rooms holds the import directions of the tree. A package that no line matches is an error.
var rooms = []room{
	{pattern: "cmd/...", imports: []string{"gateway/...", "providers/...", "router/...", "telemetry"}, tests: []string{"deploy/..."}},
	{pattern: "gateway/config", imports: []string{"gateway/dirwatch", "router/endpoint"}},
	{pattern: "gateway", imports: gatewayImports, tests: []string{"providers/fakecloud"}},
	{pattern: "gateway/...", imports: gatewayImports, tests: []string{"providers/fakecloud"}},
	{pattern: "router", imports: []string{"router/..."}, pure: true},
	{pattern: "router/endpoint", pure: true},
	{pattern: "router/outcome", imports: []string{"router/endpoint"}, pure: true},
	{pattern: "router/sim", imports: []string{"router", "router/..."}, pure: true},
	{pattern: "router/...", imports: []string{"router/*"}, pure: true},
	{pattern: "providers/api", imports: []string{"router/endpoint"}},
	{pattern: "providers/fakecloud/script", imports: []string{"providers/fakecloud/..."}},
	{pattern: "providers/fakecloud/...", imports: []string{"router/endpoint", "router/outcome", "providers/fakecloud"}, tests: []string{"providers/..."}},
	{pattern: "providers/...", imports: []string{"router/endpoint", "router/outcome", "providers/api"}, tests: []string{"providers/..."}},
	{pattern: "telemetry", imports: []string{"gateway/admission/queue", "gateway/ledger", "gateway/trace", "router", "router/endpoint", "router/outcome"}, tests: []string{"router/health"}},
	{pattern: "deploy/...", imports: []string{"deploy/...", "telemetry"}},
}

// gatewayImports leaves out the package gateway itself, which only cmd imports, and gateway/config, which only cmd reads.
var gatewayImports = []string{"gateway/*", "router/..."}

// reservation names the only packages that may import what pattern matches, whatever the rooms say.
// It holds for transitive imports too, so that nothing comes in through another module.
type reservation struct {
	pattern string   // full import path
	by      []string // patterns of packages of this module
	why     string
}

var reserved = []reservation{
	{module + "/gateway/config", []string{"cmd/..."}, "only cmd reads the config and hands each package its own Options"},
	{module + "/router/sim/...", []string{"cmd/...", "router/sim/..."}, "the simulator stays out of the gateway"},
	{"go.opentelemetry.io/otel/sdk/...", []string{"cmd/...", "telemetry"}, "the OpenTelemetry SDK belongs to telemetry and cmd"},
	{"go.opentelemetry.io/otel/exporters/...", []string{"cmd/...", "telemetry"}, "exporters belong to telemetry and cmd"},
	{"github.com/valyala/fasthttp/...", notRouter, "the router does no I/O"},
	{"github.com/redis/go-redis/...", notRouter, "the router does no I/O"},
}

var notRouter = []string{"cmd/...", "gateway/...", "providers/...", "telemetry"}

// ioPackages are what a pure package must not import itself; fmt and the like reach os in their own right.
var ioPackages = []string{"database/sql/...", "log", "net", "net/http/...", "net/rpc/...", "net/smtp", "os/...", "syscall"}

// clockFuncs read or wait for the wall clock.
var clockFuncs = []string{"After", "AfterFunc", "NewTicker", "NewTimer", "Now", "Since", "Sleep", "Tick", "Until"}

// vague names say nothing of what a package is for.
var vague = []string{"base", "common", "helper", "helpers", "lib", "misc", "shared", "util", "utils"}

// listed is what we read of go list's JSON.
type listed struct {
	ImportPath, Name, Dir string
	Standard              bool
	Imports               []string
	GoFiles, IgnoredGoFiles, CgoFiles,
	TestGoFiles, XTestGoFiles []string
}

// TestImportDirections holds the tree to the directions of ARCHITECTURE.md.
func TestImportDirections(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	for _, f := range findings(t, root) {
		t.Error(f)
	}
}

// TestImportDirectionsFindEachBreach runs the check over a small tree that breaks every rule once.
func TestImportDirectionsFindEachBreach(t *testing.T) {
	got := findings(t, filepath.Join("testdata", "arch"))
	want := []string{
		`gateway/admission/admission.go:5: import "headrace/gateway/config": only cmd reads the config and hands each package its own Options`,
		`gateway/admission/admission.go:7: import "headrace/providers": gateway/admission may import gateway/*, router/... of this module`,
		`gateway/forward/forward.go:4: import "go.opentelemetry.io/otel/sdk": the OpenTelemetry SDK belongs to telemetry and cmd`,
		`gateway/forward/forward.go:5: import "headrace/gateway": gateway/forward may import gateway/*, router/... of this module`,
		`gateway/gateway_test.go:6: import "headrace/providers/static": the tests of gateway may import gateway/*, router/..., providers/fakecloud of this module`,
		`gateway/util/util.go:2: package util: the name says nothing of what it is for`,
		`providers/providers.go:4: import "headrace/router": providers may import router/endpoint, router/outcome, providers/api of this module`,
		`providers/static/static.go:4: import "headrace/cmd/headrace/internal/x": internal package of cmd/headrace`,
		`providers/static/static.go:5: import "headrace/gateway": providers/static may import router/endpoint, router/outcome, providers/api of this module`,
		`router/cost/cost.go:6: import "net/http": router/cost does no I/O`,
		`router/cost/cost.go:5: import "headrace/router": router/cost may import router/* of this module`,
		`router/cost/cost_test.go:6: import "headrace/providers/fakecloud": the tests of router/cost may import router/* of this module`,
		`router/endpoint/endpoint.go:4: import "headrace/router/outcome": router/endpoint may import nothing of this module`,
		`router/health/health.go:4: import "example.com/middle" reaches "github.com/valyala/fasthttp": the router does no I/O`,
		`router/health/health.go:5: import "github.com/valyala/fasthttp": the router does no I/O`,
		`router/router.go:15: clock.Now: router is given its time`,
		`router/router.go:16: clock.Sleep: router is given its time`,
		`stray/stray.go:2: package stray: no line of rooms has it (arch_test.go, ARCHITECTURE.md)`,
	}
	for _, f := range got {
		if !slices.Contains(want, f) {
			t.Errorf("unexpected finding: %s", f)
		}
	}
	for _, f := range want {
		if !slices.Contains(got, f) {
			t.Errorf("breach not found: %s", f)
		}
	}
}

// findings lists every breach in the module at root as "file:line: what: why", sorted, paths relative to root.
func findings(t *testing.T, root string) []string {
	t.Helper()
	root, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	pkgs := list(t, root)
	c := checker{root: root, pkgs: pkgs, fset: token.NewFileSet()}
	for _, p := range pkgs {
		if p.ImportPath == module || strings.HasPrefix(p.ImportPath, module+"/") {
			c.checkPackage(t, p)
		}
	}
	slices.Sort(c.found)
	return slices.Compact(c.found)
}

// list runs go list over the module at root; packages that do not compile are listed all the same.
func list(t *testing.T, root string) map[string]*listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-deps",
		"-json=ImportPath,Name,Dir,Standard,Imports,GoFiles,IgnoredGoFiles,CgoFiles,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = root
	cmd.Env = append(cmd.Environ(), "GOWORK=off", "GOFLAGS=-mod=readonly")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list in %s: %v\n%s", root, err, stderr.Bytes())
	}
	pkgs := map[string]*listed{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(listed)
		err := dec.Decode(p)
		if errors.Is(err, io.EOF) {
			return pkgs
		}
		if err != nil {
			t.Fatalf("go list printed what is not JSON: %v", err)
		}
		pkgs[p.ImportPath] = p
	}
}

type checker struct {
	root  string
	pkgs  map[string]*listed
	fset  *token.FileSet
	found []string
}

// checkPackage parses the files of p, those of other platforms too, and holds each import to the rules.
func (c *checker) checkPackage(t *testing.T, p *listed) {
	t.Helper()
	rel := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
	at := slices.IndexFunc(rooms, func(r room) bool { return match(r.pattern, rel) })
	for i, names := range [][]string{p.GoFiles, p.IgnoredGoFiles, p.CgoFiles, p.TestGoFiles, p.XTestGoFiles} {
		isTest := i > 2
		for n, name := range names {
			f, err := parser.ParseFile(c.fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Errorf("%v", err)
				continue
			}
			if i == 0 && n == 0 && slices.Contains(vague, f.Name.Name) {
				c.add(f.Name, "package %s: the name says nothing of what it is for", f.Name.Name)
			}
			if at < 0 {
				c.add(f.Name, "package %s: no line of rooms has it (arch_test.go, ARCHITECTURE.md)", rel)
				continue
			}
			for _, imp := range f.Imports {
				c.checkImport(rooms[at], rel, imp, isTest)
			}
			if rooms[at].pure && !isTest {
				c.checkClock(rel, f)
			}
		}
	}
}

func (c *checker) checkImport(r room, rel string, imp *ast.ImportSpec, isTest bool) {
	path, err := strconv.Unquote(imp.Path.Value)
	if err != nil {
		panic("BUG: the parser let an import path through that is no string: " + imp.Path.Value)
	}
	what := "import " + imp.Path.Value
	if target, ours := strings.CutPrefix(path, module+"/"); ours && target != rel {
		owner, _, internal := strings.Cut(target, "/internal/")
		switch {
		case internal && !match(owner+"/...", rel):
			c.add(imp, "%s: internal package of %s", what, owner)
			return
		case internal:
			return
		}
		who, allowed := rel, r.imports
		if isTest {
			who, allowed = "the tests of "+rel, slices.Concat(r.imports, r.tests)
		}
		reservedPath := slices.ContainsFunc(reserved, func(x reservation) bool { return match(x.pattern, path) })
		if !reservedPath && !slices.ContainsFunc(allowed, func(a string) bool { return match(a, target) }) {
			names := strings.Join(allowed, ", ")
			if names == "" {
				names = "nothing"
			}
			c.add(imp, "%s: %s may import %s of this module", what, who, names)
		}
	}
	if r.pure && !isTest && slices.ContainsFunc(ioPackages, func(a string) bool { return match(a, path) }) {
		c.add(imp, "%s: %s does no I/O", what, rel)
	}
	for _, x := range reserved {
		if slices.ContainsFunc(x.by, func(a string) bool { return match(a, rel) }) {
			continue
		}
		if match(x.pattern, path) {
			c.add(imp, "%s: %s", what, x.why)
		} else if hit := c.reach(path, x.pattern, map[string]bool{}); hit != "" && !isTest {
			c.add(imp, "%s reaches %q: %s", what, hit, x.why)
		}
	}
}

// reach returns the first package matching pattern that path imports, directly or not. It does not go
// through this module's own packages: each of those is held to the rules by itself.
func (c *checker) reach(path, pattern string, seen map[string]bool) string {
	p := c.pkgs[path]
	if seen[path] || p == nil || p.Standard || path == module || strings.HasPrefix(path, module+"/") {
		return ""
	}
	seen[path] = true
	for _, next := range p.Imports {
		if match(pattern, next) {
			return next
		}
		if hit := c.reach(next, pattern, seen); hit != "" {
			return hit
		}
	}
	return ""
}

// checkClock finds uses of package time that read or wait for the wall clock, under whatever name it is imported.
func (c *checker) checkClock(rel string, f *ast.File) {
	names := map[string]bool{}
	for _, imp := range f.Imports {
		if imp.Path.Value != `"time"` {
			continue
		}
		switch {
		case imp.Name == nil:
			names["time"] = true
		case imp.Name.Name == ".":
			c.add(imp, "import . \"time\": hides which time %s reads", rel)
		default:
			names[imp.Name.Name] = true
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && names[x.Name] && slices.Contains(clockFuncs, sel.Sel.Name) {
			c.add(sel, "%s.%s: %s is given its time", x.Name, sel.Sel.Name, rel)
		}
		return true
	})
}

func (c *checker) add(n ast.Node, format string, args ...any) {
	pos := c.fset.Position(n.Pos())
	if rel, err := filepath.Rel(c.root, pos.Filename); err == nil {
		pos.Filename = filepath.ToSlash(rel)
	}
	c.found = append(c.found, fmt.Sprintf("%s:%d: ", pos.Filename, pos.Line)+fmt.Sprintf(format, args...))
}

// match tells whether path is what pattern names: itself, "x/*" what lies below x, "x/..." x and what lies below it.
func match(pattern, path string) bool {
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == base || strings.HasPrefix(path, base+"/")
	}
	if base, ok := strings.CutSuffix(pattern, "/*"); ok {
		return strings.HasPrefix(path, base+"/")
	}
	return pattern == path
}

func TestMatch(t *testing.T) {
	for _, tc := range []struct {
		pattern, path string
		want          bool
	}{
		{"gateway", "gateway", true},
		{"gateway", "gateway/sse", false},
		{"gateway/*", "gateway", false},
		{"gateway/*", "gateway/sse", true},
		{"gateway/...", "gateway", true},
		{"gateway/...", "gateway/state/redis", true},
		{"gateway/...", "gatewayish", false},
	} {
		if got := match(tc.pattern, tc.path); got != tc.want {
			t.Errorf("match(%q, %q) = %v, want %v", tc.pattern, tc.path, got, tc.want)
		}
	}
}
