"""Fixtures of all tests."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import pytest
import torch

from diinn_fast import backends, use_backend


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> Iterator[random.Random]:
    """Fresh numbers for each test, the same in each run; restores the backend choice."""
    torch.manual_seed(sum(request.node.name.encode()))
    with use_backend(backends.requested()):
        yield random.Random(request.node.name)


@pytest.fixture
def poison() -> Iterator[None]:
    """Uninitialised memory is full of NaN: an element that is not written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """PyTorch counts recompilations per function over the whole process, and gives up after eight:
    each test begins at none.
    """
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
