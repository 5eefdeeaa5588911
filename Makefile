# Everything works from a fresh clone: each target first makes .venv, once, through scripts/bootstrap.sh.
#   make test ARGS="tests/test_wrap.py -k unwrap"      ARGS goes to the command behind a target
SHELL := /usr/bin/env bash
BIN := .venv/bin
ARGS ?=
STAMP := .venv/.stamp
# No test and no document may need the network, and none may depend on what a hub serves today. Tests run side by side:
# threads of their own would only get in each other's way, by a factor of six.
ALONE := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
# Always the same examples, so that nothing fails by chance; plain pytest looks for new ones.
SAME := --hypothesis-seed=0

.DEFAULT_GOAL := help
.PHONY: help setup demo test mutants lint format types layers metrics record docs lowest libero wheels check portable kills fuzz full bench bench-full freeze clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## make .venv with the core, the plugins and all tools

$(STAMP): pyproject.toml $(wildcard plugins/*/pyproject.toml) constraints.txt scripts/bootstrap.sh scripts/lib.sh
	scripts/bootstrap.sh

demo: $(STAMP) ## run the demonstration (ARGS="--help" lists its options)
	$(BIN)/sfkit demo $(ARGS)

test: $(STAMP) ## run all tests, with the coverage of sfkit and sfkit-backbones
	$(ALONE) $(BIN)/pytest -n 2 $(SAME) --cov --cov-report=term $(ARGS)

mutants: $(STAMP) ## take each protection out of a copy, and see that its tests fail (ARGS="6 24": these faults)
	$(ALONE) $(BIN)/python tests/mutations $(ARGS)

lint: $(STAMP) ## check style, formatting and words
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/words.py

format: $(STAMP) ## mend style and formatting where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## check types: the core, its tools and stand-ins for Python 3.10, all plugins for 3.12
	$(BIN)/mypy
	for standins in plugins/*/tests/support; do $(BIN)/mypy $$standins || exit; done
	$(BIN)/mypy --python-version 3.12 plugins/*/src

layers: $(STAMP) ## check that imports go down only
	$(BIN)/lint-imports --no-cache

metrics: $(STAMP) ## print size, scatter and wording of the code beside their goals; fail where one gets worse
	$(BIN)/python scripts/metrics --check

record: $(STAMP) ## compare how this checkout and a commit train, to the last bit (ARGS="--against main")
	$(BIN)/python scripts/record_training $(ARGS)

docs: $(STAMP) ## build the documentation into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lowest: ## test the wheels of core and old-release plugins on Python 3.10 with the oldest supported releases
	scripts/lowest.sh $(ARGS)

libero: ## test what needs the LIBERO simulator, in an environment of its own (1.3 GB, ten minutes)
	scripts/libero.sh $(ARGS)

wheels: $(STAMP) ## build every wheel and look inside
	scripts/wheels.sh

check: ## all that CI does
	.ci/run

portable: $(STAMP) ## run the tests that compare numbers under other kernels, with one thread and with two
	$(BIN)/python scripts/portable.py $(ARGS)

kills: $(STAMP) ## kill 200 processes while they save and 50 while they build a store, and look at what they leave
	SFKIT_KILLS=200 $(ALONE) $(BIN)/pytest -q tests/saving/test_killed_saves.py $(ARGS)
	SFKIT_KILLS=50 $(ALONE) $(BIN)/pytest -q plugins/sfkit-store/tests/test_killed_builds.py $(ARGS)

fuzz: $(STAMP) ## give 100,000 hostile inputs to all parsers; only sfkit's own errors may come out
	$(ALONE) $(BIN)/python tests/fuzz $(ARGS)

full: portable kills fuzz ## all that takes too long for CI

bench: $(STAMP) ## run the benchmarks
	$(BIN)/python -m benchmarks $(ARGS)

bench-full: $(STAMP) ## run those at full size (20 minutes, 10 GB of memory)
	$(BIN)/python -m benchmarks --full $(ARGS)

freeze: ## renew constraints.txt with the newest versions that fit
	scripts/bootstrap.sh --freeze

clean: ## remove what the other targets made
	rm -rf .venv .venv-lowest .venv-libero .uv site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
