# Needs Linux with python3 >= 3.11 (with venv) and make; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest
# Files go to one worker whole, so that a fixture of a file (a server, a data folder) is built once.
JOBS ?= 2
PARALLEL := -n $(JOBS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install warm lint format test test-slow test-kernels-plain test-kernels-bounds test-all demo bench bench-health bench-logs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 24

install: $(STAMP) ## make .venv with everything pinned by constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'meshpulse needs python3 >= 3.11 (or PYTHON=...)'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --retries 10 -c constraints.txt setuptools
	$(BIN)/python -m pip install -q --disable-pip-version-check --retries 10 --no-build-isolation -c constraints.txt -e '.[dev]'
	touch $@

warm: install ## compile the kernels into the cache
	$(BIN)/meshpulse warm

lint: install ## what the test run checks too: floors, style, types
	$(PYTEST) tests/house

format: install ## rewrite the source in house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: install ## everything but the slow lane (at most ~12 minutes on 2 cores)
	$(PYTEST) $(PARALLEL) -m 'not slow'

test-slow: install ## crash loops, power cuts, long properties
	$(PYTEST) -m slow

test-kernels-plain: install ## kernel tests with the compiler off: the Python source itself
	NUMBA_DISABLE_JIT=1 $(PYTEST) $(PARALLEL) -m kernel -W ignore::RuntimeWarning  # integers wrap on purpose

test-kernels-bounds: install ## kernel tests with bounds checks compiled in
	NUMBA_BOUNDSCHECK=1 $(PYTEST) $(PARALLEL) -m kernel

test-all: test test-kernels-plain test-kernels-bounds test-slow ## all lanes (at most ~25 minutes beyond `make test`)

demo: install ## real Envoys, an upstream that fails a little and is ejected; DURATION=90 ends it by itself
	@$(BIN)/meshpulse demo $(if $(DURATION),--duration $(DURATION))

bench: install ## measured figures beside the peers where they are installed
	$(BIN)/python -m benchmarks

bench-logs: install ## log pushes and searches: disk, CPU, latency (LINES=10000000 for the full figures)
	$(BIN)/python -m benchmarks.logs $(if $(LINES),--lines $(LINES))
	$(BIN)/python -m benchmarks.log_streams

bench-health: install ## every health decision of the acceptance table, simulated with known truth, and a live run with Envoys (QUICK=1: a tenth of the first)
	$(BIN)/python -m benchmarks.health $(if $(QUICK),--quick)

clean: ## remove caches and builds (not .venv)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
