"""One process with TRITON_INTERPRET=1, in which the Triton kernels run as NumPy on CPU tensors.

Triton chooses its interpreter when it is imported, and then generates no code: the tests of the
generated code and those of the numbers cannot share a process. This one lives as long as the tests.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from typing import Any

import pytest
import torch

from diinn_fast import backends

LOG = "diinn_fast"


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` of an importable module in the interpreter's process.

    Errors are raised and log records are logged here as if it had run here. Fresh memory is
    poisoned there if it is here (`torch.use_deterministic_algorithms`).
    """
    poisoned = torch.are_deterministic_algorithms_enabled()
    # Pickled by hand: the pool's own way puts tensors into shared memory.
    job = pickle.dumps((function, arguments, poisoned))
    result, records = pickle.loads(_process().submit(_work, job).result())
    for level, message in records:
        logging.getLogger(LOG).log(level, message)
    return result


@cache
def _process() -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    atexit.register(pool.shutdown)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "TRITON_INTERPRET", "1")
        pool.submit(torch.set_num_threads, 1).result()
    return pool


def _work(job: bytes) -> bytes:
    function, arguments, poisoned = pickle.loads(job)
    log = logging.getLogger(LOG)
    log.setLevel(logging.DEBUG)
    records: list[tuple[int, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(  # type: ignore[method-assign]
        (record.levelno, record.getMessage())
    )
    log.addHandler(handler)
    torch.use_deterministic_algorithms(poisoned)
    try:
        result = function(*arguments)
    finally:
        torch.use_deterministic_algorithms(False)
        log.removeHandler(handler)
    return pickle.dumps((result, records))


def install(patch: pytest.MonkeyPatch) -> None:
    """The Triton backends of this process do their work in the interpreter's."""
    patch.setattr(backends.load("triton"), "interpreted", lambda: True)
    for name in ("triton", "triton_int8"):
        for function in ("forward", "backward"):
            patch.setattr(backends.load(name), function, partial(_there, name, function))


def _there(name: str, function: str, *arguments: Any) -> Any:
    return call(_here, name, function, *_detached(arguments))


def _detached(arguments: tuple[Any, ...]) -> list[Any]:
    """Tensors travel without their autograd graph."""

    def detach(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach()
        if hasattr(value, "_fields"):
            return type(value)(*map(detach, value))
        return list(map(detach, value)) if isinstance(value, (list, tuple)) else value

    return [detach(value) for value in arguments]


def _here(name: str, function: str, *arguments: Any) -> Any:
    return getattr(backends.load(name), function)(*arguments)
