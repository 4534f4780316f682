# make quickstart and make test are all the set-up there is; `make` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-fast fault soak check format embedded bench bench-gpu bench-features bench-start bench-bookkeeping bench-growth bench-control-plane lock wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("batchdet needs Python 3.11 or newer; say which: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing batchdet into $(VENV) (a few minutes when nothing is cached)"
	@$(PIP) --editable '.[cpu,evaluate]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing batchdet and its development tools into $(VENV) (a few minutes when nothing is cached)"
	@$(PIP) --editable '.[cpu,evaluate,torch,huggingface,dev]'
	@touch $@ $(VENV)/.base

quickstart: $(VENV)/.base ## make a sample data set, label it, show and evaluate the result
	@rm -rf quickstart
	@echo; echo '$$ batchdet sample quickstart/images --images 400 --seed 2026'
	@$(BIN)/batchdet sample quickstart/images --images 400 --seed 2026
	@echo; echo '$$ batchdet run jobs/quickstart.yaml'
	@$(BIN)/batchdet run jobs/quickstart.yaml
	@echo; echo '$$ batchdet evaluate quickstart/labels --truth quickstart/images/instances.json'
	@$(BIN)/batchdet evaluate quickstart/labels --truth quickstart/images/instances.json
	@echo; echo '$$ batchdet show quickstart/labels --pictures quickstart/pictures'
	@$(BIN)/batchdet show quickstart/labels --pictures quickstart/pictures

# two workers, on one of which is the Ray that tests share; WORKERS= runs all in one process
WORKERS ?= -n 2
test: $(VENV)/.dev ## run all tests
	$(BIN)/python -m pytest $(WORKERS)

test-fast: $(VENV)/.dev ## run the tests that take seconds
	$(BIN)/python -m pytest -m 'not slow and not fault'

fault: $(VENV)/.dev ## run the long tests: kills, stalls, broken stores, each model from S3 (about 50 minutes on 2 cores)
	$(BIN)/python -m pytest -m fault -p no:randomly

MINUTES ?= 10
SEED ?= 1
soak: $(VENV)/.dev ## minutes of seeded mixed faults: make soak MINUTES=10 SEED=1
	$(BIN)/python benchmarks/soak.py --minutes $(MINUTES) --seed $(SEED)

check: $(VENV)/.dev ## formatting, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

BENCH_VENV ?= .venv-bench
$(BENCH_VENV)/.bench: benchmarks/requirements.txt
	@echo "installing the alternatives into $(BENCH_VENV) (2.4 GiB; a few minutes when nothing is cached)"
	@$(PYTHON) -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install -qq --disable-pip-version-check --requirement benchmarks/requirements.txt
	@touch $@

bench: $(VENV)/.dev $(BENCH_VENV)/.bench ## batchdet and the alternatives side by side (about 25 minutes); BENCH="--only daft"
	PYTHONPATH=$(CURDIR) $(BIN)/python benchmarks/compare.py --python $(BENCH_VENV)/bin/python $(BENCH)

bench-features: $(VENV)/.dev ## what features cost and what they find again (two minutes)
	PYTHONPATH=$(CURDIR) $(BIN)/python benchmarks/features.py $(BENCH)

bench-gpu: $(VENV)/.dev ## how much of a GPU a run uses; BENCH="--device cpu --images 120 --batches 8" where there is none
	PYTHONPATH=$(CURDIR) $(BIN)/python benchmarks/gpu.py $(BENCH)

bench-start: $(VENV)/.base ## time `import batchdet` and `batchdet --help`
	$(BIN)/python benchmarks/start_up.py

embedded: $(VENV)/.dev ## train the embedded detector anew (about 100 minutes on 2 cores)
	$(BIN)/python -m batchdet.training.embedded --minutes 55 --seed 0 --out build/embedded/1
	$(BIN)/python -m batchdet.training.embedded --init build/embedded/1/checkpoint.pt --minutes 36 --rate 0.0015 --warmup 100 --score-power 2 --seed 1 --out build/embedded/2
	$(BIN)/python -m batchdet.training.publish --checkpoint build/embedded/2/checkpoint.pt --seed 7 --images 1000

bench-bookkeeping: $(VENV)/.dev ## time what it costs that a run can be killed (about 4 minutes)
	PYTHONPATH=$(CURDIR) $(BIN)/python benchmarks/bookkeeping.py

bench-growth: $(VENV)/.dev ## seconds and memory from 1,000 to 100,000 images, plans of 1 to 100,000 shards (about 4 minutes)
	PYTHONPATH=$(CURDIR) $(BIN)/python benchmarks/growth.py $(GROWTH)

bench-control-plane: $(VENV)/.dev ## simulated GPUs: images/s that the driver sustains, and where it saturates (about 20 minutes)
	PYTHONPATH=$(CURDIR) $(BIN)/python benchmarks/control_plane.py $(CONTROL_PLANE)

lock: ## write what the images in infra/ install, each file with its hash, from pyproject.toml and constraints.txt
	@$(PYTHON) -m venv $(VENV)-lock && $(VENV)-lock/bin/python -m pip install -qq --disable-pip-version-check uv
	@for extra in cpu gpu; do $(VENV)-lock/bin/uv pip compile pyproject.toml --extra $$extra --constraint constraints.txt \
	  --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet \
	  --output-file infra/requirements-$$extra.lock; done

wheel: $(VENV)/.dev ## build a wheel of batchdet into dist/ (the images in infra/ build their own)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove what the other targets made, but for the environment
	rm -rf quickstart build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
