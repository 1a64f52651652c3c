# Two commands do everything: `make search` and `make test`. Each builds the environment first if it is not there yet.
PYTHON ?= python3.11
VENV := $(if $(MIXTUNE_VENV),$(MIXTUNE_VENV),.venv)
RUN := "$(VENV)/bin/python"
SPACE ?= search_spaces/digits.yaml
ARGS ?=

.PHONY: setup search test test-anywhere test-slow check format docs

# Build the environment $(1) from the pins in $(2). It is complete when its stamp equals them; a half-built one is built again.
define build
	@if ! cmp -s $(2) "$(1)/requirements.installed"; then \
	  set -e; \
	  command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: name another with PYTHON=python3.12"; exit 2; }; \
	  echo "building the environment in $(1)$(3)"; \
	  $(PYTHON) -m venv "$(1)"; \
	  "$(1)/bin/python" -m pip install --quiet --disable-pip-version-check -r $(2); \
	  cp $(2) "$(1)/requirements.installed"; \
	fi
endef

setup:
	$(call build,$(VENV),requirements.txt, (about 8 GB: a few minutes))

search: setup
	@$(RUN) -m mixtune.search --space "$(SPACE)" $(ARGS)

# Two processes with one thread of arithmetic each are faster than one process with two.
test: setup
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist worksteal $(ARGS)

# What compares computed numbers, as processors with other vector units round, and with sums in another order.
# Without AVX-512 the first kind is AVX2.
test-anywhere: setup
	@set -e; for isa in NATIVE=1 "ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2" \
	    "ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default"; do for threads in 1 2; do \
	  echo "$$isa OMP_NUM_THREADS=$$threads"; \
	  env $$isa OMP_NUM_THREADS=$$threads \
	    $(RUN) -m pytest -q -n 2 --dist worksteal -m "arithmetic and not slow and not gpu" $(ARGS); \
	done; done

test-slow: setup
	@$(RUN) -m pytest -q -m slow $(ARGS)

check: setup
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

format: setup
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

# docs/ as a site in site/, built by tools in an environment of their own.
docs:
	$(call build,$(VENV)-docs,docs/requirements.txt,)
	@NO_MKDOCS_2_WARNING=1 "$(VENV)-docs/bin/python" -m mkdocs build --strict --quiet
	@echo "site/index.html"
