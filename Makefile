# `make train` raises a swarm on this machine, `make test` runs every check; both build .venv first.

PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(if $(shell $(name) -c \
	'import sys; print("fits" if sys.version_info >= (3, 11) else "")' 2>/dev/null),$(name))))
PIP_FLAGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: train test check fast fuzz e2e bench docs clean
.DELETE_ON_ERROR:

train: $(STAMP)
	$(BIN)/barnraise train

test: check fuzz e2e

check: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n auto -m "not e2e and not fuzz"

fast: $(STAMP)
	$(BIN)/pytest -q -n auto -m "not e2e and not fuzz"

fuzz: $(STAMP)
	$(BIN)/pytest -q -n auto -m fuzz

e2e: $(STAMP)
	$(BIN)/pytest -q -m e2e

bench: $(STAMP)
	for theme in bench/*.py; do $(BIN)/python $$theme || exit 1; done

docs: $(STAMP)
	$(BIN)/python -m barnraise.cli.reference docs/reference.md

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(STAMP): pyproject.toml constraints.txt hatch_build.py src/barnraise/codec/kernels.c
	PYTHON="$(PYTHON)" .ci/toolchain
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile $(PIP_FLAGS) --constraint constraints.txt --editable ".[dev]"
	touch $@
