# Everything a developer or a CI needs; `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

TOOL    := go tool -modfile=tools/go.mod
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
REVISION := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
# The linker says what the toolchain would ask git for, which refuses to answer
# in a checkout of another user.
BUILDFLAGS := -buildvcs=false
LDFLAGS := -X main.version=$(VERSION) -X main.revision=$(REVISION)

# Where concurrency is the point, tests run under the race detector.
RACED := ^github.com/trestle-bridge/trestle/(pipeline|coordinator|internal/(bubbletest|upstream|store|publish|app))(/|$$)

FUZZTIME ?= 10s
TEST_TIMEOUT ?= 8m

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the binaries into bin/
	go build $(BUILDFLAGS) -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

.PHONY: demo
demo: ## Show it working: simulated clusters, Postgres, Redis, and a check of every row
	scripts/setup.sh --redis-optional
	go build $(BUILDFLAGS) -ldflags '$(LDFLAGS)' -o bin/trestle ./cmd/trestle
	bin/trestle dev --demo

.PHONY: test
test: ## Vet and test everything, the concurrent parts under the race detector
	scripts/setup.sh --browser
	go vet ./...
	@.ci/test '$(RACED)' '$(TEST_TIMEOUT)'
	$(MAKE) --no-print-directory chart

.PHONY: chart
chart: ## Check the Helm chart, its alerts and its dashboard (a module of its own)
	cd charts/check && go vet ./... && go test -vet=off -timeout '$(TEST_TIMEOUT)' ./...
	cd charts/alerts && go vet ./... && go test -vet=off -timeout '$(TEST_TIMEOUT)' ./...

.PHONY: race
race: ## Test everything under the race detector
	scripts/setup.sh --browser
	@.ci/test '' 30m

.PHONY: lint
lint: ## Check format, vet and staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go' | while read -r f; do [ -e "$$f" ] && echo "$$f"; done)); \
	if [ -n "$$unformatted" ]; then printf 'not formatted by gofmt:\n%s\n' "$$unformatted" >&2; exit 1; fi
	go vet ./...
	$(TOOL) staticcheck ./...

GOVULNDB ?= https://vuln.go.dev
.PHONY: vuln
vuln: ## Check that no known vulnerability is called (asks GOVULNDB, default https://vuln.go.dev)
	$(TOOL) govulncheck -db '$(GOVULNDB)' -test ./...
	cd charts/check && go tool -modfile=../../tools/go.mod govulncheck -db '$(GOVULNDB)' -test ./...
	cd charts/alerts && go tool -modfile=../../tools/go.mod govulncheck -db '$(GOVULNDB)' -test ./...

.PHONY: generate
generate: ## Generate the code of the contracts in proto/, and docs/cli.md
	$(TOOL) buf generate
	gofmt -w proto
	go test -count=1 -run '^TestDocs$$' ./cmd/trestlectl -update

.PHONY: verify
verify: generate ## Prove that generated code and go.mod are what is checked in
	$(TOOL) buf lint
	@if [ -n "$$(git status --porcelain -- proto docs/cli.md)" ]; then \
		git --no-pager diff -- proto docs/cli.md; git status --short -- proto docs/cli.md >&2; \
		echo 'proto/ or docs/cli.md is not what is checked in: run make generate and commit' >&2; exit 1; \
	fi
	go mod tidy -diff
	go mod verify

.PHONY: bench
bench: build ## Measure against the raw limits of this machine (BENCHFLAGS, as in --quick --only=P1,P3)
	scripts/setup.sh
	bin/loadtest bench $(BENCHFLAGS)

.PHONY: e2e
e2e: build ## Play all scenarios against fleets of real processes: crashes, outages, upgrades (about 15 minutes)
	scripts/setup.sh
	bin/loadtest run --all $(E2EFLAGS)

# What it needs stands in charts/e2e/doc.go. KUBERNETES_WRAP is a command that
# begins the test where the cluster's network is.
KUBERNETES_WRAP ?=
.PHONY: e2e-kubernetes
e2e-kubernetes: ## Install, upgrade and break the chart under load on the Kubernetes of KUBECONFIG
	go test -c -o bin/e2e-kubernetes.test ./charts/e2e
	cd charts/e2e && $(KUBERNETES_WRAP) $(CURDIR)/bin/e2e-kubernetes.test -test.v -test.count=1 -test.timeout 40m

DURATION ?= 10m
.PHONY: soak
soak: build ## Play scenarios drawn from SEED for DURATION (default 10m), each against a fleet
	scripts/setup.sh
	bin/loadtest soak --duration=$(DURATION) $(if $(SEED),--seed=$(SEED)) $(SOAKFLAGS)

.PHONY: soak-control
soak-control: ## Simulate random histories of the control plane for DURATION (default 10m)
	go test -v -count=1 -timeout 0 -run '^TestSoak$$' ./coordinator -soak=$(DURATION)

.PHONY: fuzz
fuzz: ## Fuzz every target for FUZZTIME (default 10s)
	@go list ./... | while read -r p; do \
		{ go test -list '^Fuzz' "$$p" | grep '^Fuzz' || true; } | while read -r f; do \
			echo "fuzz $$p $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) "$$p" </dev/null; \
		done; \
	done

IMAGE ?= trestle:$(VERSION)
# docker, or another builder that takes its arguments, such as podman or buildah.
DOCKER ?= docker
CA_BUNDLE ?= /etc/ssl/certs/ca-certificates.crt

.PHONY: image
image: ## Build the image IMAGE (default trestle:VERSION) with DOCKER (default docker)
	rm -rf bin/image && mkdir -p bin/image
	CGO_ENABLED=0 go build $(BUILDFLAGS) -trimpath -ldflags '-s -w $(LDFLAGS)' -o bin/image/ ./cmd/...
	mv bin/image/loadtest bin/image/trestle-loadtest
	cp $(CA_BUNDLE) bin/image/ca-certificates.crt
	$(DOCKER) build -f Dockerfile -t $(IMAGE) bin/image

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin
	go clean -testcache
