"""The decode operator: one ``torch.library`` operator and its backward, over interchangeable
backends.

For every query it takes the nearest LR pixel, the local coordinate p = (dy, dx, ratio) and the
per-query network

    q_0 = k_0 * sin(Q_0 p + b_0),   q_i = k_i * sin(Q_i q_{i-1} + b_i),   out = last q_{L-1} +
    last_bias

and differs only in where the modulation k_i comes from (``form``):

- ``content``: source is the LR-size content c ``[B, h, w, L*H]`` (bias included),
  ``k_i = relu(c_i + K_i r)`` with the recurrent input r = q_{i-1} (modes 3 and 4);
- ``modulation``: source is k itself ``[B, h, w, L*H]``, computed at LR size (modes 1 and 2 without
  init_q);
- ``direct``: source is the feature map with one pixel of padding ``[B, h+2, w+2, C]``; content
  products, and the sine layer of init_q, are done per query (all modes; r = k_{i-1} in modes 1 and
  2).

The backward recomputes: only the inputs are saved. It is an operator of its own, and is
deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diinn_fast import backends, guard
from diinn_fast.backends import load
from diinn_fast.geometry import Window
from diinn_fast.problem import Problem, query_weights


def _problem(
    form: str,
    mode: int,
    geometry: Sequence[int],
    index: Tensor | None,
    offset: Tensor | None,
    chunk: int,
) -> Problem:
    h, w, row, column, height, width, *window = geometry
    cut = Window(*window) if window else None
    return Problem(form, mode, (h, w), (row, column), (height, width), cut, index, offset, chunk)


def _dtypes_as_given(source: Tensor) -> torch.autocast:
    """Autocast off: it reaches into operators, and would round positions and sine arguments to 16
    bit.
    """
    return torch.autocast(source.device.type, enabled=False)


ARGUMENTS = (
    "Tensor source, Tensor[] weights, str form, int mode, SymInt[] geometry, "
    "Tensor? index, Tensor? offset, int chunk, str backend"
)
# Defined one by one rather than by torch.library.custom_op, which imports the compiler (a second)
# at the first call.
torch.library.define("diinn_fast::decode", f"({ARGUMENTS}) -> Tensor")
torch.library.define(
    "diinn_fast::decode_backward", f"(Tensor grad, {ARGUMENTS}, bool[] needs) -> Tensor[]"
)
torch.library.define(
    "diinn_fast::conv3x3", "(Tensor padded, Tensor weight, Tensor bias, str backend) -> Tensor"
)


@torch.library.impl("diinn_fast::decode", "CompositeExplicitAutograd")
def _(
    source: Tensor,
    weights: Sequence[Tensor],
    form: str,
    mode: int,
    geometry: Sequence[int],
    index: Tensor | None,
    offset: Tensor | None,
    chunk: int,
    backend: str,
) -> Tensor:
    problem = _problem(form, mode, geometry, index, offset, chunk)
    with _dtypes_as_given(source):  # backends check themselves when they are chosen
        chosen = backends.choose(backend, problem, source)
        query_weights(weights).check()
        result: Tensor = chosen.forward(problem, source, list(weights))
        return result


@torch.library.register_fake("diinn_fast::decode")
def _(source, weights, form, mode, geometry, index, offset, chunk, backend):  # type: ignore[no-untyped-def]
    problem = _problem(form, mode, geometry, index, offset, chunk)
    return source.new_empty(problem.output_shape(source.shape[0], query_weights(weights).channels))


@torch.library.impl("diinn_fast::decode_backward", "CompositeExplicitAutograd")
def _(
    grad: Tensor,
    source: Tensor,
    weights: Sequence[Tensor],
    form: str,
    mode: int,
    geometry: Sequence[int],
    index: Tensor | None,
    offset: Tensor | None,
    chunk: int,
    backend: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    problem = _problem(form, mode, geometry, index, offset, chunk)
    with _dtypes_as_given(source):  # backends check themselves when they are chosen
        chosen = backends.choose(backend, problem, source)
        query_weights(weights).check()
        result: list[Tensor] = chosen.backward(problem, grad, source, list(weights), list(needs))
        return result


@torch.library.register_fake("diinn_fast::decode_backward")
def _(grad, source, weights, form, mode, geometry, index, offset, chunk, backend, needs):  # type: ignore[no-untyped-def]
    inputs = [source, *weights]
    return [
        torch.empty_like(v) if need else v.new_empty(0)
        for v, need in zip(inputs, needs, strict=True)
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    source, weights, *ctx.plain, index, offset, chunk, backend = inputs
    ctx.tail = (chunk, backend)
    ctx.points = index is not None
    ctx.save_for_backward(source, *weights, *([index, offset] if ctx.points else []))


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    source, *weights = ctx.saved_tensors
    index = offset = None
    if ctx.points:
        *weights, index, offset = weights
    needs = [ctx.needs_input_grad[0], *_needs_list(ctx.needs_input_grad[1], len(weights))]
    if torch.is_grad_enabled() or guard.batched(grad):
        # a second derivative is asked for, or many gradients at once
        form, mode, geometry = ctx.plain
        problem = _problem(form, mode, geometry, index, offset, ctx.tail[0])
        first, *rest = _differentiable_backward(problem, grad, source, weights, needs)
        return first, rest, None, None, None, None, None, None, None
    grads = torch.ops.diinn_fast.decode_backward(
        grad.contiguous(), source, weights, *ctx.plain, index, offset, *ctx.tail, needs
    )
    first, *rest = (g if need else None for g, need in zip(grads, needs, strict=True))
    return first, rest, None, None, None, None, None, None, None


def _differentiable_backward(
    problem: Problem,
    grad: Tensor,
    source: Tensor,
    weights: Sequence[Tensor],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of [source, *weights] as a function that PyTorch can differentiate: those of the
    ``eager`` backend's forward, which is built-in operators.
    """
    inputs = [source, *weights]
    with torch.enable_grad(), _dtypes_as_given(source):
        out = load("eager").forward(problem, source, weights)
        wanted = [v for v, need in zip(inputs, needs, strict=True) if need]
        found = iter(
            torch.autograd.grad(out, wanted, grad, create_graph=True, materialize_grads=True)
        )
    return [next(found) if need else None for need in needs]


def _needs_list(needs: bool | Sequence[bool], count: int) -> list[bool]:
    return list(needs) if isinstance(needs, (list, tuple)) else [bool(needs)] * count


torch.library.register_autograd("diinn_fast::decode", _backward, setup_context=_save)


def _no_double_backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    raise RuntimeError(
        "the compiled gradient of decode has no derivative: call the model itself, or use "
        'diinn_fast.use_backend("plain")'
    )


torch.library.register_autograd("diinn_fast::decode_backward", _no_double_backward)


@torch.library.impl("diinn_fast::conv3x3", "CompositeExplicitAutograd")
def _(padded: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
    return backends.conv3x3(backend, padded, weight, bias)


@torch.library.register_fake("diinn_fast::conv3x3")
def _(padded, weight, bias, backend):  # type: ignore[no-untyped-def]
    batch, rows, columns, _ = padded.shape
    return padded.new_empty(batch, rows - 2, columns - 2, weight.shape[0])


def check_devices(first: Tensor, *others: Tensor) -> None:
    """ValueError unless all tensors are on one device: kernels are given addresses."""
    for other in others:
        if other.device != first.device:
            raise ValueError(
                f"features are on {first.device}, the decoder has tensors on {other.device}: move "
                "one of them"
            )


def conv3x3(padded: Tensor, weight: Tensor, bias: Tensor, backend: str | None = None) -> Tensor:
    """3x3 convolution of ``[B, h+2, w+2, C]`` by ``[out, 9C]`` (columns c*9 + tap) plus bias:
    ``[B, h, w, out]``.

    For inference on the CPU: bitwise the same however the image is cut. Not differentiable.
    """
    check_devices(padded, weight, bias)
    name = backends.requested() if backend is None else backend
    result: Tensor = torch.ops.diinn_fast.conv3x3(padded, weight, bias, name)
    return result


def decode(
    source: Tensor,
    weights: Sequence[Tensor],
    *,
    form: str,
    mode: int,
    lr: tuple[int, int],
    size: tuple[int, int],
    origin: tuple[int, int] = (0, 0),
    window: Window | None = None,
    index: Tensor | None = None,
    offset: Tensor | None = None,
    chunk: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Decode a window of the HR grid, or points, from ``source`` (see the module and ``Problem``
    for shapes).

    ``weights`` is ``[*Weights]``, followed by ``[*ContentWeights]`` in the direct form. Returns
    ``[B, channels, rows, columns]`` for a window, ``[B, N, channels]`` for points, in the dtype of
    ``source``. Differentiable by ``source`` and ``weights``, again by ``eager``.
    """
    geometry = [*lr, *origin, *size, *(window or ())]
    check_devices(source, *weights, *(v for v in (index, offset) if v is not None))
    name = backends.requested() if backend is None else backend
    result: Tensor = torch.ops.diinn_fast.decode(
        source, list(weights), form, mode, geometry, index, offset, chunk, name
    )
    return result
