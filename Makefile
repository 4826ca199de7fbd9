# make quickstart   the whole pipeline on Adroit door, on a fresh machine, in minutes, in quickstart/; its last line is the report's path
# make test         lint, types and tests, on a fresh machine
# make whole-test   the tests of whole commands, installations and renderers; .ci/run runs both
# make slow-test    the tests that take long: learning, kills, whole commands
# make coverage     the tests once more, with how much of sodp3d/ they run
# make results      tables and figures in results/ again, from its records, outputs/ and data/
# make docs         the documentation as a site, in site/
SHELL := /bin/bash
PYTHON := .venv/bin/python
QUICK := env=adroit_door preset=quick
ANY_PYTHON := $(firstword $(wildcard $(PYTHON)) python3)  # 3.11 or newer; pages need no package of ours installed
DOCS = $(shell $(ANY_PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])")

.PHONY: quickstart test whole-test slow-test lint coverage results docs setup

quickstart: export SODP3D_ROOT = quickstart
quickstart: setup
	.venv/bin/sodp3d doctor --frames 20
	$(PYTHON) data_collection/collect.py $(QUICK)
	$(PYTHON) data_collection/convert.py $(QUICK)
	$(PYTHON) train.py mode=pretrain obs=pointcloud $(QUICK)
	$(PYTHON) train.py mode=finetune obs=pointcloud $(QUICK)
	.venv/bin/sodp3d summary adroit_door
	.venv/bin/sodp3d report adroit_door

test: setup lint
	$(PYTHON) -m pytest --numprocesses 3 -m "not slow and not whole"

whole-test: setup
	$(PYTHON) -m pytest --numprocesses 2 -m "whole and not slow"

slow-test: setup
	$(PYTHON) -m pytest --numprocesses 2 -m slow

lint: setup
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports --no-logo

coverage: setup
	$(PYTHON) -m pytest --numprocesses 2 --cov --cov-report=term --cov-report=html

results: setup
	$(PYTHON) -m sodp3d.results

docs:
	@[ -x .venv-docs/bin/mkdocs ] || ($(ANY_PYTHON) -m venv .venv-docs && .venv-docs/bin/python -m pip install --quiet --disable-pip-version-check $(DOCS))
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict --quiet

setup:
	@.ci/setup.sh
