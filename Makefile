# Two commands for a newcomer: `make run` and `make test`. Both install first. Needs Python >= 3.11 and make.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The first Python of the machine that is new enough; PYTHON=… chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)

# Tests wait more than they compute: two processes, each with its own servers, halve the time on two cores.
TEST_PROCESSES ?= 2

.PHONY: run install test lint types pytest soak load lock clean help
.DEFAULT_GOAL := run

run: install  ## the whole pipeline on this machine, with a recorded match playing through it
	@exec $(BIN)/arenacast up --demo

install: $(STAMP)  ## .venv with everything that running and testing need

$(STAMP): requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "Arenacast needs Python 3.11 or newer, and this machine has none: install it, or say make PYTHON=/path/to/python" >&2; \
		exit 1; \
	fi
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Arenacast needs Python 3.11 or newer, and $(PYTHON) is not" >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		"$(PYTHON)" -m venv --clear $(VENV) || \
		{ echo "$(PYTHON) cannot create a virtual environment: install its venv package (Debian: python3-venv)" >&2; exit 1; }
	@echo "installing into $(VENV), once: a few hundred megabytes (the embedded ClickHouse is most of it)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

test: lint types pytest  ## every check and every test, against real servers that the tests start themselves

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

pytest: install
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile $(PYTEST_ARGUMENTS)

soak: install  ## minutes of kill -9, outages and full disks under load, with negative controls; prints what it did
	$(BIN)/python -m pytest -m soak -rP $(SOAK_ARGUMENTS)

load: install  ## a short load test with its proof and a report; LOAD_ARGUMENTS=--full for the long one
	$(BIN)/python -m loadtests $(LOAD_ARGUMENTS)

# Needs uv. Universal (Linux and macOS, x86-64 and arm64), with hashes, and without naming a registry.
lock:  ## the lock files anew, from pyproject.toml
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet --output-file requirements.lock
	sh docker/lock.sh

clean:  ## everything that was installed or built; ./data stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

help:
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-9s %s\n' "$$name" "$$text"; done
