"""Values: as exact as plain PyTorch in the same dtype, against the definition in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.contract.targets import Target, every, every_form, every_mode
from tests.helpers.problems import (
    Case,
    decode,
    exact_values,
    operands,
    plain_values,
)

pytestmark = pytest.mark.usefixtures("poison")


@every_mode()
def test_a_decoder_against_the_definition(target: Target, mode: int, init_q: bool) -> None:
    """Odd, tiny, anisotropic, up- and down-scaling, batches, strides, windows."""
    ours = []
    plain = []
    exact = []
    for case in target.cases(mode, init_q):
        with torch.no_grad():
            got = decode(case, target.backend)
        assert got.dtype == target.dtype and got.isfinite().all(), case
        ours.append(got)
        plain.append(plain_values(case, target.yardstick, target.precision))
        exact.append(exact_values(case))
    target.judge(ours, plain, exact, "values")


@pytest.mark.parametrize("mode", [1, 3, 4])
@every(lambda target: target.dtype == torch.float32 and not target.small)
def test_a_decoder_of_the_published_size(target: Target, mode: int) -> None:
    network = replace(target.network(mode), width=256, channels=64)
    case = Case(network, (9, 10, 31, 40))
    with torch.no_grad():
        got = decode(case, target.backend)
    plain = plain_values(case, target.yardstick, target.precision)
    target.judge([got], [plain], [exact_values(case)], "values")


@every_form(lambda target: target.backend != "eager")
def test_the_operator_at_other_widths_layers_and_channels(
    target: Target, form: str, mode: int
) -> None:
    """On a tile that starts elsewhere than at 0, 0, which a plain PyTorch decode judges."""
    for width, layers, outputs in target.shapes:
        problem = operands(
            form, mode, width=width, layers=layers, outputs=outputs, batch=1,
            dtype=target.dtype, device=target.device, small=True,
        )  # fmt: skip
        ours = problem.decode(target.backend)
        exact = problem.to(torch.float64).decode("eager")
        assert ours.dtype == target.dtype and ours.shape == exact.shape
        target.judge([ours], [target.plain(problem)], [exact], f"{width} x {layers}")


@every(quick=True)
def test_the_far_corner_of_an_output_of_more_than_2_to_the_32_elements(target: Target) -> None:
    case = Case(
        target.network(3), (40, 50, 70_000, 80_000), window=(69_997, 70_000, 79_991, 80_000)
    )
    with torch.no_grad():
        got = decode(case, target.backend)
    # Not the definition in 16 bits: positions are beyond its range.
    eager = "eager" if target.yardstick == "definition" else target.yardstick
    plain = plain_values(case, eager, target.precision)
    target.judge([got], [plain], [exact_values(case)], "values")


@every_form(few=True)
def test_nan_and_infinite_sources_come_out_as_from_eager(
    target: Target, form: str, mode: int
) -> None:
    problem = target.operands(form, mode, small=True)
    problem.source[0, 1, 1, 3] = float("nan")
    problem.source[1, 1, 0, 2] = float("inf")
    problem.source[1, 0, 1, 4] = -float("inf")
    got = problem.decode(target.backend)
    want = problem.decode("eager")
    assert want.isnan().any() and not want.isnan().all()
    assert torch.equal(got.isnan(), want.isnan())
