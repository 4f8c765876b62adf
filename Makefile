# A fresh machine needs python3 (3.11 to 3.13), make and the package registry.

PYTHON  ?= python3
CKPT    ?= build/vgg_16.ckpt
MAPPING ?= vgg16/slim-torchvision
PYTEST  ?= -n auto --dist loadfile --randomly-seed=1

RUN   = .venv/installed
TEST  = .venv-test/installed
PIP   = -m pip --disable-pip-version-check install -qq --constraint constraints.txt
READY = $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	{ echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13; name one: make PYTHON=python3.12"; exit 1; }

.DEFAULT_GOAL = help
.PHONY: help run test test-slow faults lint format bench clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

run: $(RUN) $(filter build/vgg_16.ckpt,$(CKPT)) ## convert a full-size VGG-16 (or yours: CKPT=path) to build/, and verify it
	.venv/bin/converter plan $(CKPT) -m $(MAPPING)
	@mkdir -p build
	.venv/bin/converter convert $(CKPT) build/vgg16.safetensors -m $(MAPPING) --overwrite
	.venv/bin/converter verify $(CKPT) build/vgg16.safetensors -m $(MAPPING)
	.venv/bin/converter convert $(CKPT) build/vgg16.pt -m $(MAPPING) --overwrite
	.venv/bin/converter verify $(CKPT) build/vgg16.pt -m $(MAPPING)

test: lint ## format, lint, types and all tests but the slow ones, with the real frameworks
	.venv-test/bin/python -m pytest -m "not slow" $(PYTEST)

test-slow: $(TEST) ## the tests that take minutes or gigabytes
	HYPOTHESIS_PROFILE=explore .venv-test/bin/python -m pytest -m slow

faults: $(TEST) ## kills, full disks, crash states, damage and hostile files; PART=kills for one, half an hour for all
	.venv-test/bin/python -m tests.faults $(PART)

lint: $(TEST) ## format, lint and types, nothing changed
	.venv-test/bin/ruff format --check --quiet
	.venv-test/bin/ruff check --quiet
	.venv-test/bin/mypy

format: $(TEST) ## put the code into its format
	.venv-test/bin/ruff format
	.venv-test/bin/ruff check --fix

bench: $(RUN) ## time and memory: a VGG-16 against cp, plain NumPy and (after `make test`) the usual script; large sizes
	.venv/bin/python -m benchmarks.vgg16 --frameworks .venv-test/bin/python
	.venv/bin/python -m benchmarks.scale
	.venv/bin/python -m benchmarks.proof

clean: ## remove what this file makes
	rm -rf .venv .venv-test build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

build/vgg_16.ckpt: tests/vgg16.py benchmarks/make_vgg16.py | $(RUN)
	.venv/bin/python -m benchmarks.make_vgg16 $@

$(RUN): pyproject.toml constraints.txt
	@$(READY)
	@echo "installing into .venv (no framework)"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python $(PIP) pip
	@.venv/bin/python $(PIP) --editable '.[fast]'
	@touch $@

# tf-keras would bring a second, larger TensorFlow, torchvision is used without its compiled part, and
# of the last two only the networks are: all work without what they require.  What tests/legacy.txt
# names would not stand beside the rest, so it lies in a folder of its own.
$(TEST): pyproject.toml constraints.txt tests/legacy.txt
	@$(READY)
	@echo "installing into .venv-test (with TensorFlow and PyTorch; minutes)"
	@$(PYTHON) -m venv .venv-test
	@.venv-test/bin/python $(PIP) pip
	@.venv-test/bin/python $(PIP) --editable '.[fast]' --group lint --group test --group oracles pillow
	@.venv-test/bin/python -m pip install -qq --no-deps --upgrade --target .venv-test/legacy -r tests/legacy.txt
	@.venv-test/bin/python $(PIP) --no-deps tf-keras torchvision timm \
		deeplabcut tf-models-research-object-detection
	@touch $@
