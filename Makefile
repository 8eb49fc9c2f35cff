# Every target does its own set-up: `make test` in a fresh clone is enough.
#
# The set-up takes packages from wherever your pip is configured to take them. On Linux, a plain `torch` brings CUDA
# with it (several GB). For the CPU build instead, point pip at an index that carries it, for instance with
# PIP_INDEX_URL or PIP_EXTRA_INDEX_URL, before the first `make`: both builds satisfy the version in constraints.txt.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
PINS := pyproject.toml constraints.txt
PEERS := textbrewer modelopt trl liger

.DEFAULT_GOAL := help
.PHONY: help quickstart test check docs bench peers clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-11s %s\n' "$$name" "$$text"; done

quickstart: $(VENV)/.stamp-run ## distil a real model on real sentences, and open with the report (ARGS="evaluate.seeds=3")
	$(BIN)/potstill run reviews $(ARGS)
	$(if $(findstring --out,$(ARGS)),,@echo "Report: $(CURDIR)/runs/reviews/report.html")

# Each test computes in one thread, so as many run at once as there are cores, to four: a process takes 1 GB or so.
# Those of one file stay together, since they share what was trained for them.
test: $(VENV)/.stamp ## run the tests (ARGS="-k losses", ARGS="-m 'not slow'", ARGS="-n 0" for one process)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

check: $(VENV)/.stamp ## lint, formatting and types
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy --strict src

# Without --quiet, which would silence the warnings that --strict counts.
docs: $(VENV)/.stamp ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Documentation: $(CURDIR)/site/index.html"

bench: $(VENV)/.stamp-run ## time training beside other tools, those that `make peers` has set up (ARGS="--only work")
	$(BIN)/python benchmarks/peers.py $(ARGS)

peers: $(PEERS:%=.venv-peers/%/.stamp) ## set up the other tools for `make bench`, each in an environment of its own

clean: ## remove what tools left behind; keeps .venv and runs/
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment, two stamps: what a run needs, and on top of it what the developers' targets need. torch comes first
# and alone, since it is the largest by far: if its download breaks off, nothing else is half installed.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "potstill needs Python 3.11 or newer; got $$($(PYTHON) --version). Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-run: $(PINS) | $(BIN)/python
	@echo "Installing into $(VENV); the first time this takes a few minutes."
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable '.[onnx]'
	@touch $@

$(VENV)/.stamp: $(VENV)/.stamp-run
	$(PIP) --editable '.[onnx,dev]'
	@touch $@

# Other tools, each with the versions that it was measured with. torch comes first, with whatever its build needs; then
# nothing is resolved, since the files name every package. Liger asks for Triton, whose kernels are not called here.
.venv-peers/%/.stamp: benchmarks/peers/requirements-%.txt
	$(PYTHON) -m venv .venv-peers/$*
	.venv-peers/$*/bin/python -m pip --disable-pip-version-check install --quiet "$$(grep '^torch==' $<)"
	.venv-peers/$*/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --requirement $<
	@touch $@
