# Everything runs in a virtual environment of its own: `make test VENV=/somewhere/else` puts it elsewhere, and
# CONSTRAINTS=FILE limits versions.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: setup test demo perf

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) -e ".[test,detection,perf]"
	touch $@

test: setup
	$(BIN)/python -m pytest

demo: setup
	$(BIN)/python -m ghm_triton.detection.demo

perf: setup
	$(BIN)/python -m perf.sweep
