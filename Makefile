# make quickstart   the whole pipeline on Adroit door, on a fresh machine, in minutes; its last line is the report's path
# make test         lint, types and tests, on a fresh machine
# make results      tables and plots in docs/results again, from outputs/ and data/
SHELL := /bin/bash
PYTHON := .venv/bin/python
QUICK := env=adroit_door preset=quick

.PHONY: quickstart test lint results setup

quickstart: setup
	.venv/bin/sodp3d doctor
	$(PYTHON) data_collection/collect.py $(QUICK)
	$(PYTHON) data_collection/convert.py $(QUICK)
	$(PYTHON) train.py mode=pretrain obs=pointcloud $(QUICK)
	$(PYTHON) train.py mode=finetune obs=pointcloud $(QUICK)
	.venv/bin/sodp3d summary adroit_door
	.venv/bin/sodp3d report adroit_door

test: setup lint
	$(PYTHON) -m pytest --numprocesses 2

lint: setup
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

results: setup
	$(PYTHON) -m sodp3d.results

setup:
	@.ci/setup.sh
