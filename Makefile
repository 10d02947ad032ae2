# The two commands of the README. Both can be repeated, need no GPU, no account and no data set.

PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
export PYTHONUNBUFFERED := 1

.PHONY: help demo test check install clean
help:
	@echo "make demo   the default workflow on procedural scenes, in demo/ (about 25 minutes on 2 cores)"
	@echo "make test   style, types and tests (about 15 minutes on 2 cores)"
	@echo "make check  style and types alone"
	@echo "make clean  remove demo/ and the environment; your data and results stay"

# A marker newer than the pins says that the environment is complete.
$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "found $$($(PYTHON) --version), need Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 2; }
	@echo "installing the pinned packages into .venv (once; about 6 GB, a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
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
	@PATH="$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 --dist loadscope

clean:
	rm -rf demo .venv
