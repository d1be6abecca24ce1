# Everyday work. `make help` lists it; each target makes the environment that it needs.

HOST ?= 127.0.0.1
PORT ?= 8000
BUNDLE ?= models/restaurant-reviews
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install -qq --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## List these targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
	@echo 'Variables: PORT=$(PORT) HOST=$(HOST) BUNDLE=$(BUNDLE) PYTHON=... TORCH_INDEX=... (see CONTRIBUTING.md)'

.PHONY: serve
serve: check-bundle check-port $(STAMPS)/base  ## Serve the default bundle on http://127.0.0.1:8000.
	$(BIN)/sparsecbm serve "$(BUNDLE)" --host "$(HOST)" --port "$(PORT)"

.PHONY: test
test: $(STAMPS)/dev  ## Run the tests; name some with TESTS=tests/test_cli.py, leave the slow out with FAST=1.
	$(BIN)/python -m pytest -ra $(if $(FAST),-m 'not slow') $(TESTS)

.PHONY: lint
lint: $(STAMPS)/dev  ## Check style and types: ruff, ruff format, mypy --strict.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(STAMPS)/dev  ## Format the code and fix what can be fixed by itself.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: install
install: $(STAMPS)/dev  ## Make the environment in .venv, with all extras, and set up the git hooks.
	test ! -e .git || $(BIN)/pre-commit install --install-hooks

.PHONY: lock
lock:  ## Write constraints.txt anew from the newest versions that pyproject.toml allows.
	@TORCH_INDEX="$(TORCH_INDEX)" PYTHON="$(PYTHON)" scripts/lock

.PHONY: clean
clean:  ## Remove the environment, caches and build products.
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find sparsecbm export serving loadtests tests -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: check-bundle
check-bundle:
	@test -e "$(BUNDLE)/manifest.json" || { \
		echo 'error: $(BUNDLE) is no bundle: it has no manifest.json. Name another with BUNDLE=...' >&2; exit 1; }

.PHONY: check-port
check-port:
	@python=$$(PYTHON="$(PYTHON)" scripts/python) && "$$python" scripts/check_port.py "$(HOST)" "$(PORT)"

# The stamps say what the environment holds. `dev` comes after `base`, never beside it, and adds to it.
$(STAMPS)/venv:
	@python=$$(PYTHON="$(PYTHON)" scripts/python) && echo "making $(VENV) with $$python" && "$$python" -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/base: pyproject.toml constraints.txt | $(STAMPS)/venv
	@echo 'installing what serving needs'
	@$(INSTALL) --editable .
	@touch $@

$(STAMPS)/dev: $(STAMPS)/base
	@echo 'installing what training, tests and checks need'
	@$(INSTALL) $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") --editable '.[train,dev]'
	@touch $@
