# make demo | make test: both install what they need into .venv on the first call.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
ONLY ?=
WORKERS ?= 2
DIR := runs/demo-$(shell date +%Y%m%d-%H%M%S)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .venv-peers
TORCH := $(shell sed -n 's/^torch==//p' requirements.txt)
CPU_INDEX := https://download.pytorch.org/whl/cpu
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint types pytest faults install benchmark-peers clean

help:
	@echo "make demo     train one agent to balance and to swing up a pole in a few minutes, with a report (ARGS=\"-P seed=1\")"
	@echo "make test     lint, types and all tests, as CI runs them"
	@echo "make lint     ruff only"
	@echo "make types    mypy only"
	@echo "make pytest   the tests only (ARGS=\"-k config\")"
	@echo "make faults   the full campaigns of docs/reliability.md, up to an hour: kills, damaged files, full disks (one alone: ONLY=kills)"
	@echo "make install  the environment in $(VENV), with $(PYTHON)"
	@echo "make benchmark-peers  other people's DreamerV3 in $(PEERS), for python -m benchmarks.update --peers sheeprl,torchrl"
	@echo "make clean    remove caches and build products, keep $(VENV) and runs/"

demo: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" mlflow run . --env-manager local -P variant=multitask -P suite=dmc-cartpole-dense -P preset=demo \
	    -P eval.every=28000 -P env.count=2 -P agent.patience.trust=0 -P dir=$(abspath $(DIR)) $(ARGS)
	@echo "report: $(DIR)/report.html"

test: lint types pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy has to see the rooms inside the package, as they are once installed; links do that without installing, so that a new
# file is always among them.
types: $(STAMP)
	@rm -rf build/types && mkdir -p build/types/polydream
	@ln -s $(CURDIR)/polydream/* $(CURDIR)/core $(CURDIR)/variants $(CURDIR)/tasks $(CURDIR)/eval build/types/polydream/
	cd build/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache

pytest: $(STAMP)
	$(BIN)/python -m pytest -q -n $(WORKERS) $(ARGS)

# The short lane of the same campaigns is part of `make test`. A campaign alone: make faults ONLY=kills, or ONLY="damage hostile";
# their names are those of tests/faults/test_*.py. A process that has nothing left takes over from the other.
faults: $(STAMP)
	POLYDREAM_FAULTS=full OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --durations 10 \
	    $(or $(ONLY:%=tests/faults/test_%.py),tests/faults) $(ARGS)

install: $(STAMP)

# The same torch as ours, and before the rest, so that nothing else chooses one.
benchmark-peers: $(STAMP)
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	version=$$($(BIN)/python -c 'import torch; print(torch.__version__)'); \
	$(PEERS)/bin/python -m pip install --quiet "torch==$$version" || \
	$(PEERS)/bin/python -m pip install --quiet "torch==$$version" --index-url $(CPU_INDEX)
	$(PEERS)/bin/python -m pip install --quiet --requirement benchmarks/peers/requirements.txt

# On Linux, PyPI's torch brings gigabytes of CUDA libraries. A machine without an NVIDIA GPU takes the CPU build instead:
# from the indexes that pip is set up with, where they have one (2.13.0+cpu is newer than 2.13.0), else from pytorch.org.
$(STAMP): pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "polydream needs Python 3.11 or newer; make PYTHON=python3.12 uses another one")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "pip>=24" "setuptools>=77"
	@if [ "$$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null || \
	    $(BIN)/python -m pip install --quiet --dry-run --no-deps "torch==$(TORCH)+cpu" >/dev/null 2>&1; then \
	  set -x; $(BIN)/python -m pip install "torch==$(TORCH)"; \
	else \
	  set -x; $(BIN)/python -m pip install "torch==$(TORCH)" --index-url $(CPU_INDEX); \
	fi
	$(BIN)/python -m pip install --editable ".[dev]" --constraint requirements.txt
	touch $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
