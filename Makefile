# Everything a developer or a CI runs. `make` alone lists the targets.
#
# Needs Python 3.11, network access to the package registries for the first run, and a POSIX shell. No git, Docker, Java or PostgreSQL.

.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?=
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
export PYTHON

# Caches need some home: without one they lie in the environment.
ifeq ($(strip $(HOME)),)
export HOME := $(CURDIR)/.venv/home
endif

VENV_PYTHON := .venv/bin/python

# The first stamp is older than a lock that changed, the second than pyproject.toml. Neither counts where the directory was moved, or where
# the Python that .venv was made with is gone.
LOCKS := requirements-dev.lock requirements-build.lock
ifneq ($(wildcard .venv/.directory),)
ifneq ($(shell test -x $(VENV_PYTHON) && cat .venv/.directory),$(CURDIR))
UNUSABLE := unusable
endif
endif

.PHONY: help demo test check bench clean lock docs env-file environment unusable ruff mypy imports house secrets compose generated locks floats deep

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

unusable:

.venv/.locked: $(LOCKS) checks/make_environment.sh $(UNUSABLE)
	@sh checks/make_environment.sh
	@touch $@

.venv/.installed: pyproject.toml .venv/.locked
	@.venv/bin/uv pip install --quiet --python $(VENV_PYTHON) --no-deps --no-build-isolation --no-cache --editable .
	@touch $@

environment: .venv/.installed ## Make or refresh .venv from the lock files
	@:

demo: .venv/.installed ## Start everything, trade 2,000 requests on a simulated exchange, check every promise (DEMO_ARGS="--kill --json")
	@exec .venv/bin/orchestrator demo $(DEMO_ARGS)

test: check ## Everything that passes or fails: the checks, then all tests (PYTEST_ARGS="-k ledger")
	@exec $(VENV_PYTHON) -m pytest -n 3 --dist=loadgroup $(PYTEST_ARGS)

check: ruff mypy floats imports house secrets compose generated locks ## Lint, types, floats, layers, rooms, secrets, compose file, generated docs, lock files

ruff: .venv/.installed
	@echo "== ruff (style, defects, and the S rules for security)"
	@.venv/bin/ruff check .

mypy: .venv/.installed
	@echo "== mypy --strict"
	@$(VENV_PYTHON) -m mypy

floats: .venv/.installed
	@echo "== floats (none where money may pass)"
	@$(VENV_PYTHON) -m checks.floats

imports: .venv/.installed
	@echo "== import-linter (who may import whom)"
	@.venv/bin/lint-imports --no-logo

house: .venv/.installed
	@echo "== rooms (nothing uses what lies above it)"
	@$(VENV_PYTHON) -m checks.house

secrets: .venv/.installed
	@echo "== secrets (nothing in the tree may look like one)"
	@$(VENV_PYTHON) -m checks.secrets

compose: .venv/.installed
	@echo "== docker-compose.yml"
	@$(VENV_PYTHON) -m checks.compose docker-compose.yml

generated: .venv/.installed
	@echo "== generated documents"
	@$(VENV_PYTHON) -m checks.generate_docs --check

locks: .venv/.installed
	@echo "== lock files"
	@$(VENV_PYTHON) -m checks.locks

docs: .venv/.installed ## Write the documents that are generated from the code
	@$(VENV_PYTHON) -m checks.generate_docs

lock: .venv/.installed ## Write the lock files anew from requirements*.in (needs the network)
	@.venv/bin/uv pip compile --quiet --no-header --generate-hashes --universal --python-version 3.11 requirements.in -o requirements.lock
	@.venv/bin/uv pip compile --quiet --no-header --generate-hashes --universal --python-version 3.11 requirements-dev.in -o requirements-dev.lock
	@.venv/bin/uv pip compile --quiet --no-header --generate-hashes --allow-unsafe --universal --python-version 3.11 requirements-build.in -o requirements-build.lock

deep: .venv/.installed ## Look longer than the suite does: 100,000 cut operations, 1,000,000 orders that grow old, take-overs between releases
	@HYPOTHESIS_PROFILE=deep GROWTH_ROWS=1000000 $(VENV_PYTHON) -m pytest -s tests/property/test_ledger_stateful.py tests/integration/test_retention.py $(PYTEST_ARGS)
	@exec $(VENV_PYTHON) -m pytest -n 2 -m deep tests/crash $(PYTEST_ARGS)

bench: .venv/.installed ## Measure against two baselines, print a table, write bench/latest.json
	@exec $(VENV_PYTHON) -m bench.run $(BENCH_ARGS)

env-file: ## Write .env with fresh random secrets for docker-compose.yml (never overwrites one)
	@sh checks/make_env_file.sh

clean: ## Remove the environment, caches and the data of embedded services
	@rm -rf .venv .orchestrator .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
