# Every target makes the environment that it needs, with pip.
PYTHON ?= python3
BIN := .venv/bin
TOOLCHAINS := .venv-toolchains
# mkdocs-material announces its successor at every build.
export NO_MKDOCS_2_WARNING := 1
export OMP_NUM_THREADS ?= $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)))')
# What `make bench` measures, such as BENCH="--only latency"; all of it where left out.
BENCH ?=
# Two test processes with one thread each are faster than one with two.
WORKERS ?= $(OMP_NUM_THREADS)

.PHONY: help demo test slow check format docs figures bench bench-training parity toolchains clean

help:  ## Show the targets.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

.venv/pip: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

.venv/app: .venv/pip pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	touch $@

.venv/dev: .venv/app
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

demo: .venv/app  ## Train, measure and use a network on the emoji that ship with the package.
	$(BIN)/phiscale demo --out demo

test: .venv/dev  ## Run the tests, but for the slow ones.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

slow: .venv/dev  ## Run the slow tests.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) -m slow

check: .venv/dev  ## Lint, types, the dependency rule, and the docs' build.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet

format: .venv/dev  ## Put the code into its form.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/dev  ## Build the documentation into site/.
	$(BIN)/mkdocs build --strict

figures: .venv/app  ## Draw the pictures of README and docs again.
	$(BIN)/phiscale scale efficientnet_b0 --macs 1.5G --plot docs/images/compound-scaling.png

bench: .venv/dev  ## Measure this project and its peers, and write docs/benchmarks.md.
	$(BIN)/python -m benchmarks.inference $(BENCH); ended=$$?; \
	$(BIN)/python tools/make_benchmark_page.py && exit $$ended

bench-training: .venv/dev  ## Measure training beside timm and torchvision, and write docs/training_benchmarks.md.
	$(BIN)/python -m benchmarks.training $(BENCH); ended=$$?; \
	$(BIN)/python tools/make_training_page.py && exit $$ended

parity: .venv/dev  ## Compare with every publisher's networks, and write docs/weights-parity.md.
	OMP_NUM_THREADS=1 $(BIN)/python tools/make_parity_table.py

$(TOOLCHAINS)/done: constraints-toolchains.txt pyproject.toml
	test -x $(TOOLCHAINS)/bin/python || $(PYTHON) -m venv $(TOOLCHAINS)
	$(TOOLCHAINS)/bin/python -m pip install --quiet --upgrade pip
	$(TOOLCHAINS)/bin/python -m pip install --quiet --constraint constraints-toolchains.txt \
		--editable '.[deploy,executorch,litert,coreml]' pytest pytest-timeout hypothesis
	touch $@

# anyio, which comes along, brings a plugin for pytest whose imports warn, and warnings are errors.
toolchains: $(TOOLCHAINS)/done  ## Test the heavy export toolchains in an environment of their own.
	OMP_NUM_THREADS=1 $(TOOLCHAINS)/bin/python -m pytest -p no:anyio -m 'slow or not slow' tests/deploy/toolchains

clean:  ## Remove what the other targets made.
	rm -rf .venv $(TOOLCHAINS) site demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
