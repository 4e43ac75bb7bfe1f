# Two commands from a fresh checkout; each makes the virtual environment first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: test lint clean

test: $(VENV)/ready
	$(BIN)/ruff check kd tests
	$(BIN)/ruff format --check kd tests
	$(BIN)/python -m pytest

lint: $(VENV)/ready
	$(BIN)/ruff check --fix kd tests
	$(BIN)/ruff format kd tests

$(VENV)/ready: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) runs
