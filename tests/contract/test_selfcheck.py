"""The self-check: kernels that are wrong on this machine are found at first use and never used."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from diinn_fast import BackendError, backends
from tests.contract.targets import Target, every
from tests.helpers.measure import rms
from tests.helpers.problems import Operands

pytestmark = pytest.mark.hands_on


def problem_of(target: Target) -> Operands:
    return target.operands("content", 3, layers=2, batch=1, small=True)


checked = every(lambda target: target.kernels is not None and not target.brief, quick=True)


def forget(target: Target, patch: pytest.MonkeyPatch) -> Any:
    """The backend's module as if it had not been used yet."""
    module = backends.load(target.backend)
    patch.setattr(module, "_checked", {})
    return module


@checked
def test_right_kernels_are_trusted_and_asked_once(
    target: Target, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = forget(target, monkeypatch)
    problem = problem_of(target)
    problem.gradients(problem.output_gradient(), target.backend)
    known = dict(module._checked)
    assert known and not any(known.values())
    problem.gradients(problem.output_gradient(), target.backend)
    assert module._checked == known
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("part", [0, 1], ids=["forward", "backward"])
@checked
def test_wrong_kernels_are_never_used_and_it_is_said_once(
    target: Target,
    part: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By name plain PyTorch or other kernels do the work, or it is refused."""
    module = forget(target, monkeypatch)
    assert target.kernels is not None
    name = target.kernels[part]
    right = getattr(module, name)

    def wrong(*arguments: Any) -> Any:
        result = right(*arguments)
        return [2 * v for v in result] if isinstance(result, list) else 2 * result

    monkeypatch.setattr(module, name, wrong)
    problem = problem_of(target)
    grad = problem.output_gradient()
    for _ in range(2):
        try:
            got = [problem.decode(target.backend), *problem.gradients(grad, target.backend)]
        except BackendError as error:
            assert "differ" in str(error)
        else:
            want = [problem.decode("eager"), *problem.gradients(grad, "eager")]
            for a, b in zip(got, want, strict=True):
                assert rms(a - b) <= 0.1 * rms(b)
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1 and "not used" in warnings[0] and "differ" in warnings[0]


@checked
def test_kernels_that_fail_are_wrong_kernels(
    target: Target, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = forget(target, monkeypatch)
    assert target.kernels is not None
    monkeypatch.setattr(module, target.kernels[0], lambda *arguments: 1 / 0)
    problem = problem_of(target)
    try:
        got = problem.decode(target.backend)
    except BackendError as error:
        assert "division by zero" in str(error)
    else:
        want = problem.decode("eager")
        assert rms(got - want) <= 0.02 * rms(want)
    assert "division by zero" in caplog.text


@checked
def test_it_holds_where_autocast_is_on(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training decodes for the first time inside autocast, which would round its plain PyTorch
    twin.
    """
    module = forget(target, monkeypatch)
    problem = problem_of(target)
    with torch.autocast(target.device, torch.bfloat16):
        problem.gradients(problem.output_gradient(), target.backend)
    assert module._checked and not any(module._checked.values())
