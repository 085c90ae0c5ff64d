# Two commands on a fresh machine: `make bench` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
WORKERS := 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help bench test test-nightly test-fast fuzz test-bmtrain test-vllm study lint benchmarks wheel clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

bench: $(VENV)/.installed  ## Set up, run the main job, write runs/<id>/report.html
	$(BIN)/flagperf run aquila/bmtrain-vs-megatron --preset tiny --ranks 2 --warmup 3 --steps 6 --set protocol.validation=8

test: $(VENV)/.developed  ## Set up and run every test but the nightly ones
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not nightly"

test-nightly: $(VENV)/.developed  ## The tests that take minutes and seldom tell what the others don't
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m nightly

test-fast: $(VENV)/.developed  ## The tests that start no training and no browser
	$(BIN)/python -m pytest -m "not slow"

fuzz: $(VENV)/.developed  ## A million damaged outputs for each vendor's parser: hours; INPUTS=… SEED=…
	FLAGPERF_FUZZ_INPUTS=$(or $(INPUTS),1000000) FLAGPERF_FUZZ_SEED=$(or $(SEED),$$(date +%j)) \
	  $(BIN)/python -m pytest -n $(WORKERS) tests/vendors/test_fuzz.py

test-bmtrain: $(VENV)/.developed  ## BMTrain's own tests: BMTRAIN=a checkout or the sdist of 1.0.1 [NAMES="optim store"]
	@test -e "$(BMTRAIN)" || { echo "Say where: make test-bmtrain BMTRAIN=PATH (pip download --no-deps --no-binary :all: bmtrain==1.0.1)" >&2; exit 1; }
	$(BIN)/python tests/engines/bmtrain/upstream.py "$(BMTRAIN)" $(NAMES)

test-vllm: $(VENV)/vllm/.installed  ## The engine vllm against the real vLLM, in an environment of its own: 2.5 GB
	FLAGPERF_VLLM_PYTHON=$(CURDIR)/$(VENV)/vllm/bin/python $(BIN)/python -m pytest tests/inference/test_vllm.py

study: $(VENV)/.installed  ## BMTrain and Megatron + DeepSpeed over slow links: an hour, as root, into docs/studies
	$(BIN)/python docs/studies/bmtrain-vs-megatron/study.py
	$(BIN)/python docs/studies/bmtrain-vs-megatron/tables.py

lint: $(VENV)/.developed  ## Lint, check the format and the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmarks: $(VENV)/.benched  ## Measure the harness's own figures as ratios
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

wheel: $(VENV)/.developed  ## Build dist/*.whl
	$(BIN)/python -m build --wheel

clean:  ## Remove what the targets made, but no run
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "FlagPerf needs Python 3.11 or newer; say which with: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml setup.py constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV) (a few minutes the first time) …"
	DS_BUILD_OPS=0 $(PIP) -e '.[all]'
	@# Without its dependency: pyproject.toml says why. Its wheels are for one Python and processor, of which only the
	@# compiled extension is, which nothing needs where there is no CUDA.
	$(PIP) --no-deps --only-binary=:all: --python-version 3.11 --platform manylinux2014_x86_64 --upgrade \
	  --target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" bmtrain
	@touch $@

$(VENV)/.developed: $(VENV)/.installed
	$(PIP) -e '.[test,lint]'
	@touch $@

$(VENV)/vllm/.installed: tests/inference/vllm_environment.py | $(VENV)/.developed
	$(BIN)/python $< $(VENV)/vllm
	@touch $@

$(VENV)/.benched: $(VENV)/.developed
	$(PIP) -e '.[benchmarks]'
	@touch $@
