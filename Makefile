# `make run` does the main job, `make test` proves it; each sets up what it needs in .venv.
PYTHON ?= python3
PY := .venv/bin/python
SOURCES := dipsim policies tests benchmarks docs

.PHONY: run test fuzz faults mutants check cover docs model clean

run: .venv/core
	$(PY) -m dipsim run

test: .venv/dev
	$(PY) -m pytest -n 2 --dist loadgroup

fuzz: .venv/dev
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(PY) -m fuzz

check: .venv/dev
	$(PY) -m ruff check $(SOURCES)
	$(PY) -m ruff format --check $(SOURCES)
	$(PY) -m mypy

cover: .venv/dev
	$(PY) -m pytest -n 2 --dist loadgroup --cov=dipsim --cov=policies --cov-report=term-missing:skip-covered

faults: .venv/dev
	$(PY) tests/faults.py

mutants: .venv/dev
	$(PY) tests/mutants.py

docs: .venv/docs
	$(PY) -m mkdocs build --strict

model: .venv/core
	$(PY) -m dipsim.live.smollm2

clean:
	rm -rf .venv build dist site *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/core: pyproject.toml | .venv/bin/python
	$(PY) -m pip install --quiet --editable .
	touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[live,dev]"
	touch $@ .venv/core

.venv/docs: pyproject.toml constraints.txt | .venv/bin/python
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@ .venv/core
