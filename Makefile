# Every target does its own set-up: a fresh machine needs Python 3.11 or later and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check slow clean help

help:
	@echo "make demo    the main job: four engines, eight clients, three cycles"
	@echo "make test    the tests"
	@echo "make check   ruff, mypy --strict, generated docs up to date"
	@echo "make slow    the long lanes"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,dev]'
	@touch $@

demo: $(READY)
	$(BIN)/lifecycle demo

test: $(READY)
	$(BIN)/python -m pytest -q -m "not slow"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lifecycle diagram --docs docs --check

slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
