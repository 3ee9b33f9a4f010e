"""Every output element is written: fresh memory is full of NaN, and none of it is left.

The tests of values and gradients run on such memory too; here are the bits, and other shapes.
"""

from __future__ import annotations

import pytest
import torch

from tests.contract.targets import Target, every_form, every_mode
from tests.helpers.problems import decode

pytestmark = pytest.mark.usefixtures("poison")


@every_mode(few=True)
def test_by_a_decoder(target: Target, mode: int, init_q: bool) -> None:
    """In every geometry, with the bits that it has on clean memory."""
    for case in list(target.cases(mode, init_q))[: 2 if target.small else None]:
        torch.use_deterministic_algorithms(True, warn_only=True)
        out = decode(case, target.backend)
        assert out.isfinite().all(), case
        torch.use_deterministic_algorithms(False)
        assert torch.equal(decode(case, target.backend), out), case


@every_form(few=True)
def test_by_the_operator(target: Target, form: str, mode: int) -> None:
    """Of a window and of points, in the number of channels that was asked for."""
    for outputs in (5,) if target.small else (1, 5):
        window = target.operands(form, mode, outputs=outputs, small=True)
        for problem in (window, window.at_points(17)):
            assert problem.decode(target.backend).isfinite().all()
