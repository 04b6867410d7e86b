# Two commands do everything: `make demo` and `make test`. Each says what it installs before it
# does, asks nothing, and does nothing twice.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON := .venv/bin/python
CARGO_TARGET_DIR ?= target
CALLBOARD := $(CARGO_TARGET_DIR)/debug/callboard

.PHONY: help tools setup build demo test lint test-rust test-python test-gateway lab test-lab fuzz acceptance

help: ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

tools:
	@scripts/check-tools

setup: tools ## Make the project's Python environment (ipykernel, nats-server, …) in .venv
	@scripts/setup

build: setup ## Build the callboard binary
	@scripts/build --bin callboard

demo: build ## Lose machines under a running notebook session and show that nothing is lost
	@$(CALLBOARD) demo

test: setup test-rust test-python test-gateway ## All tests

lint: tools ## Formatting and lints
	@cargo fmt --all --check
	@scripts/build --lint

test-rust: build ## Rust tests
	@scripts/build --tests
	@cargo test --workspace --locked --quiet

test-python: build ## Tests of the Python package inside a kernel, and of Jupyter programs
	@$(PYTHON) -m pytest -q actors/kernel/python/tests chaos/checker
	@$(PYTHON) -m pytest -q nodes/proxy/tests
	@CALLBOARD_TEST_ZYGOTE=1 $(PYTHON) -m pytest -q actors/kernel/python/tests

test-gateway: build ## Tests of the gateway: OpenAPI, Kernel Gateway's tests, bad input, the loss of one of two
	@scripts/setup --gateway
	@CALLBOARD=$(abspath $(CALLBOARD)) .venv-gateway/bin/python -m pytest -q nodes/gateway/conformance

fuzz: tools ## Fuzz every parser that reads what strangers send, each for FUZZ_SECONDS (600)
	@scripts/fuzz

lab: ## JupyterLab with Callboard's extension and package, in .venv-lab
	@scripts/build-lab

test-lab: build ## Tests of the front-ends: JupyterLab in a browser, clients, guides
	@scripts/test-lab

acceptance: setup ## The long lines: model, crash seeds, fsync trace, chaos, soak, speed (three hours)
	@scripts/acceptance
