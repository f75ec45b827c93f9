# `make demo` and `make test` are all that a fresh machine needs (git, make, python3 >= 3.11).
# Everything lives in .venv; nothing is installed outside the checkout.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
SOURCES := collectors dashboard loadgen reference_server scenarios sla streamgauge
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format bench fuzz soak demo-vllm simulator-evidence gpu-check lock clean

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | sort | expand -t 20

$(RUNTIME): requirements/runtime.lock pyproject.toml hatch_build.py loadgen/_fastlane.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "streamgauge needs Python 3.11 or newer; set PYTHON=")'
	@echo "Setting up $(VENV) (about a minute, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -r requirements/runtime.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): $(RUNTIME) requirements/dev.lock
	@$(PIP) -r requirements/dev.lock
	@touch $@

setup: $(DEV)  ## Make .venv with everything the other targets need.

demo: $(RUNTIME)  ## Run the main job end to end: simulator, load, report, verdict.
	@$(BIN)/streamgauge demo

test: $(DEV)  ## Pass the tests (at most five minutes).
	@$(BIN)/python -m pytest -m "not slow and not vllm"

test-slow: $(DEV)  ## Pass the slower tests, real vLLM among them where it is set up.
	@$(BIN)/python -m pytest -m "slow or vllm"

check: $(DEV)  ## Lint, format, types, import graph.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_import_graph.py

format: $(DEV)  ## Put the code into shape.
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

bench: $(RUNTIME)  ## Measure this machine: error of the client against the truth, CPU per token: TABLES=stalls.
	@$(BIN)/python -m bench $(TABLES)

fuzz: $(DEV)  ## Fuzz decoder, replies and HTTP readers: SECONDS=600 SEED=1.
	@$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),600) --seed $(or $(SEED),1)

soak: $(RUNTIME)  ## Load an endpoint that fails in every way, and check every record: MINUTES=30.
	@$(BIN)/python -m bench.soak --minutes $(or $(MINUTES),30) --seed $(or $(SEED),1)

demo-vllm: $(RUNTIME)  ## The main job against real vLLM on this CPU, in .venv-vllm.
	@$(BIN)/python -m reference_server.vllm_env .venv-vllm
	@$(BIN)/python -m bench.demo_vllm

simulator-evidence: $(RUNTIME)  ## The simulator beside real vLLM on this CPU, into docs/simulator.md (15 minutes): OPTIONS=...
	@$(BIN)/python -m reference_server.vllm_env .venv-vllm
	@$(BIN)/python -m bench.vllm_sweep --write-doc $(OPTIONS)

gpu-check: $(if $(WHEELS),,$(RUNTIME))  ## On a machine with an NVIDIA GPU: read, serve, load, fit, write docs/gpu.md: WHEELS=folder OPTIONS=...
	@$(if $(WHEELS),$(PYTHON),$(BIN)/python) -m bench.gpu_check $(if $(WHEELS),--wheels $(WHEELS)) $(OPTIONS)

lock: $(DEV)  ## Write the locks anew (needs uv on PATH; any index it is set up for).
	uv pip compile pyproject.toml requirements/build.in --extra dashboard --extra http2 --extra server --extra postgres \
	  --python-version 3.11 --universal --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet \
	  --output-file requirements/runtime.lock
	uv pip compile pyproject.toml requirements/build.in --extra dashboard --extra http2 --extra server --extra postgres \
	  --extra tokenizer --group dev \
	  --constraint requirements/runtime.lock \
	  --python-version 3.11 --universal --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet \
	  --output-file requirements/dev.lock

clean:  ## Remove what the other targets made.
	rm -rf $(VENV) .venv-vllm .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
