# Everything runs in an environment of its own, .venv, that is made from constraints.txt on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
CONSTRAINTS := $(VENV)/constraints.txt

.PHONY: demo test test-all test-oldest lint types bench experiments docs clean

demo: $(VENV)/installed
	$(BIN)/shrinkage demo

test: $(VENV)/installed
	$(BIN)/pytest -n auto --dist loadgroup -m "not slow"

test-all: $(VENV)/installed
	$(BIN)/pytest -n auto --dist loadgroup

# The same tests with the oldest torch that is supported.
test-oldest:
	$(MAKE) test VENV=.venv-oldest TORCH=2.11.0

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

# make bench BENCH="--quick", or BENCH="tables --model GPT-2-small"
bench: $(VENV)/bench
	$(BIN)/python -m benchmarks $(BENCH)

experiments: $(VENV)/installed
	$(BIN)/python -m benchmarks.experiments

docs: $(VENV)/installed
	$(BIN)/python docs/build.py

clean:
	rm -rf $(VENV) .venv-oldest runs

$(CONSTRAINTS): constraints.txt
	mkdir -p $(VENV)
	sed 's/^torch==.*/torch==$(TORCH)/' constraints.txt > $@

# torch comes first and pinned, so that no other package pulls in a second build of it. torchvision, whose models are
# tested, stands aside: next to a build of torch that is not its own, everything that imports it would fail.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint $(CONSTRAINTS) torch
	$(BIN)/pip install --constraint $(CONSTRAINTS) --editable '.[cli,export,lightning,transformers,dev]'
	$(BIN)/pip install --constraint $(CONSTRAINTS) --no-deps --upgrade --target $(VENV)/aside torchvision
	touch $@

# The packages of others that `make bench` measures beside this one.
$(VENV)/bench: $(VENV)/installed
	$(BIN)/pip install --constraint $(CONSTRAINTS) --editable '.[bench]'
	touch $@
