"""What PyTorch does around the operator: autocast, compilation, and its own checks of operators."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.contract.targets import Target, available, every
from tests.helpers.measure import rms
from tests.helpers.problems import Case, decoder_of, features_of, oracle

HALVES = (torch.float16, torch.bfloat16)


def one_of_each_backend(target: Target) -> bool:
    """The first of a backend's targets for training on this kind of machine: compilers take
    seconds, and do not look into kernels.
    """
    twins = (t for t in available() if (t.backend, t.device) == (target.backend, target.device))
    return target.gradients and target is next(twins)


def with_float32_parameters(target: Target) -> Case:
    """A decode whose network autocast takes to the target's dtype."""
    network = replace(target.network(3), dtype=torch.float32)
    return Case(network, (3, 4, 7, 9))


@every(lambda target: target.dtype in HALVES)
def test_autocast_decodes_in_its_dtype_and_leaves_parameters_float32_gradients(
    target: Target,
) -> None:
    case = with_float32_parameters(target)
    decoder = decoder_of(case.network)
    features = features_of(case)
    with torch.autocast(target.device, target.dtype):
        got = decoder(features, case.size, backend=target.backend)
    want = oracle(decoder, features, case.size)
    assert got.dtype == target.dtype and rms(got - want) <= 0.05 * rms(want)
    if not target.gradients:
        return
    inputs = [features, *decoder.parameters()]
    grads = torch.autograd.grad(got.float().square().mean(), inputs)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)


@every(lambda target: target.gradients and not target.brief)
def test_autocast_does_not_reach_into_the_operator(target: Target) -> None:
    """Positions and sine arguments stay as exact as they were given: bits are the same."""
    problem = target.operands("content", 3, small=True)
    grad = problem.output_gradient()
    plain = [problem.decode(target.backend), *problem.gradients(grad, target.backend)]
    for dtype in HALVES:
        with torch.autocast(target.device, dtype):
            cast = [problem.decode(target.backend), *problem.gradients(grad, target.backend)]
        assert all(torch.equal(a, b) for a, b in zip(cast, plain, strict=True))


@every(one_of_each_backend)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_decode_is_the_decode(target: Target) -> None:
    """In one graph, values and gradients."""
    case = Case(target.network(3), (3, 4, 7, 9))
    decoder = decoder_of(case.network)
    features = features_of(case)
    compiler = "inductor" if target.device == "cuda" else "aot_eager"

    def decode(values: Tensor) -> Tensor:
        result: Tensor = decoder(values, case.size, backend=target.backend)
        return result

    got = torch.compile(decode, fullgraph=True, backend=compiler)(features)
    want = decode(features)
    # A compiler may choose other convolutions, in TF32 on a device.
    limit = 2e-2 if target.device == "cuda" or target.dtype in HALVES else 1e-4
    assert rms(got - want) <= limit * rms(want)
    (ours,) = torch.autograd.grad(got.float().square().sum(), features)
    (theirs,) = torch.autograd.grad(want.float().square().sum(), features)
    assert rms(ours - theirs) <= limit * rms(theirs)


@every(one_of_each_backend)
def test_opcheck(target: Target) -> None:
    """Schema, fake tensors, autograd registration and tracing."""
    problem = target.operands("content", 3, layers=2, small=True)
    problem = replace(
        problem,
        source=problem.source.requires_grad_(),
        weights=[v.requires_grad_() for v in problem.weights],
    )
    arguments = (*problem.arguments(), target.backend)
    torch.library.opcheck(torch.ops.diinn_fast.decode.default, arguments)
