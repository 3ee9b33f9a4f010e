"""Backend ``cpu``: the fused decoder compiled from csrc/cpu, float32, for x86-64 (AVX-512, AVX2)
and others (portable).

It follows torch's thread count, releases the GIL and may be called from several Python threads.
Results do not depend on the number of threads or on how queries are cut. ``DIINN_FAST_CPU_ISA``
(avx512, avx2 or portable) overrides the choice of instruction set. A bfloat16 decode and its
gradients are computed in bfloat16 with float32 sums where the CPU has AMX, or AVX512_BF16 that
pays (forms content and modulation; DIINN_FAST_CPU_ISA=avx512_bf16 leaves AMX out); all else in 16
bits is computed in float32.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from diinn_fast.backends import Backend, _convolution, eager
from diinn_fast.formulation import FORMULATIONS
from diinn_fast.geometry import Window, local_offset, nearest_index
from diinn_fast.problem import Problem, content_weights, query_weights

DEVICES = ("cpu",)
DTYPES = "float32; bfloat16 with AMX or AVX512_BF16, else, as float16, computed in float32"
INTEGERS = False
NOTE = "compiled C++, fused; all modes, forward and backward"

WIDTH_UNIT = 32
MOST_LAYERS = 16
"""Kernels take hidden widths that are multiples of WIDTH_UNIT, and at most MOST_LAYERS layers."""

log = logging.getLogger("diinn_fast")
_check_lock = threading.Lock()
_checked: dict[str, str | None] = {}


def unavailable() -> str | None:
    """Why the backend cannot run on this machine, or None."""
    module = _load()
    if isinstance(module, str):
        return module
    if instruction_set() not in module.instruction_sets():
        sets = {**dict.fromkeys(module.instruction_sets()), **int8_instruction_sets()}
        return (
            f"DIINN_FAST_CPU_ISA={os.environ['DIINN_FAST_CPU_ISA']}, but this CPU and build have "
            f"{', '.join(sets)}"
        )
    return _self_check(instruction_set())


def unsupported(problem: Problem, source: Tensor) -> str | None:
    """Why the backend cannot do this problem, or None."""
    if source.device.type != "cpu":
        return f"it needs tensors on the CPU, got {source.device}"
    if source.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, got {source.dtype}"
    if problem.form != "direct" and source.shape[-1] % WIDTH_UNIT:
        return f"it needs a hidden width that is a multiple of {WIDTH_UNIT}"
    return None


def instruction_set() -> str:
    """The instruction set in use: the best one that this CPU has, or DIINN_FAST_CPU_ISA, of a set
    for int8 or bfloat16 the one that goes with it.
    """
    asked = os.environ.get("DIINN_FAST_CPU_ISA")
    if not asked:
        return str(_kernels().instruction_sets()[0])
    sets = {**dict.fromkeys(_bf16_sets(), "avx512"), **int8_instruction_sets()}
    return sets.get(asked, asked)


def bf16_instruction_set() -> str | None:
    """The set of the kernels in bfloat16 that is in use; None where float32's serve."""
    if instruction_set() != "avx512" or not (sets := _bf16_sets()):
        return None
    asked = os.environ.get("DIINN_FAST_CPU_ISA", "")
    return asked if asked in sets else sets[0]


def _bf16_sets() -> list[str]:
    return list(getattr(_kernels(), "bf16_instruction_sets", list)())


def int8_instruction_sets() -> dict[str, str]:
    """Sets of this CPU with kernels for the backend ``int8``, best first: name -> the float32
    kernels' set that goes with it. None in a build from before there were all of them.
    """
    module = _kernels()
    return dict(module.int8_instruction_sets()) if hasattr(module, "int8_conv3x3") else {}


def forward(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """RGB of all queries, see `Backend.forward`."""
    if source.dtype == torch.bfloat16 and _takes_bf16(problem) and not _refuses_shape(weights):
        return _forward_bf16(problem, source, weights)
    # 2.1 times faster than plain PyTorch's bfloat16, and more exact.
    if source.dtype != torch.float32:
        return forward(problem, source.float(), [v.float() for v in weights]).to(source.dtype)
    if reason := _refuses(problem, weights):
        result: Tensor = _fall_back(reason).forward(problem, source, weights)
        return result
    out = source.new_empty(problem.output_shape(source.shape[0], query_weights(weights).channels))
    if out.numel():
        arguments, alive = _arguments(problem, source, weights)
        _kernels().forward(instruction_set(), arguments, out.data_ptr())
        del alive
    return out


def _takes_bf16(problem: Problem) -> bool:
    """Whether the kernels in bfloat16 take a bfloat16 source, rather than the float32 kernels."""
    name = None if problem.form == "direct" else bf16_instruction_set()
    return name is not None and _self_check(f"{name} bf16") is None


def _forward_bf16(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    out = source.new_empty(problem.output_shape(source.shape[0], query_weights(weights).channels))
    if out.numel():
        arguments, alive = _arguments(problem, source, [v.float() for v in weights])
        _kernels().forward_bf16(bf16_instruction_set(), arguments, out.data_ptr())
        del alive
    return out


def backward(
    problem: Problem, grad: Tensor, source: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of [source, *weights], empty where not needed. Each LR row's gradient and each copy
    of the weights' gradients is summed by one thread in a fixed order, and the copies in a fixed
    order: bitwise the same every time.
    """
    if source.dtype == torch.bfloat16 and _takes_bf16(problem) and not _refuses_shape(weights):
        return _backward_bf16(problem, grad, source, weights, needs)
    if source.dtype != torch.float32:
        grads = backward(problem, grad.float(), source.float(), [v.float() for v in weights], needs)
        return [g.to(v.dtype) for g, v in zip(grads, [source, *weights], strict=True)]
    if reason := _refuses(problem, weights):
        result: list[Tensor] = _fall_back(reason).backward(problem, grad, source, weights, needs)
        return result
    return _sum_gradients(problem, grad, source, weights, needs)


def _backward_bf16(
    problem: Problem, grad: Tensor, source: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    grads = _sum_gradients(problem, grad, source, [v.float() for v in weights], needs)
    return [g.to(v.dtype) for g, v in zip(grads, [source, *weights], strict=True)]


def _sum_gradients(
    problem: Problem, grad: Tensor, source: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """By the kernels of the source's dtype, from float32 weights, whose gradients are float32."""
    inputs = [source, *weights]
    if not grad.numel():
        # Without queries nothing flows back, and the kernels expect at least one.
        return [
            torch.zeros_like(v) if need else v.new_empty(0)
            for v, need in zip(inputs, needs, strict=True)
        ]
    # The source's is added to, the weights' are written.
    gradients = [
        v.new_empty(0) if not need else v.new_zeros(v.shape) if n == 0 else v.new_empty(v.shape)
        for n, (v, need) in enumerate(zip(inputs, needs, strict=True))
    ]
    arguments, alive = _arguments(problem, source, weights)
    grad = grad.to(source.dtype).contiguous()
    addresses = [v.data_ptr() if need else 0 for v, need in zip(gradients, needs, strict=True)]
    if source.dtype == torch.bfloat16:
        _kernels().backward_bf16(bf16_instruction_set(), arguments, grad.data_ptr(), addresses)
    else:
        _kernels().backward(instruction_set(), arguments, grad.data_ptr(), addresses)
    # Tensors that `_arguments` converted were needed until here: the kernels have addresses alone.
    del alive
    return gradients


def conv3x3(padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor | None:
    """3x3 convolution of ``[B, h+2, w+2, C]`` by ``[out, 9C]`` (columns c*9 + tap) plus ``[out]``:
    ``[B, h, w, out]``.

    Every pixel is summed in the same order, however the image is cut. None where it does not apply:
    kernels not available, not float32, ``out`` not a multiple of 32.
    """
    # Where the kernel does not apply, the caller takes the framework's convolution.
    tensors = (padded, weight, bias)
    if not _convolution.takes(*tensors) or unavailable():
        return None
    if torch.is_grad_enabled() and any(v.requires_grad for v in tensors):
        return None
    return _convolution.run(partial(_kernels().conv3x3, instruction_set()), *tensors)


def _refuses(problem: Problem, weights: Sequence[Tensor]) -> str | None:
    """Why these weights do not suit the kernels (which ``unsupported`` cannot see), or None."""
    if any(v.dtype != torch.float32 for v in weights):
        return "weights are not float32"
    return _refuses_shape(weights)


def _refuses_shape(weights: Sequence[Tensor]) -> str | None:
    named = query_weights(weights)
    return refuses_shape(named.width, named.layers)


def refuses_shape(width: int, layers: int) -> str | None:
    """Why the kernels do not take so many layers of this hidden width, or None."""
    if width % WIDTH_UNIT or layers > MOST_LAYERS:
        return f"width {width} is not a multiple of {WIDTH_UNIT}, or more than {MOST_LAYERS} layers"
    return None


def _fall_back(reason: str) -> Backend:
    log.debug("backend 'cpu' hands a decode to 'eager': %s", reason)
    return eager


def _arguments(
    problem: Problem, source: Tensor, weights: Sequence[Tensor], coarse: Sequence[Tensor] = ()
) -> tuple[Any, list[Tensor]]:
    """The kernel's view of a decode, and the tensors that must live as long as it.

    ``coarse`` are the int8 kernels' limits, and where they mark the queries beyond.
    """
    # Addresses: the tensors must stay where they are until the kernel has run.
    source = source.detach().contiguous()
    matrices = [v.detach().contiguous() for v in weights]
    query = query_weights(matrices)
    content = content_weights(matrices)
    # A window is located by its rows and columns, points one by one.
    rows, columns = problem.grid(source)
    if problem.window is not None:
        positions = _window_positions(problem, problem.window, rows, columns)
        queries = [0, *problem.window.shape]
    else:
        positions = _point_positions(problem, rows, columns)
        queries = [positions[0].shape[1], 0, 0]
    arguments = _kernels().Problem(
        form=problem.form,
        recurrent_k=content is not None and FORMULATIONS[problem.mode].recurrent_k,
        shape=[
            source.shape[0],
            rows,
            columns,
            query.width,
            query.layers,
            query.channels,
            source.shape[-1] if content is not None else 0,
        ],
        content_rows=0 if content is None else len(content.content),
        source=source.data_ptr(),
        weights=[v.data_ptr() for v in matrices],
        ratio=problem.ratio,
        queries=queries,
        positions=[v.data_ptr() for v in positions] + [0] * (4 - len(positions)),
        threads=torch.get_num_threads(),
        bfloat16=source.dtype == torch.bfloat16,
        coarse=[v.data_ptr() for v in coarse] or [0, 0],
    )
    return arguments, [source, *matrices, *positions, *coarse]


def _window_positions(problem: Problem, window: Window, rows: int, columns: int) -> list[Tensor]:
    """LR row and dy of each HR row, LR column and dx of each HR column."""
    # One row and one column say all: a query's LR pixel is the pair of theirs.
    h, w = problem.lr
    height, width = problem.size
    i = nearest_index(window.y0, window.y1, h, height)
    j = nearest_index(window.x0, window.x1, w, width)
    dy = local_offset(window.y0, window.y1, i, h, height, torch.float32)
    dx = local_offset(window.x0, window.x1, j, w, width, torch.float32)
    i = i - problem.origin[0]
    j = j - problem.origin[1]
    # The maps are monotone: their ends decide.
    if i[0] < 0 or i[-1] >= rows or j[0] < 0 or j[-1] >= columns:
        raise IndexError(
            f"window {tuple(window)} needs LR pixels outside the source's {rows}x{columns} tile"
        )
    return [i, dy.contiguous(), j, dx.contiguous()]


def _point_positions(problem: Problem, rows: int, columns: int) -> list[Tensor]:
    assert problem.index is not None and problem.offset is not None
    low, high = problem.index.aminmax()
    if low < 0 or high >= rows * columns:
        raise IndexError(
            f"point indices must be within 0..{rows * columns - 1}, got {int(low)}..{int(high)}"
        )
    return [
        problem.index.to(torch.int64).contiguous(),
        problem.offset.detach().to(torch.float32).contiguous(),
    ]


@cache
def _load() -> ModuleType | str:
    """The compiled module, or why there is none."""
    try:
        return importlib.import_module("diinn_fast._cpu")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            return (
                "the kernels are not compiled (install a C++ compiler, then reinstall diinn_fast)"
            )
        return f"the compiled kernels cannot be loaded: {error}"


def _kernels() -> Any:
    module = _load()
    assert not isinstance(module, str), module
    return module


def _self_check(name: str) -> str | None:
    """None, or why a set's kernels are refused ("... bf16": in bfloat16 alone): a tiny problem,
    once, compared with eager.
    """
    with _check_lock, torch.autocast("cpu", enabled=False):
        if name not in _checked:
            bf16 = name.endswith(" bf16")
            _checked[name] = _compare_bf16_with_eager() if bf16 else _compare_with_eager()
            if reason := _checked[name]:
                kind = " for bfloat16" if bf16 else ""
                log.warning("the CPU kernels%s are not used: %s", kind, reason)
        return _checked[name]


def _check_problem() -> tuple[Problem, Tensor, list[Tensor], Tensor]:
    """A tiny problem with source, weights and the output's gradient."""
    width = 32
    layers = 3
    lr = (3, 4)
    size = (7, 9)
    draw = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.rand(shape, generator=draw) * 2 - 1

    # Small hidden weights: sine arguments of a few units, so that every branch matters.
    source = values(1, *lr, layers * width)
    grad = values(1, 3, *size)
    weights = [values(width, 3), values(width), values(layers - 1, 2 * width, width) / 4]
    weights += [values(layers - 1, width), values(3, width), values(3)]
    problem = Problem("content", 3, lr, (0, 0), size, Window(0, size[0], 0, size[1]), None, None, 0)
    return problem, source, weights, grad


def _results(
    forward: Callable[..., Tensor],
    backward: Callable[..., list[Tensor]],
    numbers: Sequence[Tensor],
    problem: Problem,
) -> list[Tensor]:
    """Output and all gradients of [source, *weights, grad]."""
    source, *weights, grad = numbers
    gradients = backward(problem, grad, source, weights, [True] * (1 + len(weights)))
    return [forward(problem, source, weights), *gradients]


def _compare_bf16_with_eager() -> str | None:
    # Both from the same rounded numbers, so that only their sums are compared.
    problem, source, weights, grad = _check_problem()
    rounded = [v.bfloat16() for v in (source, *weights, grad)]
    try:
        ours = _results(_forward_bf16, _backward_bf16, rounded, problem)
    except Exception as error:
        return f"their self-check failed: {error}"
    theirs = _results(eager.forward, eager.backward, [v.float() for v in rounded], problem)
    # Factors are rounded by up to 2^-9 of themselves, and the signs of a sum's terms are mixed.
    pairs = zip(ours, theirs, strict=True)
    apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    if apart <= 0.02:
        return None
    return f"their self-check differs from plain PyTorch by {apart:.1e} of the largest value"


def _compare_with_eager() -> str | None:
    problem, source, weights, grad = _check_problem()
    numbers = [source, *weights, grad]
    try:
        ours = _results(forward, backward, numbers, problem)
    except Exception as error:
        # Whatever goes wrong in a compiled module is a reason not to use it, not a reason to stop.
        return f"their self-check failed: {error}"
    theirs = _results(eager.forward, eager.backward, numbers, problem)
    # Sums in another order differ by rounding; anything beyond that is a wrong kernel.
    for a, b in zip(ours, theirs, strict=True):
        if not torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max())):
            apart = float((a - b).abs().max())
            return f"their self-check differs from plain PyTorch by {apart:.1e}"
    return None
