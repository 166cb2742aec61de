PYTHON ?= python3
BIN := .venv/bin
TODAY := $(shell date +%F)
FORMAT ?= table
ARGS ?=
# target -> what it runs as `python -m benchmarks.NAME $(ARGS)`
attack := attack
benchmark := speed
benchmark-cache := cache
benchmark-compile := compile
benchmark-page := report_page
benchmark-precision := precision
benchmark-suites := suites
benchmark-training := training
breadth := breadth
gpu-check := gpu_check
kill-suite := kill_suite
BENCHMARKS := attack benchmark benchmark-cache benchmark-compile benchmark-page benchmark-precision benchmark-suites \
	benchmark-training breadth gpu-check kill-suite

.PHONY: help demo test lint docs tables-offline nightly clean $(BENCHMARKS)

help:  ## these targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /|/' | column -t -s '|'
	@echo 'Benchmarks, with options in ARGS (make benchmark ARGS=--help): $(BENCHMARKS)'

demo: .venv/demo  ## install, and score the bundled network on the bundled images
	$(BIN)/purity score
	@echo 'Next, try: $(BIN)/purity report results/resnet10_cifar_cifar10-sample'

test: .venv/test  ## everything that tests need, and all of them, on all cores
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadscope --no-loadscope-reorder

lint: .venv/test  ## ruff, mypy, and the contracts between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/test  ## docs/commands.md and the README's example, from the commands
	$(BIN)/python -m tests.cli.reference

tables-offline: .venv/test  ## a suite of what is at hand, beside values known of it; two minutes on two cores
	$(BIN)/purity bench configs/smoke.yaml

nightly: .venv/test  ## tonight's suite, compared with the night before; exits with 4 where a value moved
	@$(BIN)/purity bench configs/nightly.yaml --output results/nightly/$(TODAY) >&2; bench=$$?; \
	if [ $$bench -ne 0 ] && [ $$bench -ne 3 ]; then exit $$bench; fi; \
	$(BIN)/purity diff --nightly results/nightly --format $(FORMAT) && exit $$bench

# Each says in its first lines what it measures and what it takes.
$(BENCHMARKS): .venv/test
	$(BIN)/python -m benchmarks.$($@) $(ARGS)

.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/test: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@ .venv/demo

clean:  ## remove .venv
	rm -rf .venv
