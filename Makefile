# Every target works from a fresh clone: what it needs is installed into .venv first, once per pyproject.toml.
# Another interpreter for .venv:          make setup PYTHON=python3.12
# An environment that you already have:   make test PY=/path/to/python

PYTHON ?= python3
PY ?= .venv/bin/python
# Two processes of one thread each: threads of several processes on the same cores wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -p no:cacheprovider
TWICE := -n 2 --dist loadfile --max-worker-restart 0
OUT ?= demo-output

# An environment of your own is used as it is; only .venv is made here.
ifeq ($(PY),.venv/bin/python)
INSTALLED := .venv/.installed
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup check format lint types fast test test-slow test-gpu test-sanitizer demo clean

help:
	@echo "make setup      create .venv with everything a developer needs"
	@echo "make demo       export a small model, verify it, classify pictures it has not seen, draw them"
	@echo "make check      format, lint, types and the fast tests: run it before every commit"
	@echo "make test       unit tests, parity with the official implementations, demo-size exports"
	@echo "make test-slow  full-size exports and whole-process measurements"
	@echo "make test-gpu   tests that need an NVIDIA GPU"
	@echo "make test-sanitizer"
	@echo "                the shipped kernels on a GPU under NVIDIA's compute-sanitizer"
	@echo "make format     rewrite the sources in the house format"
	@echo "make clean      remove .venv and everything that was built"

setup: $(INSTALLED)

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@

check: lint types fast

format: $(INSTALLED)
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

lint: $(INSTALLED)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

types: $(INSTALLED)
	$(PY) -m mypy

fast: $(INSTALLED)
	$(PYTEST) -m "not slow and not gpu" tests/sdk tests/test_imports.py tests/test_public_api.py

test: $(INSTALLED)
	$(PYTEST) $(TWICE) -m "not slow and not gpu"

test-slow: $(INSTALLED)
	$(PYTEST) $(TWICE) -m "slow and not gpu"

test-gpu: $(INSTALLED)
	$(PYTEST) -m gpu

test-sanitizer: $(INSTALLED)
	compute-sanitizer --error-exitcode 9 $(PY) -m pytest -p no:cacheprovider -m gpu tests/engines/kernels -k shipped

demo: $(INSTALLED)
	$(PY) examples/demo.py --out $(OUT)

clean:
	rm -rf .venv build dist sdk/*.egg-info *.egg-info .mypy_cache .ruff_cache .pytest_cache demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
