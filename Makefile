# Everything that a fresh machine with Python >= 3.11 needs. `make demo` is the tour, `make test` the tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/installed

.PHONY: demo envs test lint types clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[torch,openvino,tensorrt,peers,dev]'
	touch $(INSTALLED)

demo: $(INSTALLED)
	cd examples/01-resnet-and-bert && ../../$(BIN)/infconv run resnet50.yaml
	cd examples/01-resnet-and-bert && ../../$(BIN)/infconv run bert-base.yaml

# The frameworks that the tests of their frontends need; one that is there and up to date costs nothing.
envs: $(INSTALLED)
	$(BIN)/infconv env create tensorflow
	$(BIN)/infconv env create paddle

test: $(INSTALLED) envs
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) build dist examples/*/out
