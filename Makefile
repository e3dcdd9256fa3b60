# SPDX-License-Identifier: MIT
# `make demo` and `make test` each set up all they need.

PYTHON := .venv/bin/python
SHELL_SCRIPTS = $(shell grep -rlE --exclude='*.md' --exclude='*.py' '^\#!.*[ /](ba)?sh$$' bin tsmfs/bin .ci tests Documentation)

.PHONY: help demo test lint bench man clean

help:
	@echo 'make demo   run the shell suite in a session on the default machine'
	@echo 'make test   run all tests, with a summary of the coverage'
	@echo 'make lint   ruff, mypy and shellcheck'
	@echo 'make bench  run the benchmarks'
	@echo 'make man    write the man pages anew from the texts of --help'
	@echo 'make clean  remove what the others made'

.venv/.ready-demo: pyproject.toml bin/setup
	@bin/setup demo

.venv/.ready-test: pyproject.toml bin/setup
	@bin/setup test

demo: .venv/.ready-demo
	@bin/demo

test: .venv/.ready-test
	@$(PYTHON) -m pytest -q --cov=tsmfs --cov=netlink --cov-report=term

lint: .venv/.ready-test
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy --strict tsmfs netlink tests Documentation/manpages.py \
	    Documentation/examples/vendor_tsm/vendor_tsm.py
	shellcheck $(SHELL_SCRIPTS)

bench: .venv/.ready-test
	@$(PYTHON) -m tests.bench

man: .venv/.ready-demo
	@$(PYTHON) Documentation/manpages.py Documentation/man

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
