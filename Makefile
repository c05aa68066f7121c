# Everything installs into .venv, with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: run test test-full bench lint setup clean

run: setup  ## the whole life of a model, on real smartwatch data
	$(BIN)/fedge simulate $(ARGS)

test: lint  ## everything that has to pass
	$(PYTEST)

test-full: lint  ## the same, with the wide checks at their full width
	FEDGE_FULL=1 $(PYTEST) --durations=20

bench: setup  ## what the codecs and the traffic cost, measured here
	$(BIN)/fedge bench codec
	$(BIN)/fedge bench communication --seeds 1
	$(BIN)/fedge bench learning --seeds 1

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fedge needs Python 3.11 or newer: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
