# Every target sets up .venv first, by itself; what is set up already is left alone.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
READY := .venv/.ready
BIN := .venv/bin

.PHONY: help setup demo test test-slow lint clean

help:
	@echo "make setup      .venv with torch, fairseq and elseq (about 5 minutes, once)"
	@echo "make demo       train a small summarizer on docstrings and decode it three ways (about 5 minutes)"
	@echo "make test       the tests"
	@echo "make test-slow  the tests that take longer"
	@echo "make lint       ruff"
	@echo "make clean      remove .venv and what the demo made"
	@echo "Options: PYTHON=python3.12  CONSTRAINTS=my-constraints.txt"

setup: $(READY)

$(READY): pyproject.toml setup.py scripts/setup.sh $(CONSTRAINTS)
	@PYTHON="$(PYTHON)" bash scripts/setup.sh "$(CONSTRAINTS)"

demo: $(READY)
	@bash recipes/demo.sh

test: $(READY)
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv demo_output
