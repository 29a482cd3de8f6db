# The two commands for a new user are `make demo` and `make test`; each installs what it needs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

export SUCCESSOR_CACHE_DIR ?= $(CURDIR)/artifacts/cache

.PHONY: demo test test-docker fuzz check bench bench-peers clean
.DEFAULT_GOAL := demo

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	touch $@

demo: $(INSTALLED)  ## build, publish, serve and compare on real weights and texts
	$(BIN)/successor demo --folder artifacts/demo

test: $(INSTALLED)  ## every test, with coverage
	$(BIN)/python -m pytest --numprocesses 2 --cov --cov-report term

test-docker: $(INSTALLED)  ## the images and the compose file, built and run on a container engine
	$(BIN)/python -m pytest tests/docker --override-ini python_files='check_*.py' -p no:cacheprovider -r fE

check: $(INSTALLED)  ## formatting, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(INSTALLED)  ## ten thousand generated requests against the whole API
	API_CASES=10000 $(BIN)/python -m pytest tests/end_to_end/test_fuzzing.py

bench: $(INSTALLED)  ## the service against the engine alone, on this machine
	$(BIN)/python -m tests.benchmarks

bench-peers: $(INSTALLED)  ## the service against other serving systems, each in an environment of its own
	$(BIN)/python -m tests.benchmarks --only peers --json artifacts/benchmarks/peers.json

clean:  ## everything generated, the virtual environment included
	rm -rf $(VENV) artifacts build dist *.egg-info .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
