# Each target makes what it needs; all work twice in a row and from a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test check fix demo bench screens clean

run: $(VENV)/.run  ## open the dashboard on 127.0.0.1
	$(BIN)/streamlit run app.py

test: $(VENV)/.dev  ## every test, the browser's too
	$(BIN)/python tests/chromium.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder  # a file stays with one of as many workers as there are cores; tests/conftest.py says which file comes first

check: $(VENV)/.dev  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(VENV)/.dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(VENV)/.run  ## 600 steps of the text task without a browser, exported to runs/demo
	$(BIN)/python -m moe_core train --task text --steps 600 --w-importance 0 --w-load 0 --run-id demo
	$(BIN)/python -m moe_core export demo --out runs/demo/export

bench: $(VENV)/.run  ## the MoE layer beside sort + grouped_mm
	$(BIN)/python -m moe_core bench layer

screens: $(VENV)/.dev  ## screenshots of every page from a real run, into docs/screens
	$(BIN)/python tests/chromium.py
	$(BIN)/python tests/browser/screens.py

clean:  ## remove the environment; runs stay
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt | $(VENV)/bin/python
	@echo "Installing the requirements: the first time a few minutes and about 2 GB, most of it torch."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.dev: requirements.txt requirements-dev.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ $(VENV)/.run
