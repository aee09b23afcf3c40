# `make` says what there is. Each target installs what it needs into .venv first.
VENV := .venv
PYTHON ?= python3
BIN := $(CURDIR)/$(VENV)/bin
INSTALLED := $(VENV)/.installed
export PATH := $(BIN):$(PATH)
# A variable of another environment must not leak into ours.
unexport PYTHONHOME
unexport VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help install repro test test-system methods lint ui paper clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

install: $(INSTALLED) ## create .venv with pinned versions

$(INSTALLED): pyproject.toml constraints.txt constraints-numeric.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bitrank needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[pipeline,cluster,dev]' --constraint constraints.txt --constraint constraints-numeric.txt
	touch $@

repro: $(INSTALLED) ## run the pipeline: fetch, prepare, quantize, train, measure, merge, evaluate, report
	dvc repro
	@bitrank summary

test: $(INSTALLED) lint ## lint, types, layers, and the tests that need no GPU and no other program
	pytest

test-system: $(INSTALLED) ## the tests that need programs that pip cannot install; names what is missing
	sh tests/system/check.sh

methods: $(INSTALLED) ## every adapter method on every precision on a tiny model; writes docs/methods.md
	PYTHONPATH=src HF_HUB_OFFLINE=1 python benchmarks/methods.py

lint: $(INSTALLED) ## ruff, mypy --strict, import-linter
	ruff check
	ruff format --check
	mypy
	lint-imports

ui: $(INSTALLED) ## the MLflow UI on this project's runs, on 127.0.0.1
	bitrank ui

paper: $(INSTALLED) ## rebuild the reports of the committed sweeps from their records; fails if a byte differs
	bitrank paper --check

clean: ## remove artifacts, caches and .venv; records, papers and dvc.lock stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .dvc/cache .dvc/tmp src/*.egg-info
	find data -mindepth 1 -maxdepth 1 ! -name results ! -name papers ! -name examples ! -name README.md -exec rm -rf {} +
