"""Every output element is written: fresh memory is full of NaN, and none of it is left."""

from __future__ import annotations

import pytest
import torch

from tests.contract.targets import Target, every_form, every_mode
from tests.helpers.problems import decode, gradients, operands

pytestmark = pytest.mark.usefixtures("poison")


@every_mode(few=True)
def test_by_a_decoder(target: Target, mode: int, init_q: bool) -> None:
    """Values and gradients in every geometry, and the bits that they have on clean memory."""
    for case in list(target.cases(mode, init_q))[: 2 if target.small else None]:
        torch.use_deterministic_algorithms(True, warn_only=True)
        out = decode(case, target.backend)
        assert out.isfinite().all(), case
        if target.gradients:
            assert all(g.isfinite().all() for g in gradients(case, target.backend)), case
        torch.use_deterministic_algorithms(False)
        assert torch.equal(decode(case, target.backend), out), case


@every_form(few=True)
def test_by_the_operator(target: Target, form: str, mode: int) -> None:
    """Of a window and of points, in the number of channels that was asked for."""
    for outputs in (5,) if target.small else (1, 5):
        window = operands(
            form, mode, width=target.width, outputs=outputs,
            dtype=target.dtype, device=target.device, small=True,
        )  # fmt: skip
        for problem in (window, window.at_points(17)):
            out = problem.decode(target.backend)
            assert out.isfinite().all()
            if target.gradients:
                grads = problem.gradients(torch.ones_like(out), target.backend)
                assert all(g.isfinite().all() for g in grads)
