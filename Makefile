# Everything on a fresh machine:  make demo   the shipped conversation      make test   all tests, with the real weights
#
# Needs git, make and Python 3.11 or newer with venv. TORCH_INDEX=<address of a package index> installs PyTorch from there (for
# example the index of its CPU builds, which are much smaller); left empty, pip's own configuration decides.

TORCH_INDEX ?=
VENV ?= .venv
OUT ?= demo-out
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	command -v $$name >/dev/null 2>&1 && $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
BIN := $(VENV)/bin
PACKAGES := duplex encoders decoders agent apps

.PHONY: demo test lint format clean

demo: $(VENV)/.with-talk weights
	$(BIN)/duologue demo $(OUT)

test: $(VENV)/.with-dev weights
	$(BIN)/python -m pytest

lint: $(VENV)/.with-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.with-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then echo "Duologue needs Python 3.11 or newer, which is not installed; on Debian or Ubuntu: apt install python3 python3-venv"; exit 1; fi
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# PyTorch comes first and alone, so that TORCH_INDEX holds for it and for nothing else.
$(VENV)/.with-torch: $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing PyTorch (the largest download; some minutes)."
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(sed -n 's/^ *"\(torch==[^"]*\)",*$$/\1/p' pyproject.toml)"
	@touch $@

$(VENV)/.with-talk: pyproject.toml | $(VENV)/.with-torch
	$(BIN)/python -m pip install --editable '.[talk,bench,web,mqtt]'
	@touch $@

$(VENV)/.with-dev: pyproject.toml $(VENV)/.with-talk | $(VENV)/.with-torch
	$(BIN)/python -m pip install --editable '.[talk,bench,web,mqtt,dev]'
	@touch $@

# Always asked, and at once when the cache is warm: only the cache knows what it has.
.PHONY: weights
weights: | $(VENV)/.with-talk
	$(BIN)/duologue fetch edge
