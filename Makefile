# Everything a developer does here; `make` lists it. Needs make and one Python 3.11-3.13 (tools/environment.sh says which).
# Variables: PYTHON=interpreter for the virtual environment, VENV=its folder, ARGS=more arguments for pytest,
# TESTS_WHOLE=1, ONCE=1, CASES="names", CELLS="names", OUT=file, MINUTES=n, SECONDS=n, TARGETS="names", SEED=n, REPEATS=n,
# IMAGE_PREFIX=, TAG=, IMAGES=, DOCKER=, BUILD_ARGS=, K8S=folder (each target says which it reads).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?=
ARGS ?=
TESTS_WHOLE ?=
export TESTS_WHOLE
ONCE ?=
CASES ?=
SECONDS ?=
TARGETS ?=
OUT ?=
MINUTES ?=
SEED ?=
CELLS ?=
REPEATS ?=
DOCKER ?= docker
IMAGE_PREFIX ?= carrel-
TAG ?= dev
IMAGES ?=
BUILD_ARGS ?=
K8S ?=

BIN := $(VENV)/bin
# Some containers set it; each of the hundreds of processes that tests start would then compile everything again.
unexport PYTHONDONTWRITEBYTECODE

# -P keeps a folder of the caller's called `services` from hiding ours.
RUN := $(BIN)/python -P
STAMP := $(VENV)/.complete
WRITTEN := $(wildcard carrel servicekit services gateway examples tests benchmarks conformance tools)

.PHONY: help
help: ## what there is to make (this list)
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

.PHONY: setup
setup: $(STAMP) ## makes .venv from the hashed constraints.txt; quick when nothing changed

$(STAMP): pyproject.toml constraints.txt tools/environment.sh tools/install.sh
	@echo "Setting up $(VENV): a minute or two the first time, nothing after that"
	@python="$$(tools/environment.sh $(PYTHON))"; \
	 [ -x $(BIN)/pip ] || "$$python" -m venv --clear $(VENV)
	tools/install.sh $(VENV) constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q $(WRITTEN)
	@touch $@

.PHONY: run
run: setup ## starts the five processes and runs two users' agents; ONCE=1 ends with the runs
	@$(RUN) -m carrel.cli demo $(if $(ONCE),--once)

.PHONY: test
test: setup ## the tests, two files at a time (JOBS=1 for one), naming each one skipped and why; ARGS="tests/unit -x" TESTS_WHOLE=1
	$(RUN) -m pytest -ra -n $(or $(JOBS),2) --dist loadfile $(ARGS)

.PHONY: fuzz
fuzz: setup ## fuzzes each target of tests/fuzz with atheris for SECONDS=60 (TARGETS="frames wire"); inputs stay in .fuzz/
	@for target in $(or $(TARGETS),frames wire events tokens messages); do \
	  $(RUN) -m tests.fuzz.run $$target $(or $(SECONDS),60) || exit 1; done

.PHONY: check
check: setup ## format, lint, types, layers, file layout, protos and stubs; changes nothing
	$(BIN)/ruff format --check $(WRITTEN)
	$(BIN)/ruff check $(WRITTEN)
	$(BIN)/mypy $(WRITTEN)
	$(BIN)/lint-imports --no-logo --cache-dir .import_linter_cache
	$(RUN) -m tools.check_layout
	$(RUN) -m tools.check_migrations
	$(RUN) -m tools.notice --check
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(if $(wildcard protos/baseline.binpb),$(BIN)/buf breaking --against protos/baseline.binpb)
	$(RUN) -m tools.protos --check

.PHONY: protos
protos: setup ## regenerates the stubs under carrel/v1 from protos/
	$(RUN) -m tools.protos

.PHONY: baseline
baseline: setup ## makes today's contract the one that `make check` compares with (when an issue closes)
	$(BIN)/buf build -o protos/baseline.binpb

.PHONY: fmt
fmt: setup ## formats Python and protos, and mends what ruff can mend
	$(BIN)/ruff check --fix-only --quiet $(WRITTEN)
	$(BIN)/ruff format $(WRITTEN)
	$(BIN)/buf format --write

.PHONY: recovery
recovery: setup ## kill -9 of each process at each boundary and in each stage of a run; prints the table
	$(RUN) -m tests.chaos.recovery

.PHONY: faults
faults: setup ## the fault matrix over real processes; prints the table; SEED=n CELLS="kill bridge,cut" REPEATS=n OUT=file
	$(RUN) -m tests.faults.matrix $(if $(SEED),--seed $(SEED)) $(if $(CELLS),--cells "$(CELLS)") \
	  $(if $(REPEATS),--repeats $(REPEATS)) $(if $(OUT),--out "$(OUT)")

.PHONY: skew
skew: setup ## each service of the last release beside today's others and the reverse, and upgrades under load
	SKEW_WHOLE=1 $(RUN) -m pytest -ra tests/skew $(ARGS)

.PHONY: soak
soak: setup ## random runs of 200 users under kills, with canaries; MINUTES=2 SEED=number
	$(RUN) -m tests.chaos.soak --minutes $(or $(MINUTES),2) $(if $(SEED),--seed $(SEED))

.PHONY: bench
bench: setup ## measures; CASES="events first_event" OUT=file.json
	$(RUN) -m benchmarks $(if $(CASES),--cases "$(CASES)") $(if $(OUT),--out "$(OUT)")

.PHONY: release
release: setup ## wheel, sdist, SBOM, NOTICE, descriptor set and sums into dist/; TAG=1 tags the commit, here only
	$(RUN) -m tools.release $(if $(filter 1,$(TAG)),--tag) $(if $(OUT),--out "$(OUT)")

.PHONY: images
images: ## builds the container images; IMAGE_PREFIX=registry/carrel- TAG=tag IMAGES="names" DOCKER=command BUILD_ARGS="--network host"
	@DOCKER="$(DOCKER)" IMAGE_PREFIX="$(IMAGE_PREFIX)" TAG="$(TAG)" BUILD_ARGS="$(BUILD_ARGS)" images/build.sh $(IMAGES)
CHECKOV := $(VENV)-checkov

.PHONY: docs
docs: setup ## the pages as a site in build/docs, warnings as errors; DOCS_SOURCE_URL=https://host/name/tree/main for links to files
	@rm -rf build/docs
	$(RUN) -m sphinx -c docs -b html -W --keep-going -q -d build/doctrees . build/docs
	@echo "open build/docs/index.html"

.PHONY: k8s-check
k8s-check: setup $(CHECKOV)/.complete ## every overlay and set of components: schemas, checkov, our own rules; K8S=FOLDER for an overlay of yours
	TESTS_NEED=kubectl $(RUN) -m pytest -q tests/k8s
	$(RUN) -m tools.k8s_check --checkov $(CHECKOV)/bin/checkov $(K8S)

# checkov's dependencies and ours exclude each other.
$(CHECKOV)/.complete: tools/checkov/requirements.txt tools/environment.sh tools/install.sh
	@python="$$(tools/environment.sh $(PYTHON))"; "$$python" -m venv --clear $(CHECKOV)
	tools/install.sh $(CHECKOV) tools/checkov/requirements.txt $(wildcard $(BIN)/uv)
	@touch $@

.PHONY: lock
lock: setup ## brings constraints.txt in line with pyproject.toml; ARGS=--upgrade for newer versions (needs the network)
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --quiet --output-file constraints.txt $(ARGS)
	$(RUN) -m tools.image_requirements
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile tools/checkov/requirements.in --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --quiet --output-file tools/checkov/requirements.txt $(ARGS)

.PHONY: clean
clean: ## removes caches, build results and the development state; keeps .venv
	rm -rf build dist .carrel .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(WRITTEN) -name __pycache__ -type d -prune -exec rm -rf {} +
