# Every target makes `.venv` itself and installs only what it needs, wheels alone, each of which has a hash of
# requirements/*.txt; constraints.txt pins the versions. Torch is the exception: CONTRIBUTING.md says why.
#   make demo         a real small model answers, greedy and by search, streamed side by side (first run: a few minutes)
#   make serve        the same model behind an OpenAI-compatible API (ARGS='--port 9000', CONFIG=FILE)
#   make test         the test suite          make lint         ruff, formatter, mypy, the house's rules
#   make eval-smoke   8 prompts × 4 methods, answered, judged and reported on: runs/eval/smoke/report/index.html
#   make check-slow   the real model against a naive PyTorch search           make bench      measured numbers
#   make tpu-check    compile the TPU programs for real slices, without a TPU     make setup    everything, for developing
#   make lock         write requirements/*.txt anew from constraints.txt     make licences     of all that is installed
# demo, bench and tpu-check take flags: make bench ARGS=--write-docs; demo takes PROMPT='…' too
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: help setup demo serve eval-smoke jetstream test check-slow tpu-check libtpu lint bench lock licences clean

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
HASHED := $(PIP) --no-deps --only-binary :all: --require-hashes
LOCK := pyproject.toml constraints.txt $(wildcard requirements/*.txt) | $(BIN)/python
# the lists of these extras, then the project itself, which is built by what was just installed
install = $(HASHED) $(patsubst %,--requirement requirements/%.txt,build core $(1)) && $(PIP) --no-deps --no-build-isolation --editable .
CHANNEL := channels/smollm2-onpolicy/channel.safetensors
CHECKPOINT := .cache/smollm2
# named after the channel: a checkpoint that an earlier make gave another one is imported anew
IMPORTED := $(CHECKPOINT)/.stamp-$(notdir $(CHANNEL:%/channel.safetensors=%))
LIBTPU := .cache/libtpu
TORCH := torch==2.13.0
UV := .cache/uv
COMPILE := $(UV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--constraints constraints.txt --custom-compile-command 'make lock'
CONFIG ?= configs/serve/smollm2.yaml
PROMPT ?= Suggest a simple dinner for tonight.
# the first python3 that the project supports; `make PYTHON=/path/to/python3.12 …` overrules it
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)

# programs compiled once stay compiled, over targets and runs
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found; install one or say make PYTHON=/path/to/it" >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.stamp-demo: $(LOCK)
	$(call install,gguf)
	touch $@

.venv/.stamp-lint: $(LOCK)
	$(call install,serve gguf dev)
	touch $@

.venv/.stamp-test: $(LOCK)
	$(call install,serve gguf eval test torch jetstream)
	$(PIP) --constraint constraints.txt $(TORCH)
	touch $@

.venv/.stamp-serve: $(LOCK)
	$(call install,serve gguf)
	touch $@

.venv/.stamp-jetstream: .venv/.stamp-serve
	$(HASHED) --requirement requirements/jetstream.txt
	touch $@

.venv/.stamp-eval: $(LOCK)
	$(call install,gguf eval)
	touch $@

$(LIBTPU)/.stamp: $(LOCK)
	rm -rf $(LIBTPU)
	$(HASHED) --target $(LIBTPU) --requirement requirements/libtpu.txt
	touch $@

$(IMPORTED): $(CHANNEL) .venv/.stamp-demo
	rm -rf $(CHECKPOINT)
	$(BIN)/python convert.py import smollm2 $(CHECKPOINT) --channel $(CHANNEL)
	touch $@

jetstream: .venv/.stamp-jetstream

serve: $(IMPORTED) .venv/.stamp-serve
	$(BIN)/python serve.py $(CONFIG) $(ARGS)

setup: .venv/.stamp-lint .venv/.stamp-test

demo: $(IMPORTED)
	@echo "SmolLM2-135M-Instruct answers twice: greedily, and by look-ahead search with a reward channel that was trained on"
	@echo "pairs of the model's own answers, in which what loops, drifts or is cut loses. Colour is reward."
	$(BIN)/python generate.py $(CHECKPOINT) "$(PROMPT)" --compare greedy $(ARGS)

eval-smoke: $(IMPORTED) .venv/.stamp-eval
	$(BIN)/python eval.py generate configs/eval/smoke.yaml
	$(BIN)/python eval.py judge configs/eval/judges-smoke.yaml
	$(BIN)/python eval.py report runs/eval/smoke --best-of-n best-of-4

test: .venv/.stamp-test
	$(BIN)/python -m pytest

check-slow: .venv/.stamp-test
	$(BIN)/python -m pytest -m slow -n 2 -rP tests/slow

tpu-check: .venv/.stamp-demo $(LIBTPU)/.stamp
	JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_LIBRARY_PATH=$(CURDIR)/$(LIBTPU)/libtpu/libtpu.so $(BIN)/python -m benchmarks.tpu $(ARGS)

libtpu: $(LIBTPU)/.stamp

lint: .venv/.stamp-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m tests.house

bench: .venv/.stamp-test
	$(BIN)/python -m benchmarks.run $(ARGS)

$(UV)/.stamp: | $(BIN)/python
	$(PIP) --no-deps --target $(UV) uv==0.13.9
	touch $@

# core: what the project needs; an extra's list: what it needs beyond that; torch: what it needs beyond the test's;
# build: what builds the project
lock: $(UV)/.stamp
	$(COMPILE) pyproject.toml --output-file requirements/core.txt
	for extra in serve gguf eval test dev; do \
		$(COMPILE) --extra $$extra --excludes <(echo torch) $$(sed -n 's/==.*//p' requirements/core.txt | sed 's/^/--no-emit-package /') \
			pyproject.toml --output-file requirements/$$extra.txt; done
	echo networkx | $(COMPILE) --no-deps - --output-file requirements/torch.txt
	echo setuptools | $(COMPILE) - --output-file requirements/build.txt
	echo libtpu | $(COMPILE) --no-deps - --output-file requirements/libtpu.txt
	printf '%s\n' google-jetstream==0.2.2 grpcio==1.85.1 | $(COMPILE) --no-deps - --output-file requirements/jetstream.txt

licences: .venv/.stamp-lint .venv/.stamp-test
	$(BIN)/python -m tests.licences

clean:
	rm -rf .cache build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
