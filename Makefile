# Each verb does its own set-up: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help install compile demo test check format bench clean

help: ## list the verbs
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## virtual environment with the pinned versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (the first time this takes a few minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

compile: $(STAMP) ## the gateway's hot path as machine code: up to twice the requests a second
	@$(BIN)/python -m gateway compile

demo: $(STAMP) ## the whole loop: train, publish, serve, hot reload and a kill under load
	@$(BIN)/python examples/digits/demo.py

test: $(STAMP) ## the whole test suite, file by file, on two processes
	@$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(STAMP) ## formatting, lint, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(STAMP) ## rewrite to the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(STAMP) ## list the benchmarks; run one with `.venv/bin/python -m bench run NAME`
	@$(BIN)/python -m bench list

clean: ## remove what the verbs made
	rm -rf $(VENV) runs build .mypy_cache .ruff_cache .pytest_cache .hypothesis
