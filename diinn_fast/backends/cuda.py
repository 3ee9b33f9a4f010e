"""Backend ``cuda``: the fused decoder in CUDA C++ (csrc/cuda), for NVIDIA GPUs of compute
capability 8.0 and up.

float16 and bfloat16 operands with float32 sums. Compiled with nvcc at first use, once per
architecture, unless the installation did it (``_nvcc``); no CUDA headers of the framework are
involved. Not yet run on hardware: what is proven, and how, is in docs/kernels/cuda.md.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from diinn_fast.backends import (
    Backend,
    _cuda,
    _cuda_gradient,
    _nvcc,
    _self_check,
    eager,
    triton,
)
from diinn_fast.errors import BackendError
from diinn_fast.files import cache_folder
from diinn_fast.problem import Problem, query_weights

DEVICES = ("cuda",)
DTYPES = "float16, bfloat16"
INTEGERS = False
NOTE = (
    "CUDA C++, fused; all modes without init_q, forward and backward; not yet run on hardware, "
    "therefore only by name"
)

KERNEL = "DIINN_FAST_CUDA_KERNEL"
"""Environment variable that chooses the forward kernel."""

log = logging.getLogger("diinn_fast")
_lock = threading.Lock()
_checked: dict[tuple[Any, ...], str | None] = {}


def unavailable() -> str | None:
    """Why the backend cannot run on this machine, or None."""
    if not torch.cuda.is_available():
        return (
            "PyTorch sees no CUDA device (it needs an NVIDIA GPU, its driver and a CUDA build "
            "of PyTorch)"
        )
    if torch.version.hip:
        return "it is written for NVIDIA GPUs, this is a ROCm build of PyTorch"
    return _not_compiled(_nvcc.architecture(*torch.cuda.get_device_capability()))


@cache
def _not_compiled(arch: str) -> str | None:
    if _nvcc.nvcc() is None and _nvcc.built(arch) is None:
        return (
            "its kernels are not compiled and nvcc was not found (install the CUDA toolkit, or "
            "set CUDA_HOME)"
        )
    return None


def unsupported(problem: Problem, source: Tensor) -> str | None:
    """Why the backend cannot do this problem, or None."""
    if source.device.type != "cuda":
        return f"it needs tensors on a CUDA device, got {source.device}"
    if (capability := torch.cuda.get_device_capability(source.device)) < (8, 0):
        return (
            f"it needs compute capability 8.0 or higher, {source.device} has "
            f"{capability[0]}.{capability[1]}"
        )
    return _unsuited(problem, source)


def _unsuited(problem: Problem, source: Tensor) -> str | None:
    """``unsupported`` as far as it does not depend on the device."""
    if source.dtype not in (torch.float16, torch.bfloat16):
        return (
            f"it computes in {DTYPES}, got {source.dtype}: convert the model, use autocast, or "
            "backend 'triton'"
        )
    if problem.form == "direct":
        return "it has no direct form (init_q, down-scaling, few points): use backend 'triton'"
    return None


def forward(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """RGB of all queries, see `Backend.forward`."""
    with torch.cuda.device_of(source):
        if (other := _other(problem, source, weights, gradients=False)) is not None:
            result: Tensor = other.forward(problem, source, weights)
            return result
        return _forward(problem, source, weights)


def backward(
    problem: Problem, grad: Tensor, source: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of [source, *weights], empty where not needed; recomputed in slabs, bitwise the
    same every time.
    """
    with torch.cuda.device_of(source):
        if (other := _other(problem, source, weights, gradients=True)) is not None:
            result: list[Tensor] = other.backward(problem, grad, source, weights, needs)
            return result
        return _backward(problem, grad, source, weights, needs)


def _backward(
    problem: Problem, grad: Tensor, source: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    return _cuda_gradient.backward(
        problem, grad, _cuda.aligned(source.detach()), weights, needs, _launch
    )


def _forward(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return launch_forward(problem, source, weights, _kernel(source))


def launch_forward(
    problem: Problem, source: Tensor, weights: Sequence[Tensor], kernel: int
) -> Tensor:
    """RGB of all queries by one of the kernels that ``_cuda`` numbers."""
    out = source.new_empty(problem.output_shape(source.shape[0], query_weights(weights).channels))
    if out.numel():
        decode = _cuda.describe(problem, source, weights, out, kernel)
        _launch("diinn_forward", decode, source, _cuda.packed_bytes(decode))
    return out


def _launch(name: str, arguments: Any, source: Tensor, packed_bytes: int) -> None:
    """Start a launcher of csrc/cuda on the current stream, with work space for the packed
    weights.
    """
    packed = torch.empty(packed_bytes, dtype=torch.uint8, device=source.device)
    arguments.packed = packed.data_ptr()
    # The emulated machine has neither device nor stream.
    if source.is_cuda:
        arguments.device = source.device.index
        arguments.stream = torch.cuda.current_stream(source.device).cuda_stream
    # The launcher copies its arguments: nothing needs to outlive this call but the tensors.
    message = ctypes.create_string_buffer(400)
    library = _library(_architecture(source))
    if getattr(library, name)(ctypes.byref(arguments), message, len(message)):
        raise BackendError(f"the CUDA kernels failed: {message.value.decode(errors='replace')}")


def _architecture(source: Tensor) -> str:
    return _nvcc.architecture(*torch.cuda.get_device_capability(source.device))


def _kernel(source: Tensor) -> int:
    """Which forward kernel: wgmma exists on Hopper alone. ``DIINN_FAST_CUDA_KERNEL=portable`` takes
    the other one there too, so that one GPU shows both.
    """
    if os.environ.get(KERNEL) == "portable":
        return _cuda.PORTABLE
    return _cuda.HOPPER if _architecture(source) == "90a" else _cuda.PORTABLE


def _library(arch: str) -> ctypes.CDLL:
    with _lock:
        return _load(arch)


@cache
def _load(arch: str) -> ctypes.CDLL:
    path = _nvcc.built(arch)
    if path is None:
        log.warning(
            "compiling the CUDA kernels for sm_%s into %s: once, about ten seconds",
            arch,
            cache_folder(),
        )
        try:
            path = _nvcc.compile_library(arch, cache_folder())
        except _nvcc.CompileError as error:
            raise BackendError(f"backend 'cuda' cannot run: {error}") from error
    return interface(path)


def interface(path: object) -> ctypes.CDLL:
    """A compiled library with its functions' types; its struct must be the one that ``_cuda``
    mirrors.
    """
    # A struct of another size would be read beyond its end.
    library = ctypes.CDLL(str(path))
    launchers = {"diinn_forward": _cuda.Decode, "diinn_gradient": _cuda.Gradient}
    for (name, struct), size in zip(
        launchers.items(), ("diinn_decode_bytes", "diinn_gradient_bytes"), strict=True
    ):
        getattr(library, size).restype = ctypes.c_int64
        if getattr(library, size)() != ctypes.sizeof(struct):
            raise BackendError(f"{path} was compiled from other sources: remove it")
        getattr(library, name).argtypes = [ctypes.POINTER(struct), ctypes.c_char_p, ctypes.c_int64]
    return library


def _fallback(problem: Problem, source: Tensor) -> Backend:
    if triton.unavailable() or triton.unsupported(problem, source):
        return eager
    return triton


def unsuited_weights(weights: Sequence[Tensor]) -> str | None:
    """What the kernels do not take of these shapes, or None: ``unsupported``, which knows only the
    source, could not see it.
    """
    named = query_weights(weights)
    width = named.width
    layers = named.layers
    channels = named.channels
    fits = 2 <= layers <= _cuda.MOST_LAYERS and channels <= _cuda.MOST_CHANNELS
    if width != _cuda.WIDTH or not fits:
        return f"width {width} (not {_cuda.WIDTH}), {layers} layers or {channels} channels"
    return None


def _other(
    problem: Problem, source: Tensor, weights: Sequence[Tensor], gradients: bool
) -> Backend | None:
    """The backend that must do it instead: said at debug level where the kernels do not apply,
    loudly where they are wrong.
    """
    if why := unsuited_weights(weights):
        log.debug("backend 'cuda' hands a decode on: its kernels do not take %s", why)
        return _fallback(problem, source)
    problem.check_source(source)
    return _fallback(problem, source) if _distrusted(problem, source, weights, gradients) else None


def _distrusted(
    problem: Problem, source: Tensor, weights: Sequence[Tensor], gradients: bool
) -> str | None:
    """Compare the kernels of this decode with eager on a tiny image, once per device and kernel:
    why it is refused.
    """
    with torch.no_grad():
        return _self_check.once(
            _checked,
            problem,
            source,
            weights,
            lambda: compare_with_eager(problem, source, weights, gradients),
            f"the CUDA kernels are not used on {source.device}",
            gradients,
        )


def compare_with_eager(
    problem: Problem, source: Tensor, weights: Sequence[Tensor], gradients: bool
) -> str | None:
    """Why the kernels of this decode are not to be trusted, or None."""
    return _self_check.compare_with_eager(
        problem, source, weights, _forward, _backward if gradients else None, False
    )
