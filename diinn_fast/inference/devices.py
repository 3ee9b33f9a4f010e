"""Where and in which dtype to compute."""

from __future__ import annotations

import torch

from diinn_fast import backends
from diinn_fast.backends import int8
from diinn_fast.errors import BackendError, UpscaleError

AUTO = "auto"
"""The precision that is chosen by device and by the output's bits."""

INT8 = "int8"
"""The precision, and the CPU's backend that has it: what is not in 8 bits is in float32, on CUDA as
fp16 has it.
"""
PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    INT8: torch.float32,
}


def pick_device(device: str | torch.device | None) -> torch.device:
    """A device that exists here; default: CUDA if there is any, else the CPU. Raises
    UpscaleError.
    """
    if device is None or device == "auto":
        return (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise UpscaleError(
            f"device {device!r} is unknown: choose cpu, cuda, cuda:1 or mps"
        ) from None
    if picked.type == "cpu":
        return torch.device("cpu")
    # torch.cuda, torch.mps and others answer the same two questions.
    module = getattr(torch, picked.type, None)
    if module is None or not hasattr(module, "is_available") or not module.is_available():
        raise UpscaleError(
            f"device {str(picked)!r} is not available with torch {torch.__version__} here: use cpu"
        )
    count = module.device_count()
    if (picked.index or 0) >= count:
        raise UpscaleError(
            f"device {str(picked)!r} does not exist, there are {count}: use {picked.type}:0 or cpu"
        )
    if picked.type == "cuda" and picked.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return picked


def is_left(precision: str | None) -> bool:
    """Whether the precision is left to choose."""
    return precision is None or precision == AUTO


def pick_precision(precision: str | None, device: torch.device) -> str:
    """The precision asked for; of one that is left to choose fp16 on CUDA, else fp32, whatever the
    output: `refuses_int8` tells where the CPU takes int8. Raises UpscaleError.
    """
    if precision is None or precision == AUTO:
        return "fp16" if device.type == "cuda" else "fp32"
    if precision not in PRECISIONS:
        raise UpscaleError(
            f"precision {precision!r} is unknown: choose auto, {', '.join(PRECISIONS)}"
        )
    if precision == INT8 and device.type not in ("cpu", "cuda"):
        raise UpscaleError(f"precision int8 is for the CPU and CUDA: use fp16 on {device}")
    return precision


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """fp32 computes in float32, bf16 and fp16 by autocast, int8 in float32 (on CUDA as fp16) but
    for the decoder's products and, on AMX, the encoder's.
    """
    return torch.float16 if precision == INT8 and device.type == "cuda" else PRECISIONS[precision]


def refuses_int8(backend: str, device: torch.device) -> str | None:
    """Why outputs of 8 bits per channel are not made in int8 where the precision is left to choose,
    or None.
    """
    if device.type != "cpu":
        return f"on {device.type} it is taken by name alone"
    if backend != "auto":
        return f"the backend {backend} is asked for"
    return int8.not_native()


def auto_text(backend: str, device: torch.device) -> str:
    """Which precision is taken where it is left to choose, and why."""
    other = pick_precision(AUTO, device)
    if reason := refuses_int8(backend, device):
        return f"{other} (not int8: {reason})" if device.type == "cpu" else other
    return f"int8 for outputs of 8 bits per channel ({int8.instruction_set()}), {other} for others"


def pick_backend(backend: str | None, precision: str | None, device: torch.device) -> str:
    """The backend asked for, or in force; of precision int8 the one that has it. Raises
    BackendError if it cannot run here.
    """
    name = backends.requested() if backend is None else backends.check_name(backend)
    if precision == INT8:
        name = _of_integers(name, device)
    if reason := backends.why_not(name):
        raise BackendError(f"backend {name!r} cannot run: {reason}")
    return name


def _of_integers(name: str, device: torch.device) -> str:
    """The backend of this name's kernels with 8-bit integers."""
    if name in ("triton", "cuda"):
        name = f"{name}_int8"
    if name in ("triton_int8", "cuda_int8"):
        return name
    if name not in ("auto", INT8):
        raise BackendError(
            f"backend {name!r} does not compute in int8: leave the backend or the precision out"
        )
    # What has not been measured on hardware is taken by name alone.
    if device.type == "cuda":
        raise UpscaleError(
            f"precision int8 on {device} is the backends' triton and cuda, one of which has to be "
            "asked for by name: use --backend triton or cuda, or --precision fp16"
        )
    return INT8
