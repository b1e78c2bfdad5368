# Every target sets up .venv first (tools/setup.sh), which is quick once it is there.
#   make CONSTRAINTS=constraints-ci.txt test    with the versions CI uses
#   make PYTHON=python3.12 demo                 with a chosen interpreter (before .venv exists)
#   make JOBS=1 test                            with so many tests at a time (default: a core each)

PYTHON ?=
EXTRAS ?= test
CONSTRAINTS ?=
JOBS ?= logical
export PYTHON EXTRAS CONSTRAINTS

RUN := .venv/bin/python -m
OLDEST_NAPARI := $(shell sed -n 's/.*"napari>=\([0-9.]*\)".*/\1/p' pyproject.toml)

SLICER_PYTEST := TTTUNET_PYTHON=$(CURDIR)/.venv/bin/python QT_QPA_PLATFORM=offscreen \
	.venv-slicer/bin/python -m pytest tests/slicer_extension

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-oldest test-slicer test-slicer-fast lint typecheck format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: ## create .venv and install into it
	@bash tools/setup.sh

demo: setup ## segment the sample images with the shipped model, one of them in napari
	$(RUN) tttunet demo
	$(RUN) napari_tttunet.demo

# Tests of one file share a worker process, so they stay together.
test: setup ## run the fast tests
	$(RUN) pytest -n $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: setup ## run the slow tests
	$(RUN) pytest -m slow

test-oldest: setup ## run the tests of the plugin with the oldest napari, in .venv-oldest
	test -x .venv-oldest/bin/python || .venv/bin/python -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -q $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) \
		-e '.[test]' napari==$(OLDEST_NAPARI) PyQt6
	QT_API=pyqt6 PYTEST_QT_API=pyqt6 .venv-oldest/bin/python -m pytest tests/napari_tttunet

test-slicer: setup .venv-slicer ## run all tests of the Slicer extension, in .venv-slicer
	$(SLICER_PYTEST) -m "slow or not slow"

test-slicer-fast: setup .venv-slicer ## the same without those that take long
	$(SLICER_PYTEST)

.PHONY: .venv-slicer
.venv-slicer: setup
	test -x .venv-slicer/bin/python || .venv/bin/python -m venv .venv-slicer
	.venv-slicer/bin/python -m pip install -q "pip>=25.1"
	.venv-slicer/bin/python -m pip install -q $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) --group slicer-test
	.venv-slicer/bin/python -c "import slicer"

lint: setup ## check style and formatting
	$(RUN) ruff check .
	$(RUN) ruff format --check .

format: setup ## mend style and formatting
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

typecheck: setup ## check types
	$(RUN) mypy

clean: ## remove caches and build products, keep .venv
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
