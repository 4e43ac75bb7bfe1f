# Two commands from a fresh checkout; each makes the virtual environment first.
# It is made by the first of these that is Python 3.11 or newer; `make app PYTHON=/path/to/python` names another.
PYTHON ?= python3 python3.11 python3.12 python3.13 python3.14 python
VENV := .venv
BIN := $(VENV)/bin

AXE := $(VENV)/axe.min.js
CHROMIUM := /usr/bin/chromium
# The engine that runs a student in a visitor's browser. kd/system/browser_runtime.py looks for this version, there.
ORT_WEB := onnxruntime-web@1.30.0
RUNTIME := $(VENV)/$(subst @,-,$(ORT_WEB))/ort-wasm-simd-threaded.wasm
# The tests that `make test` runs.
MARKED := not slow

.PHONY: app test test-all lint clean

app: $(VENV)/ready $(RUNTIME)
	$(BIN)/python app.py

test: $(VENV)/ready $(CHROMIUM) $(AXE) $(RUNTIME)
	$(BIN)/ruff check kd tests app.py
	$(BIN)/ruff format --check kd tests app.py
	$(BIN)/python -m pytest -m "$(MARKED)"

# With the sweeps that `make test` leaves out.
test-all: MARKED :=
test-all: test

lint: $(VENV)/ready
	$(BIN)/ruff check --fix kd tests app.py
	$(BIN)/ruff format kd tests app.py

# With pip, which a virtual environment that could not be finished lacks.
$(BIN)/pip:
	@for python in $(PYTHON); do \
		version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>&1) || continue; \
		if ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
			found="$$found $$python is Python $$version, which is too old."; \
		elif ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
			found="$$found $$python is Python $$version but cannot make virtual environments:"; \
			found="$$found it lacks ensurepip (Debian: apt-get install python$$version-venv)."; \
		else \
			"$$python" -m venv $(VENV); exit; \
		fi; \
	done; \
	echo "Python 3.11 or newer is needed, and none was found that can be used (tried: $(PYTHON)).$$found" \
		"Install one, or name it: make PYTHON=/path/to/python app" >&2; \
	exit 1

$(VENV)/ready: requirements.txt pyproject.toml | $(BIN)/pip
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

# The tests of the page: a browser, and axe-core, which they do without where npm is missing.
$(CHROMIUM):
	apt-get update -qq && apt-get install -y -qq chromium

$(AXE): $(VENV)/ready
	-cd $(VENV) && npm pack --silent axe-core@4 && tar -xzf axe-core-*.tgz --strip-components=1 package/axe.min.js && rm axe-core-*.tgz
	-touch -c $@

# Without npm the page says that it cannot run students in the browser, and what to do about it.
$(RUNTIME): $(VENV)/ready
	-mkdir -p $(@D) && cd $(@D) && npm pack --silent $(ORT_WEB) \
		&& tar -xzf onnxruntime-web-*.tgz --strip-components=2 package/dist/ort.wasm.bundle.min.mjs package/dist/$(@F) \
		&& rm onnxruntime-web-*.tgz
	-touch -c $@

clean:
	rm -rf $(VENV) runs
