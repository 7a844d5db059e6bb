# make demo, make test: everything else is set up on the way. Needs Python 3.11 with venv; `make PYTHON=...` names another.
PYTHON := $(or $(shell command -v python3.11),python3)
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: setup demo test test-slow lint format lock results bench-ranking

setup: .venv/.installed

demo: setup
	$(BIN)/reloss demo

test: setup
	$(PYTEST) -n 2

test-slow: setup
	$(PYTEST) -m slow -n 2

lint: setup
	$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix && $(BIN)/ruff format

# Writes what requirements/*.in mean as exact versions with hashes; `make lock UPGRADE=--upgrade` takes newer ones.
lock: setup
	$(BIN)/uv pip compile --generate-hashes --no-annotate --no-header --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --only-binary :all: --no-emit-index-url --no-emit-build-options \
	  $(UPGRADE) requirements/*.in --output-file requirements/lock.txt

# Renders the tables of results/ and the README from the records in results/runs.
results: setup
	$(BIN)/python -m results.render

# Soft ranks side by side with the alternatives that install; on a GPU if there is one.
bench-ranking: setup
	$(BIN)/python -m benchmarks.ranking --out results/benchmarks/$(or $(DEVICE),cpu)

.venv/.installed: requirements/lock.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { echo "make: needs Python 3.11, \
	for which the lock is made, but '$(PYTHON)' is missing or another version. Install it (Debian, Ubuntu: apt-get install \
	python3.11 python3.11-venv) or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) has no venv; install it \
	(Debian, Ubuntu: apt-get install python3.11-venv)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --no-deps --only-binary :all: --require-hashes -r requirements/lock.txt
	$(BIN)/pip install --no-deps --no-build-isolation -e .
	@touch $@
