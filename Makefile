# Everything here sets up what it needs by itself, in .venv; only Python 3.11 or newer and make must be there.
PYTHON ?= python3
# CONSTRAINTS=/dev/null takes the newest versions of everything instead of those that the tests ran with.
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin

.PHONY: help venv demo test tests lint types unit manual release clean

help:
	@echo "make demo      teach a small real model three tasks in three ways (10 to 20 minutes on 2 cores)"
	@echo "make test      style, types and all tests"
	@echo "make unit      only the fast tests"
	@echo "make manual    the manual, into site/"
	@echo "make release   build what could go out today, and try it out in an empty environment"
	@echo "make venv      only the set-up"

venv: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "nlora needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint $(CONSTRAINTS) --editable '.[test]'
	@$(BIN)/python -m compileall -qq -j 0 -x /tests/ .venv/lib || true  # pip would use one core; some packages have broken files
	@touch $@

demo: venv
	$(BIN)/nlora demo

# One thread for each of the processes that share the tests: with more, they would starve one another. They start many
# others, which need not compile nlora, even where PYTHONDONTWRITEBYTECODE is set. Files are started in the order of
# tests/conftest.py: the long ones first.
TESTS := $(BIN)/python -m compileall -q src && OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# mypy takes one core for most of a minute, so the tests begin beside it.
test: lint venv
	@$(MAKE) --no-print-directory --jobs 2 types tests

tests: venv
	$(TESTS)

unit: venv
	$(TESTS) -m "not slow"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: venv
	$(BIN)/mypy

manual: venv
	$(BIN)/mkdocs build --strict

release: venv
	$(BIN)/python tools/release.py $(if $(TAG),--tag $(TAG))

clean:
	rm -rf .venv build dist site
