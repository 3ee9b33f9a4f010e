"""What an implementation does not take: by name it is refused in a sentence, or plain PyTorch does
it and the numbers are its.
"""

from __future__ import annotations

import pytest
import torch

from diinn_fast import BackendError, backends
from tests.contract.targets import ALL_FORMS, Target, every
from tests.helpers.measure import rms
from tests.helpers.problems import make_decoder, operands

pytestmark = pytest.mark.hands_on


@every(lambda target: target.foreign_dtype is not None, quick=True)
def test_a_dtype_without_kernels_is_refused_with_the_remedy(target: Target) -> None:
    problem = operands("content", 3, dtype=target.foreign_dtype, device=target.device, small=True)
    with pytest.raises(BackendError, match=rf"backend '{target.backend}' cannot run .* got torch"):
        problem.decode(target.backend)


@every(lambda target: set(target.forms) != set(ALL_FORMS), quick=True)
def test_a_form_without_kernels_is_refused_with_the_remedy(target: Target) -> None:
    (form,) = set(ALL_FORMS) - set(target.forms)
    problem = operands(form, 3, width=target.width, dtype=target.dtype, device=target.device)
    with pytest.raises(BackendError, match=f"no {form} form .*: use backend"):
        problem.decode(target.backend)


@every(lambda target: target.foreign_width is not None, quick=True)
def test_a_width_without_kernels_is_plain_pytorchs(target: Target) -> None:
    """Unless it is refused; the numbers need not have the same bits, if only the projection or the
    dtype of the sums differs.
    """
    assert target.foreign_width is not None
    decoder = make_decoder(3, width=target.foreign_width, channels=5)
    decoder = decoder.to(target.device, target.dtype)
    features = torch.randn(1, 5, 4, 5).to(target.device, target.dtype)
    with torch.no_grad():
        want = decoder(features, (9, 9), backend="eager")
        try:
            got = decoder(features, (9, 9), backend=target.backend)
        except BackendError as error:
            assert "width" in str(error)
        else:
            limit = 1e-5 if target.dtype == torch.float32 else 1e-2
            assert rms(got - want) <= limit * rms(want)


@every(quick=True)
def test_an_unknown_backend_is_refused_with_the_known_ones(target: Target) -> None:
    problem = operands("content", 3, dtype=target.dtype, device=target.device, small=True)
    with pytest.raises(BackendError, match="choose one of auto"):
        problem.decode("abacus")
    assert target.backend in backends.NAMES
