# make smoke and make test set everything up by themselves; the rest is in `make help`.
PYTHON ?= python3
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
INSTALLED := $(VENV)/.installed-$(shell sha256sum docker/cpu.lock | cut -c1-12)

.DEFAULT_GOAL := help
.PHONY: help smoke test lint lock doctor audit sbom check-train-image bench-sandbox

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 22

smoke: $(INSTALLED)  ## run the whole pipeline at toy size, in .smoke/ (RUNTIME=docker: in containers)
	$(VENV)/bin/python -m jobs smoke

test: $(INSTALLED) lint  ## lint, types and all tests
	$(VENV)/bin/python -m pytest

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

$(INSTALLED): docker/cpu.lock docker/install
	docker/install $(PYTHON) $(VENV) $(TORCH_INDEX)
	rm -f $(VENV)/.installed-*
	touch $@

lock:  ## resolve docker/*.in into docker/*.lock
	docker/lock
