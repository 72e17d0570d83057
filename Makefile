# Two commands are enough: `make demo` and `make test`. Each installs first if need be.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check slow bench clean

install: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/transferbench pretrain --all --board demo
	$(BIN)/transferbench evaluate --all --board demo
	$(BIN)/transferbench leaderboard --board demo

# A core each: tensors of a few rows gain nothing from two threads. A file stays on one core, so
# that what its tests share is made once.
test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: install
	$(BIN)/pytest -m slow --timeout 3600

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
