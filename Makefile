# make demo   set up and train a small PixArt-alpha on this machine (BUDGET=minutes, default 10)
# make test   set up and run everything that CI runs

PYTHON ?= python3
BUDGET ?= 10
BIN := .venv/bin

.PHONY: install demo test lint unit slow bench clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gesso needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/gesso demo --budget $(BUDGET)

test: lint unit

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

slow: install
	$(BIN)/python -m pytest -m slow

bench: install
	for b in benchmarks/*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

clean:
	rm -rf .venv runs caches .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
