# Two commands do everything: `make demo` and `make test`. Each says what it installs before it
# does, asks nothing, and does nothing twice.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON := .venv/bin/python
CALLBOARD := target/debug/callboard

.PHONY: help setup build demo test test-rust test-python lint acceptance clean-demo

help: ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

setup: ## Make the project's Python environment (ipykernel, nats-server, …) in .venv
	@scripts/setup

build: setup ## Build the callboard binary
	@cargo build --locked --quiet --bin callboard

demo: build ## Lose machines under a running notebook session and show that nothing is lost
	@$(CALLBOARD) demo

test: setup lint test-rust test-python ## Everything a change must pass

lint: ## Formatting and lints
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked --quiet -- -D warnings

test-rust: setup ## Rust tests
	@cargo build --locked --quiet --bin callboard
	@cargo test --workspace --locked --quiet

test-python: setup ## Tests of the Python package inside a kernel
	@$(PYTHON) -m pytest -q actors/kernel/python/tests

acceptance: setup ## The long lines: model, crash seeds, chaos, speed
	@scripts/acceptance
