# SPDX-License-Identifier: Apache-2.0

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME ?= 180

# Tools are built from a module of their own, at the versions of tools/go.mod.
TOOL := go tool -modfile=tools/go.mod

.PHONY: build
build: ## build bin/netfenced and bin/netfence-control; needs only Go
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/...

.PHONY: demo
demo: build ## play the story in namespaces of its own (root)
	go build -o bin/demo ./demo
	bin/demo bin/netfenced

.PHONY: test
test: ## all tests, with the race detector (root)
	go test -race -count=1 -timeout=40m -json ./... | go -C tools run ./testlog ../test/skips.txt

.PHONY: test-clsact
test-clsact: ## the tests of interfaces, held by clsact as before Linux 6.6 (root)
	NETFENCE_INTERFACE_HOOK=clsact go test -count=1 -timeout=20m -json -skip='^TestRun|Cgroup|Crash|Upgrade|Limit|Recycle' \
		./internal/datapath ./internal/intercept ./test/e2e ./test/controlplane | go -C tools run ./testlog ../test/skips.txt

.PHONY: test-vm
test-vm: ## Debian 12's kernel, and a microVM as the workload, in qemu without KVM (root)
	scripts/vm-kernel bin/vm-kernel
	NETFENCE_VM_KERNEL=$(CURDIR)/bin/vm-kernel go test -count=1 -timeout=60m -parallel=2 -tags=vm -v ./test/vm

.PHONY: soak
soak: ## the same tests with bigger numbers (root, hours)
	NETFENCE_SOAK=1 go test -count=1 -timeout=6h -json ./... | go -C tools run ./testlog ../test/skips.txt

.PHONY: bench
bench: ## all benchmarks, and one table of what is aimed at (root, 10 min)
	go run ./bench

.PHONY: bench-dns
bench-dns: ## names, beside unbound, dnsdist and CoreDNS where they are installed (root, 20 min)
	go run ./bench -dns

.PHONY: bench-control
bench-control: ## those of the control plane (root, 5 min)
	go run ./bench -run '^Control plane'

.PHONY: fuzz
fuzz: ## every fuzz target, FUZZTIME seconds for all together (180) and what building takes
	scripts/fuzz $(FUZZTIME)

.PHONY: generate
generate: ## regenerate Go from api/ and bpf/; needs clang-14 and llvm-14
	$(TOOL) buf generate
	go generate ./...

.PHONY: baseline
baseline: ## take the protocol as it is for what buf breaking compares with
	$(TOOL) buf build --exclude-source-info -o api/baseline.binpb

.PHONY: fmt
fmt: ## format Go, C and protocol files
	gofmt -w $$(git ls-files -co --exclude-standard '*.go')
	clang-format-14 -i bpf/*.c bpf/*.h
	$(TOOL) buf format -w

.PHONY: check
check: check-format check-go check-api check-shell check-generated ## all that CI checks beside the tests

.PHONY: check-format
check-format:
	test -z "$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go') | tee /dev/stderr)"
	clang-format-14 --dry-run -Werror bpf/*.c bpf/*.h
	$(TOOL) buf format -d --exit-code

.PHONY: check-go
check-go:
	go mod tidy -diff
	go vet ./...
	go vet -tags=vm ./test/vm/...
	go -C tools vet ./...
	go -C tools test ./...
	$(TOOL) golangci-lint run ./...
	$(TOOL) golangci-lint run --build-tags=vm ./test/vm/...

.PHONY: check-api
check-api:
	$(TOOL) buf lint
	$(TOOL) buf breaking --against api/baseline.binpb

.PHONY: check-shell
check-shell:
	git grep -lIE '^#!.*[/ ](ba)?sh$$' | xargs shellcheck

.PHONY: check-generated
check-generated:
	scripts/check-generated

.PHONY: clean
clean: ## remove what was built
	rm -rf bin

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
