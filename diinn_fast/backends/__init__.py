"""Backends: interchangeable implementations of the decode operator, and the choice among them.

A backend is a module of this folder with the functions and constants of `Backend`. ``auto`` takes
the first of ``ORDER`` that is available and supports the case.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, cast

from torch import Tensor

from diinn_fast.errors import BackendError
from diinn_fast.problem import Problem

ORDER = ("cpu", "eager")
"""Backends that ``auto`` considers, fastest first; the last one runs everywhere."""
NAMES: tuple[str, ...] = ("cpu", "int8", "triton", "triton_int8", "cuda", "cuda_int8", "eager")
"""Backends that can be asked for by name: one enters ORDER when it has been measured on
hardware.
"""

PLAIN = "plain"
"""Not a backend of the operator: the decoder itself calls its layers one by one."""

log = logging.getLogger("diinn_fast")
_warned: set[str] = set()


class Backend(Protocol):
    """What a backend's module has."""

    __name__: str
    DTYPES: str
    """For ``diinn-fast info``, as is NOTE."""
    INTEGERS: bool
    """Whether hidden products are of 8-bit integers: as coarse as bfloat16, and without gradients.
    """
    NOTE: str

    @property
    def DEVICES(self) -> tuple[str, ...]:
        """Types of the devices whose tensors it takes."""

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine, or None if it can."""

    def unsupported(self, problem: Problem, source: Tensor) -> str | None:
        """Why it cannot do this problem, or None if it can."""

    def forward(self, problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """The operator ``decode`` of ``diinn_fast.ops``."""

    def backward(
        self,
        problem: Problem,
        grad: Tensor,
        source: Tensor,
        weights: Sequence[Tensor],
        needs: Sequence[bool],
    ) -> list[Tensor]:
        """Gradients of [source, *weights], empty where not needed."""


def check_name(name: str) -> str:
    """The name, if there is such a backend; BackendError otherwise."""
    if name not in ("auto", PLAIN, *NAMES):
        known = ", ".join(("auto", *NAMES, PLAIN))
        raise BackendError(f"unknown backend {name!r}: choose one of {known}")
    return name


_DEFAULT = os.environ.get("DIINN_FAST_BACKEND", "auto")
_requested: ContextVar[str] = ContextVar("diinn_fast_backend", default=_DEFAULT)


def load(name: str) -> Backend:
    """The module of a backend, imported at its first use."""
    return cast(Backend, importlib.import_module(f"diinn_fast.backends.{name}"))


def why_not(name: str) -> str | None:
    """Why this backend cannot run on this machine, or None; BackendError for an unknown name."""
    return load(name).unavailable() if check_name(name) in NAMES else None


def requested() -> str:
    """The backend in force: set by ``use_backend``, else by DIINN_FAST_BACKEND, else ``auto``."""
    return check_name(_requested.get())


# torch.compile cannot read context variables: it keeps the backend that is in force when it traces.
# What torch.compiler.assume_constant_result does, without importing the compiler.
requested._dynamo_marked_constant = True  # type: ignore[attr-defined]


class use_backend:
    """Choose the backend of decodes: call it to set one from here on, or use it as a context
    manager.

    The choice holds in this thread or asyncio task (it is a context variable); for all threads of a
    process set DIINN_FAST_BACKEND. ``plain`` calls the decoder's layers one by one.

    >>> use_backend("eager")
    >>> with use_backend("cpu"): ...

    Raises BackendError, with the reason and the remedy, if that backend cannot run on this machine.
    """

    def __init__(self, name: str) -> None:
        if reason := why_not(name):
            raise BackendError(f"backend {name!r} cannot run: {reason}")
        self._previous = _requested.set(name)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        _requested.reset(self._previous)


def choose(name: str, problem: Problem, source: Tensor) -> Backend:
    """The backend module for this problem; ``auto`` falls back with one log line, a named one
    raises BackendError.
    """
    if check_name(name) == PLAIN:
        raise BackendError("backend 'plain' is served by ImplicitDecoder, not by the operator")
    if name != "auto":
        backend = load(name)
        if reason := backend.unavailable() or backend.unsupported(problem, source):
            raise BackendError(f"backend {name!r} cannot run this decode: {reason}")
        return backend
    # The fastest that takes it; one that should but cannot is worth a line.
    for candidate in ORDER[:-1]:
        backend = load(candidate)
        if not backend.unavailable() and not backend.unsupported(problem, source):
            return backend
        if source.device.type in backend.DEVICES and (reason := backend.unavailable()):
            _warn_once(candidate, reason)
    return load(ORDER[-1])


def conv3x3(name: str, padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 convolution for inference on the CPU, by a backend that has one for the case, else by
    ``eager``.
    """
    # Imported here: backends are loaded when they are first needed.
    from diinn_fast.backends import cpu, eager, int8

    candidates = {"auto": [cpu], "cpu": [cpu], "int8": [int8, cpu]}.get(name, [])
    for candidate in candidates:
        out: Tensor | None = candidate.conv3x3(padded, weight, bias)
        if out is not None:
            return out
    return eager.conv3x3(padded, weight, bias)


def projection(name: str, width: int, layers: int) -> str:
    """The backend that projects the features for decodes by ``name``: itself, but that integers
    are for layers alone whose hidden products are of integers too.
    """
    if name != "int8":
        return name
    from diinn_fast.backends import int8

    return name if int8.takes_layers(width, layers) else "cpu"


def table() -> Iterator[dict[str, str]]:
    """One row per backend for ``diinn-fast info``."""
    for name in NAMES:
        backend = load(name)
        yield {
            "backend": name,
            "available": backend.unavailable() or "yes",
            "devices": ", ".join(backend.DEVICES),
            "dtypes": backend.DTYPES,
            "note": backend.NOTE,
        }


def _warn_once(name: str, reason: str) -> None:
    if name not in _warned:
        _warned.add(name)
        log.warning("backend %r is not used, falling back to %r: %s", name, ORDER[-1], reason)


@contextmanager
def quiet() -> Iterator[None]:
    """No fall-back messages inside (for self-checks)."""
    previous = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = previous
