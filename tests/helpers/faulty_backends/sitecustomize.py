"""Backends with faults, for every Python process that has this folder on PYTHONPATH: Python imports
a module of this name when it starts.

- ``sound``: plain PyTorch under another name;
- ``wrong``: its values are 2 % off;
- ``crashes``: its backward ends the process by a signal;
- ``hangs``: its forward never returns at the size that a dry run times, which ``prepare`` does not
  use.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import ModuleType
from typing import Any

from diinn_fast import backends
from diinn_fast.backends import eager

NAMES = ("sound", "wrong", "crashes", "hangs")
TIMED = (1, 3, 9, 12)


def make(name: str) -> ModuleType:
    """A backend module that does what plain PyTorch does."""
    module = ModuleType(f"diinn_fast.backends.{name}")
    vars(module).update({k: v for k, v in vars(eager).items() if not k.startswith("__")})
    vars(module).update(DEVICES=("cuda", "cpu"), DTYPES="float16")
    return module


def wrong(*arguments: Any) -> Any:
    return 1.02 * eager.forward(*arguments)


def crashes(*arguments: Any) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(*arguments: Any) -> Any:
    out = eager.forward(*arguments)
    if out.shape == TIMED:
        time.sleep(3600)
    return out


def install() -> dict[str, ModuleType]:
    """The modules by their full names."""
    found = {name: make(name) for name in NAMES}
    vars(found["wrong"]).update(forward=wrong)
    vars(found["crashes"]).update(backward=crashes)
    vars(found["hangs"]).update(forward=hangs)
    return {module.__name__: module for module in found.values()}


if __name__ == "sitecustomize":
    sys.modules.update(install())
    backends.NAMES = (*NAMES, "eager")
