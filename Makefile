# Every target first lets scripts/setup install what is missing (quick when nothing is).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO_HOME ?= $(HOME)/.cargo
export PATH := $(CARGO_HOME)/bin:$(PATH)

# Programs that several tests, the demo and the benchmark run: the ones that ship. What ships is built in two steps, or the short-lived
# ones would carry what the node agent asks of libraries that both use.
SHORT_LIVED := -p istio-cni -p istio-iptables -p cnictl
AGENT := -p install-cni
target_dir = $$(realpath -m "$${CARGO_TARGET_DIR:-target}")/$$(rustc --print host-tuple)
e2e_dir = $(target_dir)/e2e
release_dir = $(target_dir)/release
# All at once, tests too: what a part of them asks of a library would have it built a second time.
e2e_build = cargo build --profile e2e --workspace --lib --bins --tests
e2e_test = ISTIO_CNI_BIN_DIR="$(e2e_dir)" cargo test --profile e2e --workspace --no-fail-fast

.PHONY: help setup build demo test lint bench conformance soak audit chart manifests reference sbom image

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what the other targets need
	@scripts/setup

build: ## the programs as they ship: static, optimized
	@scripts/setup build
	cargo build --release $(SHORT_LIVED)
	cargo build --release $(AGENT)
	@ls -l "$(release_dir)"/{istio-cni,istio-iptables,cnictl,install-cni}

demo: ## a private node, pods, real connections: what is captured and what is not (as root)
	@scripts/demo $(if $(ONLY),--only $(ONLY)) $(if $(BACKEND),--backend $(BACKEND))

test: setup ## all tests but those of `make conformance` (as root)
	$(e2e_build)
	$(e2e_test)
	ISTIO_CNI_BIN_DIR="$(e2e_dir)" "$(e2e_dir)/demo"

# The tests that are ignored in `make test`: what they compare with is not part of the repository. The browser that one of them needs is not installed:
# CONTRIBUTING.md says how it is run.
conformance: setup ## what is compared with the reference data, in both backends (as root)
	$(e2e_build)
	$(e2e_test) --lib --bins --tests -- --ignored --skip in_a_browser

soak: setup ## long runs, an hour for each part: SOAK_MINUTES=…, PART=fuzz
	scripts/soak $(PART)

bench: setup build ## times, memory and sizes, against their targets (as root)
	@# The whole package: the program that does nothing is part of it.
	cargo build --release -p bench
	ISTIO_CNI_BIN_DIR="$(release_dir)" cargo run --quiet --release -p bench

lint: setup ## format, clippy, licences, bans, shell scripts
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	.cache/bin/cargo-deny --log-level warn check licenses bans sources
	shellcheck -x scripts/setup scripts/soak scripts/stage scripts/demo scripts/build-image scripts/render-manifests .ci/run
	.cache/bin/helm lint --quiet --strict deploy/charts/istio-cni

audit: setup ## known security advisories (downloads the advisory database)
	.cache/bin/cargo-deny check advisories

chart: setup ## the chart: lint, and its tests
	.cache/bin/helm lint --strict deploy/charts/istio-cni
	cargo test -p chart

manifests: setup ## deploy/manifests, rendered from the chart
	scripts/render-manifests

reference: setup ## docs/cnictl.md from the help of cnictl, and what its commands print in README.md and docs/
	UPDATE_DOCUMENTS=1 cargo test --quiet -p cnictl --test cli documents

sbom: setup ## what the programs that ship are made of, as CycloneDX: target/sbom.cdx.json
	@mkdir -p target
	cargo run --quiet -p sbom >target/sbom.cdx.json
	@ls -l target/sbom.cdx.json

image: setup build sbom ## the node agent's image: target/install-cni.tar
	scripts/build-image "$(release_dir)" target/sbom.cdx.json target/install-cni.tar
