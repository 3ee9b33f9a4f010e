"""Fixtures of the contract: the implementation under test, and the machine around it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.contract.targets import Target
from tests.helpers.threads import one_thread


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """One, unless a test sets more."""
    with one_thread():
        yield


@pytest.fixture
def target(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Target]:
    """The implementation under test, installed; its own kernels must do the work.

    A backend hands what it does not take to plain PyTorch and logs it: that must not pass for the
    kernels, except in a test that is marked ``hands_on``.
    """
    caplog.set_level(logging.DEBUG, "diinn_fast")
    request.param.install(monkeypatch)
    yield request.param
    if request.node.get_closest_marker("hands_on") is None:
        said = [record.getMessage() for record in caplog.get_records("call")]
        assert not [text for text in said if "not used" in text or "hands a decode" in text]
