# The commands of Hookwright. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO ?= cargo
# Everything is built as one workspace, so that each dependency is compiled once.
TARGET = $(shell $(CARGO) metadata --locked --no-deps --format-version 1 | sed -E 's/.*"target_directory":"([^"]*)".*/\1/')

# Of the generated cases in tests: the same in every run, so that a failure can be repeated. SEED=n explores others.
SEED ?= 20261125

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.PHONY: demo
demo: ## from kubectl apply to a signed delivery, on a real control plane (KEEP=1 leaves it running)
	@echo '==> building (the first time takes minutes)'
	@$(CARGO) build --locked --workspace --bins
	@HOOKWRIGHT_BIN="$(TARGET)/debug/hookwright" KEEP="$(KEEP)" "$(TARGET)/debug/demo"

.PHONY: build
build: ## the program as it is released: stripped, and without a path of this machine (TRIPLE=... for another target)
	@CARGO="$(CARGO)" TARGET_DIR="$(TARGET)" bash tests/release.sh $(TRIPLE)

.PHONY: test
test: fmt lint generated control-plane ## all tests, formatting, lints, and that generated files are current
	PROPTEST_RNG_SEED=$(SEED) $(CARGO) test --locked --workspace

.PHONY: fmt
fmt: ## formatting is as rustfmt wants it
	$(CARGO) fmt --all --check

.PHONY: lint
lint: ## no warning of clippy
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

.PHONY: control-plane
control-plane: ## build etcd, kube-apiserver, kube-controller-manager, kubectl and helm into the cache
	@bash tests/control-plane/build.sh >/dev/null

.PHONY: generate
generate: ## write the generated files: crds/ and the chart's copy of them
	@$(CARGO) build --locked --workspace --bins
	@bash tests/generated.sh write "$(TARGET)/debug/hookwright"

.PHONY: generated
generated: ## fail when a generated file is not current
	@$(CARGO) build --locked --workspace --bins
	@bash tests/generated.sh check "$(TARGET)/debug/hookwright"

.PHONY: bench
bench: control-plane ## load on the whole system beside its ceiling, in under 5 minutes once built (STRICT=1: fails when a goal is missed)
	$(CARGO) bench --locked --workspace --bench load

.PHONY: soak
soak: control-plane ## half load with kill -9 every 30 s, for MINUTES=n (5)
	SCENARIOS=soak MINUTES=$(or $(MINUTES),5) $(CARGO) bench --locked --workspace --bench load
