PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint benchmark clean

demo: .venv/demo  ## install, and score the bundled network on the digits
	$(BIN)/purity score

test: .venv/test  ## everything that tests need, and all of them
	$(BIN)/pytest

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmark: .venv/test  ## ratios to the plain forward pass, captum and the released procedure; ten minutes on two cores
	$(BIN)/python -m tests.benchmark

.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/test: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@ .venv/demo

clean:
	rm -rf .venv
