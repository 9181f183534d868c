PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
STAMP := .venv/elseq.stamp
export PYTHON CONSTRAINTS

.PHONY: help setup demo test test-quick test-slow test-gpu lint clean

help:
	@echo "make setup      set up .venv, or repair it (PYTHON=python3.12, CONSTRAINTS=my-versions.txt)"
	@echo "make demo       train a small Transformer and decode with it under stock fairseq, kv and el"
	@echo "make test       run the tests"
	@echo "make test-quick run, in a minute, a few cases of each test that runs no command"
	@echo "make test-slow  run the tests that take minutes"
	@echo "make test-gpu   run the tests that need a CUDA device"
	@echo "make lint       check the style"
	@echo "make clean      remove .venv and everything made by the demo and the tests"

setup:
	@bash scripts/setup.sh

$(STAMP): pyproject.toml setup.py scripts/setup.sh $(shell find elseq -name '*.[ch]pp') $(CONSTRAINTS)
	@bash scripts/setup.sh

demo: $(STAMP)
	@bash recipes/demo.sh

test: $(STAMP)
	.venv/bin/python -m pytest --numprocesses auto --dist worksteal --durations 25

test-quick: $(STAMP)
	.venv/bin/python -m pytest --numprocesses auto --dist worksteal --quick

test-slow: $(STAMP)
	.venv/bin/python -m pytest -m "slow and not gpu"

test-gpu: $(STAMP)
	.venv/bin/python -m pytest -m gpu

lint: $(STAMP)
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .

clean:
	rm -rf .venv demo_output build dist *.egg-info elseq/*.so .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
