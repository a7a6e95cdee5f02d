# Everything runs in a virtual environment of its own: `make test VENV=/somewhere/else` puts it elsewhere, and
# CONSTRAINTS=FILE limits versions.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# A process per core, each with one thread; tests that share an expensive fixture stay together.
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadgroup

.PHONY: setup lint check test build demo perf

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) -e ".[dev,lite0,perf,ultralytics,mmdet,transformers,recipes]"
	touch $@

lint: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

check: lint
	$(PYTEST) -m "not slow"

test: setup
	$(PYTEST)

build: setup
	$(BIN)/python -m build

demo: setup
	$(BIN)/python -m ghm_triton.detection.demo

perf: setup
	$(BIN)/python -m perf.sweep
