"""Gradients: as exact as plain PyTorch's in the same dtype, and only those that are asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diinn_fast import BackendError
from tests.contract.targets import Target, available, every, every_form, every_mode
from tests.helpers.measure import rms
from tests.helpers.problems import (
    Case,
    Operands,
    decoder_of,
    exact_gradients,
    features_of,
    gradients,
    inputs_of,
    operands,
    plain_gradients,
)

pytestmark = pytest.mark.usefixtures("poison")


@every_mode(lambda target: target.gradients)
def test_a_decoder_against_the_definition(target: Target, mode: int, init_q: bool) -> None:
    """Of features and of each parameter, over all geometries together."""
    results: list[tuple[list[Tensor], list[Tensor], list[Tensor]]] = []
    for case in target.cases(mode, init_q, gradients=True):
        got = gradients(case, target.backend)
        assert all(g.isfinite().all() and g.dtype == target.dtype for g in got), case
        plain = plain_gradients(case, target.yardstick, target.precision)
        results.append((got, plain, exact_gradients(case)))
    names = ["features", *dict(decoder_of(case.network).named_parameters())]
    # Rounding may take a relu's argument across zero, and one entry errs by a whole term then, of
    # ours or of plain PyTorch's: the largest error says nothing here, and the mean has some luck.
    floor = max(target.floor, 4 * torch.finfo(target.dtype).eps)
    target = replace(target, worst=None, floor=floor)
    for n, name in enumerate(names):
        got, plain, exact = ([result[side][n] for result in results] for side in range(3))
        target.judge(got, plain, exact, name)


def _compare(target: Target, problem: Operands, grad: Tensor, what: str) -> list[Tensor]:
    """The target's gradients of the operator, judged by plain PyTorch's."""
    ours = problem.gradients(grad, target.backend)
    plain = problem.gradients(grad, "eager")
    exact = problem.to(torch.float64).gradients(grad.double(), "eager")
    for n, (a, b, want) in enumerate(zip(ours, plain, exact, strict=True)):
        assert a.dtype == b.dtype and a.shape == want.shape
        # In one problem rounding may take a relu's argument across zero: a whole term.
        luck = 1e-5 if target.device == "cpu" and not target.small else 1e-3
        luck = max(luck, 4 * torch.finfo(target.dtype).eps)
        allowed = 2 * rms(b - want) + luck * rms(want)
        assert not want.numel() or rms(a - want) <= allowed, f"{what}, input {n}"
    return ours


@every_form(lambda target: target.gradients and target.backend != "eager", few=True)
def test_the_operator_on_tiles_and_at_points(target: Target, form: str, mode: int) -> None:
    """However the queries are cut; at other widths, layers and channels."""
    for n, (width, layers, outputs) in enumerate(target.shapes):
        window = operands(
            form, mode, width=width, layers=layers, outputs=outputs, batch=1 + n % 2,
            dtype=target.dtype, device=target.device, small=True,
        )  # fmt: skip
        shape = f"{width} x {layers}"
        slabs = window if n % 2 else replace(window, chunk=13)
        for problem in (slabs, window.at_points(41)):
            _compare(target, problem, problem.output_gradient(), shape)


@every_form(lambda target: target.gradients, few=True)
def test_each_is_computed_only_where_needed_with_the_same_bits(
    target: Target, form: str, mode: int
) -> None:
    """Alone and without the others, as with a frozen encoder or decoder; else it is empty."""
    problem = target.operands(form, mode, small=True)
    grad = problem.output_gradient()
    everything = problem.gradients(grad, target.backend)
    count = len(everything)
    choices = [[n == 0 for n in range(count)], [n > 0 for n in range(count)]]
    choices += [[n % 2 == 1 for n in range(count)]]
    if not target.small:
        choices += [[n == one for n in range(count)] for one in range(1, count)]
        choices += [[n != one for n in range(count)] for one in range(1, count)]
    for needs in choices:
        some = problem.gradients(grad, target.backend, needs)
        for need, part, whole in zip(needs, some, everything, strict=True):
            assert torch.equal(part, whole) if need else part.numel() == 0


@every_mode(lambda target: target.gradients, few=True)
def test_those_of_windows_add_up_to_those_of_the_whole(
    target: Target, mode: int, init_q: bool
) -> None:
    whole = Case(target.network(mode, init_q, kinks=target.kinks), (4, 3, 9, 11))
    halves = [replace(whole, window=(0, 5, 0, 11)), replace(whole, window=(5, 9, 0, 11))]
    parts = [gradients_of_ones(case, target.backend) for case in halves]
    exact = gradients_of_ones(whole, target.backend)
    for a, b, want in zip(*parts, exact, strict=True):
        assert rms(a + b - want) <= target.loose * rms(want)


def gradients_of_ones(case: Case, backend: str) -> list[Tensor]:
    out = decoder_of(case.network)(
        features_of(case), case.size, window=case.window, backend=backend
    )
    return list(torch.autograd.grad(out.sum(), inputs_of(case)))


@every(lambda target: target.gradients)
def test_a_pixel_without_queries_has_none_and_nan_is_passed_on(target: Target) -> None:
    """One pixel per image has more queries than a kernel takes at a time."""
    problem = target.operands("content", 3, small=True).at_points(70 if target.small else 500)
    assert problem.index is not None
    problem = replace(problem, index=torch.zeros_like(problem.index))
    problem.index[1] = 3
    grad = problem.output_gradient()
    got = problem.gradients(grad, target.backend)[0].flatten(1, 2)
    written = got.count_nonzero(dim=2) > 0
    assert written.nonzero().tolist() == [[0, 0], [1, 3]]
    grad[1, 44, 2] = float("nan")
    every_one = problem.gradients(grad, target.backend)
    assert every_one[0][0].isfinite().all() and all(g.isnan().any() for g in every_one)


@every(lambda target: target.gradients_of is not None)
def test_those_of_another_targets_kernels_have_its_bits(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = target.operands("content", 3, batch=1, small=True)
    grad = problem.output_gradient()
    ours = problem.gradients(grad, target.backend)
    (other,) = (twin for twin in available() if twin.name == target.gradients_of)
    other.install(monkeypatch)
    theirs = problem.gradients(grad, other.backend)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@every(lambda target: not target.trains)
def test_an_implementation_for_inference_alone_refuses_them_with_the_remedy(
    target: Target,
) -> None:
    problem = operands("content", 3, width=target.width, dtype=target.dtype, small=True)
    with pytest.raises(BackendError, match="no gradients: train with"):
        problem.gradients(problem.output_gradient(), target.backend)
