# `make demo` and `make test` set up what they need, once: .venv, with every package pinned in envs/constraints.txt.

PYTHON ?= python3
CORES ?= $(shell nproc)
BIN := $(CURDIR)/.venv/bin
READY := .venv/ready

.PHONY: demo test

demo: $(READY)
	@echo "Phantom slides to the report: about 6 minutes on 2 cores. Logs are in results/logs."
	PATH="$(BIN):$$PATH" snakemake --cores $(CORES) --quiet rules
	@echo; cat results/comparison.md
	@echo; echo "Table: results/comparison.tsv   Figures: results/figures   Report: results/report.html"

# What the tests compare are the digits of CPUs: whatever GPUs there are, they do not see them.
test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/snakefmt --check Snakefile workflow
	CUDA_VISIBLE_DEVICES= PATH="$(BIN):$$PATH" python -m pytest $(PYTEST)

# `ready` is written last: a set-up that was interrupted is done again.
$(READY): pyproject.toml envs/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gigapipe needs Python 3.11 or newer: make PYTHON=python3.11 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || { echo "$(PYTHON) cannot make environments: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint envs/constraints.txt --editable ".[mpi,clusters,test]"
	touch $@
