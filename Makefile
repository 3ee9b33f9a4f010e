# Every target works from a fresh clone: it makes .venv with the pinned environment and installs the package first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test bench gpu fuzz sanitize lint clean

demo: $(INSTALLED)          ## upscale a real photograph with the bundled model
	$(BIN)/python examples/demo.py

test: $(INSTALLED) lint     ## lint, types and all tests
	$(BIN)/python -m pytest

bench: $(INSTALLED)         ## speed and memory against the peers, on this machine
	$(BIN)/python -m pytest bench

gpu:                        ## check, tune and measure the GPU kernels; needs a PYTHON with a CUDA build of PyTorch
	$(PYTHON) -m bench.gpu

fuzz: $(INSTALLED)          ## random problems against the reference, for a minute
	$(BIN)/python tests/fuzz_decode.py --seconds 60

sanitize: $(INSTALLED)      ## kernel tests on a build with address and undefined-behaviour sanitizers
	$(BIN)/python tests/run_sanitized.py

lint: $(INSTALLED)          ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch comes first and alone: asked for through a range, it may be a CUDA build of several gigabytes.
$(INSTALLED): requirements.txt pyproject.toml setup.py $(wildcard csrc/cpu/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install -q -r requirements.txt
	$(BIN)/python -m pip install -q -e .
	touch $@

clean:
	rm -rf .venv build dist *.egg-info demo runs
