# All that a developer runs. `make help` lists it. Continuous integration runs .ci/run, which is
# `make check` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MODEL ?= tiny
HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=
# Test files at a time: much of a test's time is waiting for processes.
JOBS ?= 2
# The release whose numbers the tests and benchmarks were taken with; newer ones are allowed.
TORCH ?= 2.13.0

.PHONY: help setup run test test-all check format docs bench bench-engine bench-gpu lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

setup: $(STAMP)  ## create .venv and install the package with its development tools

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "error: Python 3.11 to 3.13 is needed: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "error: cannot create a virtual environment (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

run: setup  ## serve MODEL (tiny) on HOST:PORT (127.0.0.1:8000); more flags in ARGS
	$(BIN)/gpt-oss-server serve --model $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

test: setup  ## the tests, without the slow ones
	$(BIN)/pytest -m 'not slow' -n $(JOBS) --dist loadfile $(ARGS)

test-all: setup  ## all tests
	$(BIN)/pytest -n $(JOBS) --dist loadfile $(ARGS)

check: setup  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## fix formatting and what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## write the generated pages of docs/ and deploy/grafana/
	$(BIN)/python -m gpt_oss_server.config_doc > docs/configuration.md
	$(BIN)/python -m gpt_oss_server.metrics_doc > docs/metrics.md
	$(BIN)/python -m tools.dashboards
	$(BIN)/python -m tools.api_table > docs/api.md

bench: bench-engine  ## every benchmark

bench-engine: setup  ## our engine against transformers; writes benchmarks/results/
	$(BIN)/python benchmarks/engine.py $(ARGS)

bench-gpu:  ## the table of docs/performance.md on one GPU; flags in ARGS
	@if test -x $(BIN)/python; then exec $(BIN)/python benchmarks/gpu/run.py $(ARGS); \
	elif $(PYTHON) -c 'import torch, transformers, triton' 2>/dev/null; \
	then exec $(PYTHON) benchmarks/gpu/run.py $(ARGS); \
	else $(MAKE) setup && exec $(BIN)/python benchmarks/gpu/run.py $(ARGS); fi

lock:  ## write constraints.txt anew from the latest releases that pyproject.toml allows
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check 'torch==$(TORCH)' -e '.[dev]'
	build/lock/bin/pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' | \
	  { echo '# Written by `make lock`: the versions that are tested together.'; \
	    grep -E '^[A-Za-z0-9_.-]+==' | grep -vE '^(nvidia-[^m]|triton|cuda-|pip==|setuptools==|wheel==)'; } \
	  > build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/lock

clean:  ## remove .venv and everything generated
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
