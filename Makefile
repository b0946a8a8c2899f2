# `make demo`, `make test` and `make check` set up what they need, once: .venv, with every package pinned in
# envs/constraints.txt. `check` is what to run after each change, `test` is everything.

PYTHON ?= python3
# nproc would take OMP_NUM_THREADS, which is of one process, for the machine's cores.
CORES ?= $(shell env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
BIN := $(CURDIR)/.venv/bin
READY := .venv/ready
TRITON := $(if $(filter Linux,$(shell uname -s)),.venv/triton/ready)  # there is none for others

# Tests run side by side, two more of them than cores, for some wait; each has one thread, or threads would wait for one
# another. What they compare are the digits of CPUs: whatever GPUs there are, they do not see them. Some thousand
# processes of gigapipe are started: its modules are compiled once, whatever the environment says.
SIDE_BY_SIDE = -n $$(($(CORES) < 7 ? $(CORES) + 2 : 8))
PYTEST_HERE = OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= PYTHONDONTWRITEBYTECODE= PATH="$(BIN):$$PATH" python -m pytest $(SIDE_BY_SIDE)

.PHONY: demo check test lint docs

demo: $(READY)
	@echo "Phantom slides to the report. Logs are in results/logs."
	PATH="$(BIN):$$PATH" snakemake --cores $(CORES)
	@echo; cat results/comparison.md
	@if [ -e results/workflow/time.txt ]; then echo; cat results/workflow/time.txt; fi
	@echo; echo "Table: results/comparison.tsv   Figures: results/figures   Report: results/report.html"

# These do not wait, and each process imports for five seconds before the first test.
check: SIDE_BY_SIDE = -n $$(($(CORES) < 8 ? $(CORES) : 8))
check: lint
	$(PYTEST_HERE) -m "not slow" --quiet $(PYTEST)

test: lint $(TRITON)
	$(PYTEST_HERE) $(PYTEST)

lint: $(READY)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/pyrefly check --summary=none
	$(BIN)/snakefmt --check Snakefile workflow gigapipe/workflow_folder/Snakefile

# A warning, such as a dead link, is an error.
docs: $(READY)
	PATH="$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 mkdocs build --strict
	@echo "The site is build/site/index.html"

# `ready` is written last: a set-up that was interrupted is done again.
$(READY): pyproject.toml envs/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gigapipe needs Python 3.11 or newer: make PYTHON=python3.11 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || { echo "$(PYTHON) cannot make environments: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint envs/constraints.txt --editable ".[mpi,test]"
	touch $@

# Triton runs the GPU kernels of gigapipe.spatial in its interpreter, in one test. 1 GB, in a folder of its own: who
# only runs the demo needs none.
.venv/triton/ready: $(READY)
	.venv/bin/pip install --quiet --no-deps --constraint envs/constraints.txt --upgrade --target $(@D) triton
	touch $@
