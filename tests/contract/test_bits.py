"""Bits: the same decode has the same bits in every run, order of work and number of threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from tests.contract.targets import Target, every, every_form
from tests.helpers.problems import Case, decoder_of, features_of


@every_form(lambda target: len(target.schedules) > 0, few=True)
def test_no_order_of_the_work_changes_a_bit(target: Target, form: str, mode: int) -> None:
    """Twice in each order: threads, blocks, whose turn it is; values, and gradients of both
    windows and points.
    """
    window = target.operands(form, mode, batch=2 if target.small else 4, small=target.small)
    for problem in (window, window.at_points(41 if target.small else 500)):
        grad = problem.output_gradient()
        runs = []
        for order in target.schedules * (2 if len(target.schedules) == 1 else 1):
            order()
            values = problem.decode(target.backend)
            gradients = problem.gradients(grad, target.backend) if target.gradients else []
            runs.append([values, *gradients])
        for run in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@every(lambda target: target.concurrent)
def test_several_python_threads_at_once_give_what_one_does(target: Target) -> None:
    decoder = decoder_of(target.network(3))
    case = Case(target.network(3), (6, 7, 33, 40))
    inputs = [torch.randn_like(features_of(case)).requires_grad_() for _ in range(6)]

    def work(features: Tensor) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(2)
        out = decoder(features, case.size, backend=target.backend)
        return out.detach(), torch.autograd.grad(out.sum(), features)[0]

    alone = [work(features) for features in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, inputs * 2))
    for (a, b), (want, want_grad) in zip(together, alone * 2, strict=True):
        assert torch.equal(a, want)
        torch.testing.assert_close(b, want_grad, rtol=1e-4, atol=1e-5)
