"""An edit done to the published model and to ours, side by side: what each then gives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.helpers.edits import EDITS, ROUNDED, Edit
from tests.helpers.measure import relative
from tests.helpers.published import pair


@dataclass
class Run:
    """What a model gives: values, or the error that it raises."""

    values: dict[str, Tensor | None]
    error: Exception | None = None


SIZES = ((9, 13), (3, 4))
"""Of the output of an image of 5 x 6: enlarged, and made smaller."""


def run(net: Any, apply: Edit, dtype: torch.dtype) -> Run:
    """The edit, a training step, and outputs before and after it."""
    torch.manual_seed(1)
    x = torch.rand(2, 3, 5, 6, dtype=dtype) * 2 - 1
    x.requires_grad_()
    values: dict[str, Tensor | None] = {}
    try:
        torch.manual_seed(7)
        changed = apply(net.to(dtype))  # an edit may add tensors of its own
        net = (net if changed is None else changed).to(dtype)
        values |= dict(outputs(net, x, "before"))
        values |= step(net, x)
        values |= dict(outputs(net, x, "after"))
    except Exception as error:  # whatever it is: the other side is to raise as well
        return Run(values, error)
    return Run(values)


def outputs(net: Any, x: Tensor, when: str) -> Iterator[tuple[str, Tensor]]:
    """Without gradients."""
    for size in SIZES:
        torch.manual_seed(3)
        with torch.no_grad():
            yield f"output {when} at {size}", net(x.detach(), size)
    # what hooks kept, as it is now
    for name, value in getattr(net, "kept", {}).items():
        yield f"kept {when} of {name}", value.clone()


def step(net: Any, x: Tensor) -> dict[str, Tensor | None]:
    """Outputs with gradients, gradients, and one step of the optimizer."""
    values: dict[str, Tensor | None] = {}
    loss = torch.zeros((), dtype=x.dtype)
    for size in SIZES:
        torch.manual_seed(3)
        values[f"output {size} with gradients"] = out = net(x, size)
        loss = loss + out.square().mean()
    for name, value in getattr(net, "kept", {}).items():
        values[f"kept of {name}"] = value.detach().clone()
    net.zero_grad()
    loss.backward()
    parameters = dict(net.named_parameters())
    values["gradient of x"] = x.grad
    values |= {f"gradient of {name}": p.grad for name, p in parameters.items()}
    trained = [p for p in parameters.values() if p.requires_grad]
    if trained:
        torch.optim.SGD(trained, lr=0.01).step()
    return values


MODES = ((1, False), (2, False), (4, False), (3, True), (1, True))


def other_mode(name: str) -> tuple[int, bool]:
    """Each edit is tried in mode 3, and in one of the other modes."""
    return MODES[list(EDITS).index(name) % len(MODES)]


def effect(name: str) -> float:
    """How far an edit moves the published model's output, as a part of its largest value; infinite
    if its shape or the error that it raises is the effect.
    """
    a, b = as_built(), output(EDITS[name])
    if b is None or a.shape != b.shape:
        return math.inf
    return relative(b, a)


def output(edit: Edit) -> Tensor | None:
    """Of the edited published model; None where it has none."""
    torch.manual_seed(0)
    published, _ = pair()
    return run(published, edit, torch.float64).values.get(f"output before at {SIZES[0]}")


@cache
def as_built() -> Tensor:
    """Without an edit."""
    result = output(lambda net: None)
    assert result is not None
    return result


def compare(name: str, mode: int, init_q: bool, dtype: torch.dtype) -> list[str]:
    """What differs between the published model and ours when both are edited; [] if nothing."""
    torch.manual_seed(0)
    published, ours = pair(mode, init_q)
    want = run(published, EDITS[name], dtype)
    got = run(ours, EDITS[name], dtype)
    if want.error or got.error:
        if want.error and got.error:
            return []
        who = "ours raises" if got.error else "only the published class raises"
        return [f"{who}: {type(got.error or want.error).__name__}: {got.error or want.error}"]
    found = []
    limit = 1e-8 if dtype == torch.float64 else 2e-3
    if name in ROUNDED:
        limit = 0.1
    for key in sorted(want.values.keys() | got.values.keys()):
        a = want.values.get(key)
        b = got.values.get(key)
        if a is None or b is None:
            if a is not b:
                found.append(f"{key}: only one of the two has it")
        elif a.shape != b.shape:
            found.append(f"{key}: {tuple(a.shape)} is {tuple(b.shape)} in ours")
        else:
            # what is zero but for rounding differs by nothing
            error = float((a - b).detach().abs().max() / a.detach().abs().max().clamp(min=1e-4))
            if not error <= limit:
                found.append(f"{key}: differs by {error:.1e}")
    return found
