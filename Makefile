# A clean clone needs Python 3.11 or newer, pip and make. Nothing is installed outside .venv.
#
#   make setup      the virtual environment with everything in it
#   make simulate   a swarm of real peers on this machine (SIMULATE="--peers 8 --steps 50 ...")
#   make test       style, types, layers, tests
#   make soak       random simulated swarms, each from its seed, on all cores (SEEDS=20000)
#   make bench      every measurement of benchmarks/ in short (BENCH=--long: for the record)
#   make clean      remove what the above made

PYTHON    ?= python3
VENV      ?= .venv
PIP_FLAGS ?= -qq
SIMULATE  ?=
PYTEST    ?=
BENCH     ?=
SEEDS     ?= 20000
SOAK      ?=

BIN := $(VENV)/bin

.PHONY: setup simulate test soak bench clean
.DELETE_ON_ERROR:

setup: $(VENV)/.installed

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "p2ptrain needs Python 3.11 or newer: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing into $(VENV): a few minutes the first time"
	$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[dev,plots]'
	@touch $@

simulate: setup
	$(BIN)/p2ptrain simulate --report runs/$$(date +%F-%H%M%S) $(SIMULATE)

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest $(PYTEST)

soak: setup
	$(BIN)/python -m peers.soak --seeds $(SEEDS) $(SOAK)

bench: setup
	$(BIN)/python -m benchmarks.bubble
	$(BIN)/python -m benchmarks.capacity $(BENCH)
	$(BIN)/python -m benchmarks.fidelity $(BENCH)
	$(BIN)/python -m benchmarks.efficiency $(BENCH)

clean:
	rm -rf $(VENV) build dist runs *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	find p2ptrain peers bootstrap tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
