# Needs Python 3.11 or newer with venv and pip, nothing else. Everything is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= configs/smoke.yaml

# One process on the CPU, without an accelerate configuration file.
LAUNCH := ACCELERATE_USE_CPU=true $(BIN)/accelerate launch --quiet \
  --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no -m cedkv

.PHONY: help install demo test test-slow lint format stories clean

help:
	@echo "make demo       install, run $(CONFIG) (Phase 2, then Phase 3), judge from the log"
	@echo "make test       lint, types, layers and the fast tests"
	@echo "make test-slow  the slow tests"
	@echo "make lint       ruff, mypy and import-linter alone"
	@echo "make stories    make build/stories/ from ../shared and run configs/stories.yaml on it"
	@echo "make clean      remove caches and build output (keeps .venv and mlruns)"

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("cedkv needs Python 3.11 or newer; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,peers]'
	touch $@

# Phase 2, then Phase 3, then the verdict read back from the log. A gate that fails is a result, not an error.
define TRAIN_AND_JUDGE
	$(LAUNCH) --config $(1) --phase 2 --phase3-strict-hf
	$(LAUNCH) --config $(1) --phase 3 --phase3-strict-hf
	@echo
	@$(BIN)/cedkv gate --latest; echo "exit status of cedkv gate: $$? (0 pass, 10 failed, 11 inconclusive)"
	@echo
	@echo "all runs    $(BIN)/cedkv dashboard    or MLflow's own pages: $(BIN)/cedkv ui"
	@echo "the report  $(BIN)/cedkv report --latest    as a page: --html report.html"
	@echo "the memory  $(BIN)/cedkv memory export --latest    try it: $(BIN)/cedkv generate RUN_ID PROMPT --state NAME"
endef

demo: install
	$(call TRAIN_AND_JUDGE,$(CONFIG))

stories: install
	$(BIN)/python scripts/make_stories.py
	$(call TRAIN_AND_JUDGE,configs/stories.yaml)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow"

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
