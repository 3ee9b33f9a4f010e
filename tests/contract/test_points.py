"""Points: queries anywhere are those that a grid would have there."""

from __future__ import annotations

import pytest
import torch

from tests.contract.targets import Target, every_form, every_mode
from tests.helpers.measure import rms
from tests.helpers.problems import Case, decoder_of, features_of, inputs_of


@every_mode(few=True)
def test_sampled_pixels_are_those_of_the_whole(target: Target, mode: int, init_q: bool) -> None:
    """More points than LR pixels, and fewer (the direct form); their gradients are eager's."""
    if mode == 4:
        with pytest.raises(ValueError, match="mode 4 cannot be sampled"):
            _sample(target, Case(target.network(4), (4, 5, 13, 16)), 3, target.backend)
        return
    geometry = (2, 5, 5, 9) if target.small else (4, 5, 13, 16)
    case = Case(target.network(mode, init_q, kinks=False), geometry, 2)
    inputs = inputs_of(case)
    few = (9,) if target.small else (1, 9)
    for count in (*few, 40) if "direct" in target.forms else (40,):
        got, whole = _sample(target, case, count, target.backend)
        # Whose form is the whole's.
        if target.device == "cpu" and target.exact_cuts and count == 40:
            with torch.no_grad():
                assert torch.equal(*_sample(target, case, count, target.backend))
        assert rms(got - whole) <= target.loose * rms(whole)
        want, _ = _sample(target, case, count, "eager")
        assert rms(got - want) <= target.loose * rms(want)
        if not target.gradients:
            continue
        grad = torch.randn(got.shape).to(got)
        ours = torch.autograd.grad(got, inputs, grad)
        theirs = torch.autograd.grad(want, inputs, grad)
        for a, b in zip(ours, theirs, strict=True):
            assert rms(a - b) <= target.loose * rms(b) + 1e-8


def _sample(
    target: Target, case: Case, count: int, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Some pixels of the output by points, and out of the whole."""
    draw = torch.Generator().manual_seed(count)
    rows, columns = (torch.randint(n, (case.batch, count), generator=draw) for n in case.size)
    yx = torch.stack([rows, columns], dim=-1).to(target.device)
    decoder = decoder_of(case.network)
    features = features_of(case)
    points = decoder.sample_pixels(features, yx, case.size, backend=backend)
    with torch.no_grad():
        whole = decoder(features, case.size, backend=backend)
    picked = [whole[b][:, rows[b], columns[b]].T for b in range(case.batch)]
    return points, torch.stack(picked)


@every_form(lambda target: target.exact_cuts, few=True)
def test_the_operator_gives_points_the_bits_of_a_window(
    target: Target, form: str, mode: int
) -> None:
    window = target.operands(form, mode, small=True)
    whole = window.decode(target.backend)
    assert torch.equal(window.as_points().decode(target.backend), whole.flatten(2).mT)


@every_form(few=True, quick=True)
def test_a_point_outside_the_source_is_never_read(target: Target, form: str, mode: int) -> None:
    """It is refused, or its output is NaN and that of all others what it was."""
    problem = target.operands(form, mode, small=True).at_points(33)
    assert problem.index is not None
    right = problem.decode(target.backend)
    halo = 2 if form == "direct" else 0
    beyond = (problem.source.shape[1] - halo) * (problem.source.shape[2] - halo)
    problem.index[1, 3] = beyond
    if target.outside == "nan":
        problem.index[0, 5] = -1
        out = problem.decode(target.backend)
        assert out.isnan().all(-1).nonzero().tolist() == [[0, 5], [1, 3]]
        assert torch.equal(out[~out.isnan()], right[~out.isnan()])
        return
    with pytest.raises(IndexError):
        problem.decode(target.backend)
