# Everything a developer or CI runs. `make help` lists it. Needs Go and bash; lint, the race detector and the
# SDK tests bring or name what else they need. Tools and SDKs go to $(CACHE), outside the tree.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO       ?= go
PKG      ?= ./...
FUZZTIME ?= 5s
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
export HEADRACE_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/headrace

LINT_VERSION := v2.14.0
LINT := $(HEADRACE_CACHE)/bin/golangci-lint-$(LINT_VERSION)-$(shell $(GO) env GOVERSION)
LDFLAGS := -s -w -X main.version=$(VERSION)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## build bin/headrace, bin/fakecloud and bin/loadgen
	CGO_ENABLED=0 $(GO) build -trimpath -tags grpcnotrace -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

.PHONY: test
test: sdks services ## run all tests; those of a client whose language, or of a server that, is not installed are skipped and say so
	$(GO) test -p 3 -parallel 6 -shuffle=on $(GOTESTFLAGS) $(PKG)

# Under the race detector each process would sleep for a second at its end. make test has vetted the code.
.PHONY: race
race: services ## run all tests but other languages' clients and the long reckoning of made-up experiments under the race detector (needs a C compiler)
	GORACE=atexit_sleep_ms=50 CGO_ENABLED=1 $(GO) test -p 3 -parallel 6 -vet=off -race -shuffle=on $(GOTESTFLAGS) $(if $(filter ./...,$(PKG)),$$($(GO) list ./... | grep -v -e /e2e$$ -e /trial$$),$(PKG))

.PHONY: e2e
e2e: sdks ## run the OpenAI SDKs against a gateway and the vendors' clients against the fake clouds; needs Node and Python
	HEADRACE_E2E_REQUIRE=node,python $(GO) test -count=1 -v ./cmd/headrace/e2e

.PHONY: sdks
sdks:
	@cmd/headrace/e2e/install

.PHONY: services
services:
	@.ci/services redis-server=redis-server promtool=prometheus

.PHONY: collector
collector: ## build an OpenTelemetry Collector into the cache, for the test that sends to a real one; some minutes once
	@.ci/collector

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (5s)
	@FUZZTIME=$(FUZZTIME) .ci/fuzz $(PKG)

.PHONY: lint
lint: $(LINT) ## run golangci-lint, pinned
	$(LINT) run $(PKG)

.PHONY: fmt
fmt: $(LINT) ## format the tree
	$(LINT) fmt

$(LINT):
	@echo "building golangci-lint $(LINT_VERSION) into $(@D), about two minutes once"
	@mkdir -p $(@D)
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	GOFLAGS= CGO_ENABLED=0 GOBIN="$$tmp" $(GO) install -trimpath -ldflags '-s -w' \
		github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION); \
	mv "$$tmp/golangci-lint" $@

.PHONY: bench
bench: build ## measure headrace against nginx (docs/benchmarks.md)
	bin/loadgen compare --headrace bin/headrace $(BENCHFLAGS)

.PHONY: bench-smoke
bench-smoke: build ## run every benchmark once, and the comparison for half a minute
	$(GO) test -vet=off -short -run '^$$' -bench . -benchtime 1x $(if $(filter ./...,$(PKG)),$$(grep -rl --include='*_test.go' '^func Benchmark' cmd gateway providers router telemetry | xargs -n 1 dirname | sort -u | sed 's|^|./|'),$(PKG))
	bin/loadgen compare --headrace bin/headrace --quick $(BENCHFLAGS)

.PHONY: sim
sim: build ## hold the router to its targets in the simulator, short form (docs/simulator.md)
	bin/headrace simulate --suite short $(SIMFLAGS)

.PHONY: chaos
chaos: ## take hosts away under load and check every token, short form; CHAOSFLAGS="--for 10m" (docs/chaos.md)
	CGO_ENABLED=0 $(GO) build -trimpath -tags toxiproxy,grpcnotrace -ldflags '$(LDFLAGS)' -o bin/headrace-chaos ./cmd/headrace
	bin/headrace-chaos chaos --scenario preempt --for 20s --streams 60 --kill-every 4s --down 4s --speed 2 $(CHAOSFLAGS)
	bin/headrace-chaos chaos --scenario all --for 20s --streams 40 --kill-every 1500ms --down 5s --speed 2 $(CHAOSFLAGS)

.PHONY: deploy-check
deploy-check: ## check chart, Compose files and configs with their owners' own code; OTELCOL=… for the collector's (docs/deploy.md)
	cd deploy/check && $(GO) test -count=1 ./...

.PHONY: image-check
image-check: ## build the image and see it work; needs Docker, BASES=local where there is no registry (docs/deploy.md)
	deploy/check/image

.PHONY: tidy
tidy: ## check that go.mod and go.sum say what the code needs
	$(GO) mod tidy -diff
	$(GO) mod verify

.PHONY: ci
ci: ## what CI runs
	.ci/run

.PHONY: clean
clean: ## remove what was built in the tree
	rm -rf bin
