# Every target says what it is for after ##; `make` alone lists them.
# One or two lines each: what is longer is a script in hack/.
.DEFAULT_GOAL := help
SHELL := bash
export CGO_ENABLED ?= 0
GO ?= go

include hack/kubernetes.mk

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/estiba
	@$(GO) build -o bin/estiba ./cmd/estiba

.PHONY: build-cuda
build-cuda: ## build bin/estiba-cuda, which uses GPUs where there are any
	@source <(hack/cuda/env.sh) && $(GO) build -tags cuda -o bin/estiba-cuda ./cmd/estiba

.PHONY: demo
demo: ## serve the bundled tiny model on this machine and ask it something
	@echo 'building bin/estiba; the first time fetches and compiles its modules, which takes minutes' >&2
	@$(GO) build -o bin/estiba ./cmd/estiba && $(GO) build -o bin/demo ./hack/demo && bin/demo # go run would fail at Ctrl-C

.PHONY: test
test: ## everything that needs only Go
	@hack/test.sh

.PHONY: test-cuda
test-cuda: ## what runs on GPUs, on emulated ones
	@hack/cuda/test.sh

.PHONY: test-gpu
test-gpu: ## what runs on GPUs, on this machine's first one (see hack/cuda/gpu.sh for another machine's)
	@hack/cuda/gpu.sh test

.PHONY: bench-gpu
bench-gpu: ## this machine's first GPU against what is aimed at: a table, and JSON in bin/gpu
	@hack/cuda/gpu.sh bench

.PHONY: test-arm64
test-arm64: ## build for arm64, and test what computes under qemu
	@hack/test-arm64.sh

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME (10s)
	@hack/fuzz.sh

.PHONY: soak
soak: ## keep a worker busy with everything at once for SOAK (5m)
	@ESTIBA_SOAK=$${SOAK:-5m} $(GO) test -count 1 -timeout 60m -run '^TestSoak$$' -v ./runtime/worker

.PHONY: bench
bench: ## benchmarks, as ratios within one run
	@hack/bench-gateway.sh && hack/bench-packing.sh && hack/bench-storm.sh && hack/bench-scale.sh

.PHONY: bench-peers
bench-peers: ## this machine's CPU, beside llama.cpp from Debian's packages (MODELS=, PARTS=, ROUNDS=)
	@hack/bench-peers.sh

.PHONY: fmt
fmt: ## format the sources
	@gofmt -w $$(git ls-files '*.go')

.PHONY: lint
lint: ## vet and staticcheck
	@hack/lint.sh

.PHONY: generate
generate: ## deepcopy, CRDs and what is copied from them
	@hack/generate.sh

.PHONY: kernels
kernels: ## compile kernels/cpu/c to Go assembly, kernels/cuda to images for GPUs
	@hack/kernels.sh && hack/cuda/kernels.sh

.PHONY: verify-kernels
verify-kernels: ## fail where kernels differ from what their sources give
	@hack/kernels.sh -verify && hack/cuda/kernels.sh -verify

.PHONY: verify
verify: ## fail where generated files, formatting or go.mod differ from what the sources give
	@hack/verify.sh

.PHONY: presubmit
presubmit: verify lint test ## what must be green before a push
