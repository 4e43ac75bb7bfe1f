# Two commands from a fresh checkout; each makes the virtual environment first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

AXE := $(VENV)/axe.min.js
CHROMIUM := /usr/bin/chromium

.PHONY: app test lint clean

app: $(VENV)/ready
	$(BIN)/python app.py

test: $(VENV)/ready $(CHROMIUM) $(AXE)
	$(BIN)/ruff check kd tests app.py
	$(BIN)/ruff format --check kd tests app.py
	$(BIN)/python -m pytest

lint: $(VENV)/ready
	$(BIN)/ruff check --fix kd tests app.py
	$(BIN)/ruff format kd tests app.py

$(VENV)/ready: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

# The tests of the page: a browser, and axe-core, which they do without where npm is missing.
$(CHROMIUM):
	apt-get update -qq && apt-get install -y -qq chromium

$(AXE): $(VENV)/ready
	-cd $(VENV) && npm pack --silent axe-core@4 && tar -xzf axe-core-*.tgz --strip-components=1 package/axe.min.js && rm axe-core-*.tgz
	-touch -c $@

clean:
	rm -rf $(VENV) runs
