"""Which implementations the contract was tested on, and why not on the others."""

from __future__ import annotations

import pytest

from diinn_fast import backends
from tests.contract.targets import Target, all_targets


@pytest.mark.parametrize("target", all_targets(), ids=str)
def test_runs_here(target: Target) -> None:
    if reason := target.unavailable():
        pytest.skip(f"{target} is not tested here: {reason}")


def test_every_backend_has_a_target() -> None:
    assert {target.backend for target in all_targets()} == set(backends.NAMES)
