PYTHON ?= python3
BIN := .venv/bin
TODAY := $(shell date +%F)
FORMAT ?= table
ARGS ?=
.PHONY: help demo test lint docs tables-offline nightly attack benchmark benchmark-cache benchmark-compile benchmark-grid benchmark-page \
	benchmark-precision benchmark-rate benchmark-suites benchmark-training breadth gpu-check kill-suite clean

help:  ## these targets; a benchmark takes options in ARGS: make benchmark ARGS=resnet50
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /|/' | column -t -s '|'

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

attack: .venv/test  ## a thousand damaged, hostile and unlucky inputs; exits with 1 where one fell; minutes
	$(BIN)/python -m benchmarks.attack $(ARGS)

kill-suite: .venv/test  ## suites, trainings and caches, killed a hundred times; minutes
	$(BIN)/python -m benchmarks.kill_suite $(ARGS)

breadth: .venv/test  ## counts of every family of networks against plain autograd; hours
	$(BIN)/python -m benchmarks.breadth $(ARGS)

benchmark: .venv/test  ## scoring beside the plain forward pass, captum and the released procedure; a quarter of an hour
	$(BIN)/python -m benchmarks.speed $(ARGS)

benchmark-precision: .venv/test  ## what a faster precision does to F; ten minutes
	$(BIN)/python -m benchmarks.precision $(ARGS)

benchmark-rate: .venv/test  ## what moves F, and F at a rate: image counts, sizes, layers
	$(BIN)/python -m benchmarks.rate $(ARGS)

benchmark-grid: .venv/test  ## how near F at a rate comes to exact quantiles, by the grid of thresholds
	$(BIN)/python -m benchmarks.grid $(ARGS)

benchmark-cache: .venv/test  ## reading and a suite, with and without the cache of pixels; minutes
	$(BIN)/python -m benchmarks.cache $(ARGS)

benchmark-suites: .venv/test  ## four processes on one suite, one of them killed; five minutes
	$(BIN)/python -m benchmarks.suites $(ARGS)

benchmark-training: .venv/test  ## an epoch of `purity train` beside its bare steps; five minutes
	$(BIN)/python -m benchmarks.training $(ARGS)

benchmark-compile: .venv/test  ## what torch.compile would give, of the networks in ARGS; minutes each
	$(BIN)/python -m benchmarks.compile $(ARGS)

benchmark-page: .venv/test  ## size and speed of the page of 300 results; minutes, and chromium
	$(BIN)/python -m benchmarks.report_page $(ARGS)

gpu-check: .venv/test  ## the engine on a GPU, part by part: ceilings, correctness, speed, end to end
	$(BIN)/python -m benchmarks.gpu_check $(ARGS)

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
