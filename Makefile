# One virtual environment an interpreter, made on first use and again whenever pyproject.toml changes.
#   make demo                      with python3
#   make test PYTHON=python3.12    with another, 3.11 or newer

PYTHON ?= python3
FUZZ ?= 10000
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv-$(VERSION)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := $(shell find convjax -type f -not -name '*.pyc')

.PHONY: help demo test lint types fuzz bench libtpu check-tpu check-gpu docs environment clean
.DEFAULT_GOAL := help

help: ## say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

demo: $(VENV)/.examples ## train on handwritten digits, time it against lax, draw out/digits.png
	$(BIN)/python -m examples.digits

test: $(VENV)/.wheel ## build the wheel, install it, test it and not the source tree; SHARE=1/2 for every second case
	$(BIN)/pytest -n 2 $(addprefix --share=,$(SHARE))

lint: $(VENV)/.test ## style and likely mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test ## types
	$(BIN)/mypy

fuzz: $(VENV)/.test ## random problems against the oracle; FUZZ=300 for fewer
	$(BIN)/python -m tests.fuzz --problems $(FUZZ)

bench: $(VENV)/.test ## the table of the README: convjax against lax
	$(BIN)/python -m benchmarks.run --suite anchors

libtpu: $(VENV)/.test
	$(PIP) "libtpu==$$($(BIN)/python -c 'import jax; print("0.0.42" if jax.__version__ < "0.11" else "0.0.50")').*"

check-tpu: libtpu ## compile the TPU kernels ahead of time, without a TPU; QUICK=--quick for each kernel once
	$(BIN)/python -m benchmarks.aot_tpu $(QUICK)

check-gpu: $(VENV)/.test ## compile the GPU kernels for an H200, without one; QUICK=--quick only lowers a few
	$(BIN)/python -m benchmarks.aot_gpu $(QUICK)

docs: $(VENV)/.docs ## the site, in build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

environment: $(VENV)/.test ## only install what tests and examples need

clean: ## remove everything that was made, environments included
	rm -rf .venv-* build dist out .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@test -n '$(VERSION)' || { echo "make: '$(PYTHON)' does not run; name a Python 3.11 or newer: make ... PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: convjax needs Python 3.11 or newer, '$(PYTHON)' is $(VERSION)" >&2; exit 1; }
	@echo "installing into $(VENV), once; this takes a minute or two"
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	@touch $@

# The package itself is installed as well, and the wheel below takes its place. What runs as `python -m ...` from here
# sees the source tree first.
$(VENV)/.examples: pyproject.toml | $(VENV)/.made
	$(PIP) '.[examples]'
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.made
	$(PIP) '.[examples,test]'
	@touch $@ $(VENV)/.examples

$(VENV)/.docs: $(VENV)/.test
	$(PIP) '.[docs]'
	@touch $@

$(VENV)/.wheel: $(VENV)/.test $(SOURCES) README.md LICENSE
	rm -rf $(VENV)/dist
	$(BIN)/python -m build --no-isolation --outdir $(VENV)/dist . > $(VENV)/build.log || { cat $(VENV)/build.log; exit 1; }
	$(PIP) --force-reinstall --no-deps $(VENV)/dist/convjax-*.whl
	@touch $@
