# Everything runs in an environment of its own, .venv, that is made from constraints.txt on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
CONSTRAINTS := $(VENV)/constraints.txt
PIP := $(BIN)/python -m pip install --constraint $(CONSTRAINTS)

.PHONY: demo test test-all test-matrix lint types bench experiments budgets columns docs site wheel dist clean

# make demo DEMO="--seeds 1 --epochs 8"
demo: $(VENV)/installed
	PYTHONPATH=examples $(BIN)/python -m digits $(DEMO)

test: $(VENV)/installed
	$(BIN)/pytest -n auto --dist loadgroup -m "not slow"

test-all: $(VENV)/installed
	$(BIN)/pytest -n auto --dist loadgroup

# The same tests beside another torch, in an environment of its own that is removed after them:
# make test-matrix TORCH=2.10.0, or PART=core without what needs other packages. Interrupted, it goes on where it was.
PART ?= whole
WORKERS ?= 2
MATRIX := .venv-$(TORCH)
test-matrix:
	$(MAKE) $(MATRIX)/installed VENV=$(MATRIX)
	OMP_NUM_THREADS=1 $(MATRIX)/bin/python tests/torch_versions.py --part $(PART) --workers $(WORKERS); \
	    status=$$?; rm -rf $(MATRIX); exit $$status

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

# make bench BENCH="--quick", or BENCH="tables --model GPT-2-small"
bench: $(VENV)/bench
	$(BIN)/python -m benchmarks $(BENCH)

experiments: $(VENV)/installed
	PYTHONPATH=examples $(BIN)/python -m benchmarks.experiments

# make budgets BUDGETS="--task mlp --unit weights --method dense budget gmp-10-60". Interrupted, it goes on where it was.
budgets: $(VENV)/bench
	OMP_NUM_THREADS=1 PYTHONPATH=examples $(BIN)/python -m benchmarks.experiments.budgets $(BUDGETS)

# make columns COLUMNS="--task cancer --seed 0". Interrupted, it goes on where it was.
columns: $(VENV)/bench
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.experiments.columns $(COLUMNS)

docs: $(VENV)/installed
	$(BIN)/python docs/build.py

# Pages, a gallery and a page per public name, in runs/site; SITE="-D plot_gallery=0" leaves out the pictures of the gallery.
site: $(VENV)/site
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --write-all -c docs $(SITE) . runs/site

# A wheel that carries native kernels for this system and machine; `pip wheel .` makes one that builds them at first use.
wheel: $(VENV)/installed
	$(BIN)/python -m shrinkage.execution.native_build
	$(PIP) wheel --no-deps --wheel-dir dist .
	rm -r src/shrinkage/execution/prebuilt

# A source distribution, and a wheel for all machines that is made of it; both are checked.
dist: $(VENV)/installed
	rm -rf runs/dist
	$(BIN)/python -m build --outdir runs/dist
	$(BIN)/python tests/built_packages.py runs/dist
	mkdir -p dist
	mv runs/dist/* dist

clean:
	rm -rf $(VENV) .venv-* runs

$(CONSTRAINTS): constraints.txt
	mkdir -p $(VENV)
	sed 's/^torch==.*/torch==$(TORCH)/' constraints.txt > $@

# pip comes first, since that of older interpreters does not know dependency groups; then torch, pinned, so that no other
# package pulls in a second build of it. torchvision, whose models are tested, and timm, which needs it, stand aside:
# next to a build of torch that is not its own, everything that imports torchvision would fail.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch
	$(PIP) --editable '.[cli,export,lightning,sklearn,transformers]' --group dev
	$(PIP) --no-deps --upgrade --target $(VENV)/aside torchvision timm
	touch $@

$(VENV)/site: $(VENV)/installed
	$(PIP) --group site
	touch $@

# The packages of others that `make bench` measures beside this one.
$(VENV)/bench: $(VENV)/installed
	$(PIP) --group bench
	touch $@
