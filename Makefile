# make demo and make test set up .venv first. Needs Python 3.11 with venv; `make PYTHON=...` selects the interpreter.
PYTHON := $(or $(shell command -v python3.11),python3)
BIN := .venv/bin
FROM_SOURCE := antlr4-python3-runtime
ENCODER := requirements/mrc-encoder
SITE := tools/site/requirements
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: setup demo test test-slow test-slurm lint format lock results scaling ablation bench-ranking bench-learning bench-losses \
  bench-field bench-tracking docs docker docker-test

setup: .venv/.installed

demo: setup
	$(BIN)/reloss demo

test: setup
	$(PYTEST) -n 2 --dist worksteal

test-slow: setup
	$(PYTEST) -m slow -n 2 --dist worksteal

# Runs sweeps on a real Slurm with two nodes on this machine. Needs root, installs Debian's Slurm; about 5 minutes.
test-slurm: setup
	tests/slurm/cluster.sh $(BIN)/python -m pytest -m slow tests/slurm

lint: setup
	$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml
	$(BIN)/shellcheck .ci/run docker/test.sh requirements/install.sh

format: setup
	$(BIN)/ruff check --fix && $(BIN)/ruff format

# Resolves requirements/*.in into exact versions with hashes; `make lock UPGRADE=--upgrade` takes newer versions.
COMPILE := $(BIN)/uv pip compile --generate-hashes --no-annotate --no-header --python-version 3.11 \
  --python-platform x86_64-manylinux_2_28 --excludes requirements/excludes.txt --only-binary :all: \
  --no-binary $(FROM_SOURCE) --no-emit-index-url --no-emit-build-options
lock: setup
	$(COMPILE) $(UPGRADE) requirements/bootstrap.in --output-file requirements/bootstrap.txt
	$(COMPILE) $(UPGRADE) --constraints requirements/bootstrap.txt $(filter-out $(ENCODER).in,$(wildcard requirements/*.in)) \
	  --output-file requirements/lock.txt
	$(COMPILE) $(UPGRADE) --no-deps $(ENCODER).in --output-file $(ENCODER).txt
	$(COMPILE) $(UPGRADE) --constraints requirements/lock.txt $(SITE).in --output-file $(SITE).txt

# Renders the tables of results/ and of the READMEs from the records in results/records.
results: setup
	$(BIN)/python -m tools.render_results

# Builds the documentation as a site, build/site/index.html. Its search needs a server, for example
# `python3 -m http.server --directory build/site`.
docs: build/docs/.installed
	NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --strict --config-file tools/site/mkdocs.yml --site-dir $(CURDIR)/build/site

build/docs/.installed: $(SITE).txt
	$(PYTHON) -m venv build/docs
	build/docs/bin/pip install --no-deps --only-binary :all: --require-hashes --requirement $(SITE).txt
	@touch $@

# Builds the image, with any container engine: make docker DOCKER=podman.
DOCKER := docker
COMMIT := git describe --always --abbrev=12 --exclude="*" --dirty=+changes
docker:
	$(DOCKER) build --file docker/Dockerfile --tag reloss --build-arg COMMIT="$$($(COMMIT))" .

# Builds the image and uses it, and compares it with .venv, which `make setup` makes. Needs root on Debian, but no
# container engine and no image registry; see docker/test.sh.
docker-test:
	docker/test.sh

# Renders the cost tables of docs/scaling.md.
scaling: setup
	$(BIN)/python -m tools.scaling

# Measures soft operators next to the libraries in the folder PEERS, see benchmarks/ranking_libraries.py; on a GPU if
# there is one.
bench-ranking: setup
	$(BIN)/python -m benchmarks.ranking $(if $(PEERS),--peers $(PEERS))

# Measures one step of a fit next to a loop over the items.
bench-learning: setup
	$(BIN)/python -m benchmarks.learning

# Measures the losses next to cross-entropy, and the bag of 2-grams next to the formula as it is written.
bench-losses: setup
	$(BIN)/python -m benchmarks.losses

# Trains with losses for rare classes side by side, on the KEEL sets in data/; other libraries in the folders PEERS. Resumes.
bench-field: setup
	$(BIN)/python -m benchmarks.field $(if $(PEERS),--peers $(PEERS))

# Measures W&B's share of the wall time of a short run on CIFAR-10. The images are in data/ (or RELOSS_DATA); for class
# folders: make bench-tracking SET="--set data.format=folder".
bench-tracking: setup
	$(BIN)/python -m benchmarks.tracking $(SET)

# Runs the ablation, one factor at a time with 3 seeds; finished runs are skipped. CIFAR-10 is in data/ (or RELOSS_DATA);
# for class folders: make ablation SET="--set data.format=folder".
ablation: setup
	$(BIN)/reloss sweep ablation --seeds 0-2 --slots 2 --runs runs/ablation $(SET)
	for name in digits_cnn cifar10_cnn; do $(BIN)/reloss diagnose classification/$$name --runs runs/ablation; done
	$(BIN)/reloss table ablation --runs runs/ablation

.venv/.installed: requirements/lock.txt $(ENCODER).txt requirements/install.sh pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { echo "make: needs Python 3.11, \
	for which the lock is made, but '$(PYTHON)' is missing or another version. Install it (Debian, Ubuntu: apt-get install \
	python3.11 python3.11-venv) or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) has no venv; install it \
	(Debian, Ubuntu: apt-get install python3.11-venv)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	UV_COMPILE_BYTECODE=1 requirements/install.sh $(BIN)
	$(BIN)/pip install --no-deps --no-build-isolation -e .
	@touch $@
