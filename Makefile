# The commands of this repository. Everything uses the one profile (release), and every build names the whole
# workspace: cargo unifies features over what is built together, so `-p` of one crate would ask for other features of
# shared dependencies and compile RocksDB's C++ a second time.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Outside the tree, so that a fresh clone finds what an older one has built.
CARGO_TARGET_DIR ?= $(HOME)/.cache/carillon/target
export CARGO_TARGET_DIR

# RocksDB is compiled once and then comes out of the cache, also in another target directory. Every command that builds
# must say it, because cargo runs the C++ build again when CC or CXX changes. Evaluated when used: `setup` may have
# installed ccache a moment ago.
CACHED_CXX = if command -v ccache >/dev/null; then export CC="ccache cc" CXX="ccache c++"; fi

BIN := $(CARGO_TARGET_DIR)/release
CTL := $(BIN)/carillonctl
LOADTEST := $(BIN)/carillon-loadtest
LAB ?= lab
LANE_LIMIT ?= 600
PRACTICES := loadtest/data/practices.json
LAB_UP = $(CTL) lab up --dir $(LAB) --lane-limit $(LANE_LIMIT) --practices $(PRACTICES)

.PHONY: help setup build test fmt lint demo up down bench chaos sample sim-soak

help: ## show this
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: ## check and install what a build needs
	@if [ ! -x $(BIN)/carillon-node ]; then \
	  echo "The first build takes about half an hour on 2 cores because of RocksDB's C++; later ones take seconds."; fi
	@deploy/setup.sh

build: setup ## compile the programs
	@$(CACHED_CXX); cargo build --release --workspace --bins

# Integration tests start the programs, so they are built first.
test: build ## run all tests
	@$(CACHED_CXX); cargo test --release --workspace --no-fail-fast

# No C++ in it. One thread for each core; the exit code says whether a seed failed.
sim-soak: ## simulate clusters from fresh seeds for MINUTES=30
	@cargo sim -- --minutes $(or $(MINUTES),30) --threads $$(nproc)

fmt: ## format the sources
	cargo fmt --all

lint: setup ## formatting, clippy, dependencies, shell scripts
	cargo fmt --all --check
	@$(CACHED_CXX); cargo clippy --release --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny --offline check bans licenses sources; \
	  else echo "lint: cargo-deny is not installed, dependencies are not checked (cargo install cargo-deny)"; fi
	@if command -v shellcheck >/dev/null; then shellcheck deploy/setup.sh .ci/run; \
	  else echo "lint: shellcheck is not installed, scripts are not checked"; fi

# The lab goes down however the demo ends, and the demo's exit code is ours.
demo: build ## three nodes, two carriers, 10,000 messages, one node killed, and the proof
	@trap '$(CTL) lab down --dir $(LAB)' EXIT; trap 'exit 130' INT TERM; \
	  $(LAB_UP) --with-http-carrier; $(LOADTEST) demo --lab $(LAB) --ctl $(CTL)

up: build ## start a cluster on this machine and leave it running
	@$(LAB_UP)
	@echo
	@echo "Next:  $(CTL) status --lab $(LAB)"
	@echo "       $(LOADTEST) demo --lab $(LAB) --ctl $(CTL)"
	@echo "       $(LOADTEST) bench accept --lab $(LAB)"
	@echo "       make down"

down: ## stop it
	@$(CTL) lab down --dir $(LAB)

# A new lab of its own: neither old messages nor the limit of the lane must be what is measured.
BENCH_LAB := $(LAB)/bench
bench: build ## measure the promised figures
	@if [ -e $(BENCH_LAB)/plan.json ]; then $(CTL) lab down --dir $(BENCH_LAB); rm -rf $(BENCH_LAB); fi
	@trap '$(CTL) lab down --dir $(BENCH_LAB)' EXIT; trap 'exit 130' INT TERM; \
	  $(CTL) lab up --dir $(BENCH_LAB) --lane-limit 50000 --profile perfect --log-filter warn --practices $(PRACTICES); \
	  $(LOADTEST) bench numbers --lab $(BENCH_LAB)

# SEED= repeats a run. Needs root for namespaces and mounts; keeps data, histories and logs when a promise was not kept.
chaos: build ## kill, pause, cut, unplug and misdate nodes under load for MINUTES=10, then prove that nothing is lost or doubled
	@$(BIN)/chaos --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

sample: build ## show the bundled sample day
	@$(LOADTEST) sample-day
