# `make demo` and `make test` set up all that they need in .venv and then do their job.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CONSTRAINTS ?= constraints.txt
# How many processes run the tests.
JOBS   ?= 2
SOURCES := $(wildcard csrc/*) CMakeLists.txt setup.py pyproject.toml $(CONSTRAINTS)

EXAMPLES ?= 500
.PHONY: help demo test test-oldest fuzz test-slow test-integrations test-big lint format bench clean
help:
	@echo "make demo       train, grow and train on: the main job, on the CPU, in a few minutes"
	@echo "make test       the test suite (CI runs this); JOBS=8 for eight processes instead of two"
	@echo "make test-oldest  the same with the oldest versions of everything (gigabytes to download); PYTHON=python3.10"
	@echo "make fuzz       random networks and random lists of tensors, others every time; EXAMPLES=5000 for more of each"
	@echo "make test-slow  the tests that take minutes"
	@echo "make test-integrations  installs Lightning and Accelerate, and tests growth inside their loops"
	@echo "make test-big   the tests that need tens of gigabytes of memory"
	@echo "make bench      the kernel benchmarks, small sizes on a machine without a GPU"
	@echo "make lint       ruff and mypy"

$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[triton,demo,train,test,lint]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/net2net demo

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not big" --durations=15

test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

fuzz: $(STAMP)
	N2N_FUZZ=$(EXAMPLES) $(BIN)/python -m pytest -n $(JOBS) tests/test_random_networks.py tests/test_gather_scale_fuzz.py tests/test_shadows.py

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-integrations: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[lightning,accelerate]"
	$(BIN)/python -m pytest tests/test_integrations.py

test-big: $(STAMP)
	$(BIN)/python -m pytest -m big

bench: $(STAMP)
	$(BIN)/net2net bench --out runs/bench

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info python/*.egg-info n2n_kernels/_C*.so
