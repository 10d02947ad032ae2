# The two commands of the README. Both can be repeated, need no GPU, no account and no data set.

PYTHON ?= python3
# Without CUDA: make demo CPU=1 TORCH_INDEX=<address of PyTorch's CPU packages> (docs/install.md).
CPU ?=
TORCH_INDEX ?=
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
export PYTHONUNBUFFERED := 1

# Formulas, parameters, what is committed: nothing that trains, starts a process for each case or needs a tool.
QUICK := tests/losses tests/methods/test_corrections.py tests/evaluation/test_confusion.py tests/test_params.py \
         tests/test_oracles.py tests/test_committed.py

.PHONY: help demo test check quick plan-check gpu-check small fuzz rehearsal audit lock drill install clean
help:
	@echo "make demo   the default workflow on procedural scenes, in demo/ (about 12 minutes on 2 cores)"
	@echo "make test   style, types and tests (about 16 minutes on 2 cores)"
	@echo "make quick  formulas and parameters alone (under a minute): while you write"
	@echo "make check  style and types alone"
	@echo "make gpu-check PYTHON=python3  where there is a GPU: tests, bits and speed in 8 minutes; needs torch, torchvision, timm, pytest"
	@echo "make small  the whole workflow with two steps of training, in small/"
	@echo "make plan-check  every benchmark plans without data; every method's step on every network, on tensors that claim to be on a GPU"
	@echo "make fuzz   thousands of bad inputs (N=10000 SECONDS=1500 SEED=0)"
	@echo "make rehearsal  every benchmark on licensed data, on generated stand-ins (B=gta2cityscapes: that one)"
	@echo "make audit  known holes of the pinned packages, where an index is in reach"
	@echo "make lock   hashes of the pinned packages anew, after a pin was changed"
	@echo "make drill N=20 SEED=0  hurt the workflow N times at random and compare what comes out (ROUND=17: that one again)"
	@echo "make clean  remove demo/ and the environment; your data and results stay"

# A marker newer than the pins says that the environment is complete.
$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "found $$($(PYTHON) --version), need Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 2; }
	@test -z "$(CPU)" -o -n "$(TORCH_INDEX)" || \
	  { echo "found CPU=$(CPU) without TORCH_INDEX, expected the address of PyTorch's CPU packages: docs/install.md"; exit 2; }
	@echo "installing the pinned packages into .venv (once; $(if $(CPU),without CUDA,about 6 GB), a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python .ci/cpu-lock requirements.lock $(VENV)/cpu.lock > $(VENV)/torch.pins
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	  -r $(if $(CPU),$(VENV)/cpu.lock,requirements.lock)
	@$(if $(CPU),$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --index-url "$(TORCH_INDEX)" \
	  -r $(VENV)/torch.pins,true)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

install: $(VENV)/installed

# A clone of what is committed, so that results never mix with work in progress and git stays clean here.
# The clone's own code runs (PYTHONPATH), and a clone of another revision is made anew.
demo: $(VENV)/installed
	@git diff --quiet HEAD || echo "note: the demo runs what is committed; your uncommitted changes are not in it"
	@test "$$(git -C demo rev-parse HEAD 2>/dev/null)" = "$$(git rev-parse HEAD)" || \
	  { rm -rf demo && git clone --quiet "$(CURDIR)" demo; }
	@cd demo && export PATH="$(BIN):$$PATH" PYTHONPATH="$$PWD/src" && \
	  snakemake --cores all && python -m udaseg record && \
	  echo && cat results/streets/summary.md && echo && \
	  echo "report: demo/results/streets/report.html (open it in a browser)" && \
	  echo "scores: demo/results/streets/   figures: demo/figures/streets/"

check: $(VENV)/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@PATH="$(BIN):$$PATH" $(BIN)/snakefmt --check Snakefile workflow
	@$(BIN)/mypy

test: check
	@PATH="$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

quick: $(VENV)/installed
	@PATH="$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 $(QUICK)

plan-check: $(VENV)/installed
	@PATH="$(BIN):$$PATH" $(BIN)/python -m pytest tests/workflow/test_plan.py -k "i_21 or i_22"
	@PATH="$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 tests/bench/grid.py

# With any Python that has torch, torchvision, timm and pytest: no .venv, no network, eight minutes, one JSON.
gpu-check:
	@$(PYTHON) tests/gpu/gpu_check.py --out gpu-check.json

# As the demo, on .test/params.yaml: the road, not the results.
small: $(VENV)/installed
	@rm -rf small && git clone --quiet "$(CURDIR)" small && cp .test/params.yaml small/params.yaml
	@cd small && export PATH="$(BIN):$$PATH" PYTHONPATH="$$PWD/src" && \
	  snakemake --cores all && python -m udaseg record && dvc status && snakemake -n --quiet rules

# Each case is accepted and right, or refused in one line; what fails says how to play it again alone.
SECONDS ?= 1500
SEED ?= 0
fuzz: $(VENV)/installed
	@PYTHONPATH="$(CURDIR)/src" $(BIN)/python tests/fuzz/fuzz.py --cases $(or $(N),10000) --seconds $(SECONDS) --seed $(SEED)

# From delivered files to the page, two steps of training, true image sizes: docs/reproduce.md.
B ?=
rehearsal: $(VENV)/installed
	@$(BIN)/python tests/rehearsal/rehearsal.py $(B)

audit:
	@$(PYTHON) .ci/audit

lock:
	@$(PYTHON) .ci/lock

# The next N rounds that tests/drill/rounds.jsonl lacks, or ROUND again; the table of all of them goes to docs/reliability.md.
drill: $(VENV)/installed
	@PATH="$(BIN):$$PATH" $(BIN)/python tests/drill/drill.py --rounds $(or $(N),20) --seed $(SEED) $(if $(ROUND),--round $(ROUND))

clean:
	rm -rf demo small drill .venv
