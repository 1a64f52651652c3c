# Two commands do everything: `make search` and `make test`. Each builds the environment first if it is not there yet.
PYTHON ?= python3.11
VENV := $(if $(MIXTUNE_VENV),$(MIXTUNE_VENV),.venv)
RUN := "$(VENV)/bin/python"
SPACE ?= search_spaces/digits.yaml
ARGS ?=

.PHONY: setup search test test-slow check format

# The environment is complete when its stamp equals requirements.txt; a half-built one is built again.
setup:
	@if ! cmp -s requirements.txt "$(VENV)/requirements.installed"; then \
	  set -e; \
	  command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: name another with PYTHON=python3.12"; exit 2; }; \
	  echo "building the environment in $(VENV) (a few minutes, about 8 GB)"; \
	  $(PYTHON) -m venv "$(VENV)"; \
	  $(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt; \
	  cp requirements.txt "$(VENV)/requirements.installed"; \
	fi

search: setup
	@$(RUN) -m mixtune.search --space "$(SPACE)" $(ARGS)

# Two processes with one thread of arithmetic each are faster than one process with two.
test: setup
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist worksteal $(ARGS)

test-slow: setup
	@$(RUN) -m pytest -q -m slow $(ARGS)

check: setup
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

format: setup
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .
