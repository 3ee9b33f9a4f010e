# Every target works from a fresh clone: it makes .venv with the pinned environment and installs the package first.
PYTHON ?= python3
BIN := .venv/bin
RUNTIME := .venv/runtime
INSTALLED := .venv/installed
RELEASE := .venv/release
CXX_FILES := $(foreach end,h cpp cu,$(wildcard csrc/*/*.$(end) csrc/*/*/*.$(end)))

.PHONY: demo test check test-kernels test-model test-package coverage stats bench gpu fuzz sanitize lint docs wheel clean

demo: $(RUNTIME)            ## upscale a real photograph with the bundled model
	$(BIN)/python examples/demo.py

# Most tests keep one core busy: two jobs at a time, the longest first, take little more than half
# the time of one.
JOBS := OMP_NUM_THREADS=1 $(MAKE) -j 2

# The tests of `make test`; of `make test QUICK=`, `make check` and a plain pytest: all.
QUICK := -m "not long"
SELECTED :=

test: $(INSTALLED) lint     ## lint, types and the quick tests
	+$(JOBS) SELECTED='$(QUICK)' test-package test-kernels test-model

check: $(INSTALLED) lint    ## all that must pass before a change lands: lint, all tests, sanitize, fuzz
	+$(JOBS) test-kernels test-model test-package sanitize fuzz

KERNEL_TESTS := tests/contract tests/kernels
MODEL_TESTS := tests/model

test-kernels: $(INSTALLED)  ## tests of the decode operator and its kernels
	$(BIN)/python -m pytest $(KERNEL_TESTS) $(SELECTED)

test-model: $(INSTALLED)    ## tests of the model, and of what users do to it
	$(BIN)/python -m pytest $(MODEL_TESTS) $(SELECTED)

test-package: $(INSTALLED)  ## all other tests
	$(BIN)/python -m pytest tests $(KERNEL_TESTS:%=--ignore=%) $(MODEL_TESTS:%=--ignore=%) $(SELECTED)

coverage: $(INSTALLED)      ## all tests, and which lines of the package they do not run
	$(BIN)/python -m pytest --cov=diinn_fast --cov=kernels --cov-report=term:skip-covered

stats: $(INSTALLED)         ## figures of how easily the code reads
	$(BIN)/python tests/stats.py

bench: $(INSTALLED)         ## speed and memory against the peers, on this machine
	$(BIN)/python -m pytest bench

gpu:                        ## check, tune and measure the GPU kernels; needs a PYTHON with a CUDA build of PyTorch
	$(PYTHON) -m bench.gpu

# The same problems and files each time; with FUZZ="--seconds 600" others, and for so long.
FUZZ :=

fuzz: $(INSTALLED)          ## random problems against the reference, and damaged pictures; a minute of each
	$(BIN)/python -m tests.fuzz_decode $(or $(FUZZ),--seed 1 --problems 1000)
	$(BIN)/python -m tests.fuzz_pictures $(or $(FUZZ),--seed 1 --files 2500)

sanitize: $(INSTALLED)      ## kernel tests on a build with address and undefined-behaviour sanitizers
	$(BIN)/python tests/run_sanitized.py

lint: $(INSTALLED)          ## ruff, mypy, clang-format, and the goals of stats
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/python tests/stats.py

docs: $(RELEASE)            ## the documentation as a site, links checked: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(RELEASE)           ## sdist, from it the wheel, both checked, the wheel tried in a fresh environment
	$(BIN)/python tests/run_wheel.py

# What running needs, and the package. torch comes first and alone: asked for through a range, it
# may be a CUDA build of several gigabytes.
$(RUNTIME): requirements.txt pyproject.toml setup.py $(wildcard csrc/cpu/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install -q -c requirements.txt -e .
	touch $@

# What tests, training and benchmarks need besides.
$(INSTALLED): $(RUNTIME)
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $@

# What the documentation and a release need besides.
$(RELEASE): $(RUNTIME) requirements-release.txt
	$(BIN)/python -m pip install -q -r requirements-release.txt
	touch $@

clean:
	rm -rf .venv build dist *.egg-info demo runs
