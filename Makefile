# make quickstart   the whole pipeline on Adroit door, on a fresh machine, in minutes
# make test         lint, types and tests, on a fresh machine
# make results      tables and figures in results/ again, from its records, outputs/ and data/
SHELL := /bin/bash
PYTHON := .venv/bin/python
QUICK := env=adroit_door preset=quick

.PHONY: quickstart test lint results setup

quickstart: setup
	$(PYTHON) -m sodp3d.tools.doctor
	$(PYTHON) data_collection/collect.py $(QUICK)
	$(PYTHON) data_collection/convert.py $(QUICK)
	$(PYTHON) train.py mode=pretrain obs=pointcloud $(QUICK)
	$(PYTHON) train.py mode=finetune obs=pointcloud $(QUICK)
	$(PYTHON) train.py mode=eval obs=pointcloud $(QUICK)
	$(PYTHON) replay.py data=data/adroit_door count=2
	$(PYTHON) -m sodp3d.tools.summary adroit_door

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
