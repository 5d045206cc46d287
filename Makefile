# make lab opens the course, make test proves it; make help lists the rest.
PYTHON ?= python3
LAB_ARGS ?=
# A folder of wheels made by `make wheelhouse`: install from it, without internet.
WHEELHOUSE ?=
# How many processes run the tests at once; no test depends on it.
WORKERS ?= 2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

# Only relative paths from here on, so that a folder with spaces in its name works.
RUN := .venv/bin/python -m
PYTEST = $(RUN) pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
PIP_FROM = $(if $(WHEELHOUSE),--no-index --find-links "$(WHEELHOUSE)")
ROOT_ALLOWED := $(if $(filter 0,$(shell id -u)),--allow-root)

# A stamp holds the folder it was made in: after a move, or when its Python is gone, install again.
$(shell { .venv/bin/python -c "" && [ "$$(cat .venv/.lab)" = "$$(pwd)" ]; } 2>/dev/null || rm -f .venv/.lab .venv/.test)

.PHONY: help install lab test test-deep test-quick lint format notebooks benchmarks wheelhouse clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: .venv/.lab ## create .venv and install the course, without opening it

lab: .venv/.lab ## open the course in JupyterLab (LAB_ARGS="--no-browser" passes through)
	@$(RUN) jupyterlab --ip=127.0.0.1 --LabApp.app_settings_dir=.jupyter $(ROOT_ALLOWED) \
		--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(LAB_ARGS)

test: lint ## prove the course: lint, types, unit tests, bad inputs, browser, every notebook
	@echo "pytest: the notebooks with their exercises solved, then the tests, in $(WORKERS) processes (WORKERS=...)"
	@$(PYTEST) --nbval --nbval-current-env --nbval-cell-timeout=600 tests build/notebooks

test-deep: .venv/.test ## what takes long: data made again, networks trained again, 3,000 broken models, every lie alone
	@echo "pytest: the deep tests, in $(WORKERS) processes (WORKERS=...)"
	@$(PYTEST) -m deep tests

test-quick: .venv/.test ## the unit tests without the slow ones, in a few minutes
	$(RUN) pytest -q -m "not slow and not deep and not browser" tests

lint: .venv/.test ## ruff (notebooks too) and mypy
	@echo "ruff: the rules, then the format"
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@echo "mypy: the types (half a minute the first time)"
	@$(RUN) mypy

format: .venv/.test ## put code and notebooks in shape
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

notebooks: .venv/.test ## run every notebook top to bottom and keep its outputs
	.venv/bin/python notebooks/execute.py

benchmarks: .venv/.test ## print the table of measured numbers
	.venv/bin/python tests/benchmarks

wheelhouse: .venv/.lab ## fetch every wheel into wheelhouse/; then: make lab WHEELHOUSE=wheelhouse
	$(RUN) pip wheel --wheel-dir wheelhouse ".[lab]" hatchling editables

clean: ## remove .venv and everything else that can be made again, except wheelhouse/
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -prune -exec rm -rf {} +

# The stamps are written last: an interrupted installation is taken up again by the next make.
define install_extra
@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("trtlab needs Python 3.11, \
	3.12 or 3.13, and $(PYTHON) is %d.%d. If you have another: make $(MAKECMDGOALS) PYTHON=python3.12" % v)' \
	|| { echo "No usable Python: set one with PYTHON=." >&2; exit 1; }
@.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
@rm -f .venv/.lab .venv/.test
@echo "Installing trtlab[$(1)] into .venv: a few minutes and 0.5 GB (3 GB with the CUDA build of PyTorch) the first time."
@$(RUN) pip install $(if $(CI),--quiet) --disable-pip-version-check $(PIP_FROM) -e ".[$(1)]"
endef

.venv/.lab: pyproject.toml
	$(call install_extra,lab)
	@pwd > $@

.venv/.test: pyproject.toml
	$(call install_extra,test)
	@pwd > .venv/.lab
	@pwd > $@
