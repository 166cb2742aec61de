PYTHON ?= python3
BIN := .venv/bin
TODAY := $(shell date +%F)
FORMAT ?= table

.PHONY: demo test attack lint docs benchmark tables-offline nightly gpu-check clean

demo: .venv/demo  ## install, and score the bundled network on the bundled images
	$(BIN)/purity score
	@echo 'Next, try: $(BIN)/purity report results/resnet10_cifar_cifar10-sample'

test: .venv/test  ## everything that tests need, and all of them, on all cores
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadscope --no-loadscope-reorder

attack: .venv/test  ## a thousand damaged, hostile and unlucky inputs; minutes, and exits with 1 where one fell
	$(BIN)/python -m benchmarks.attack

lint: .venv/test
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

benchmark: .venv/test  ## ratios to the plain forward pass, captum and the released procedure; a quarter of an hour on two cores
	$(BIN)/python -m benchmarks.speed

gpu-check: .venv/test  ## the engine on a GPU, part by part: correctness, speed, ceilings, end to end
	$(BIN)/python -m benchmarks.gpu_check $(PARTS)

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
