"""What is evaluated: bicubic, or a model by bundled name, folder or checkpoint, of any
architecture.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diinn_fast.baselines import bicubic
from diinn_fast.errors import UpscaleError
from diinn_fast.inference.identity import weights_digest
from diinn_fast.loading import load_model
from diinn_fast.model import DEFAULT_WEIGHTS, DIINN

Upscale = Callable[[Tensor, tuple[int, int]], Tensor]
"""LR ``[1, 3, h, w]`` in [0, 1] and the HR size, to SR ``[1, 3, H, W]``, about [0, 1]."""


@dataclass(frozen=True)
class Candidate:
    """A model under the name that tables give it, and how it enlarges a picture."""

    label: str
    """Its name in tables."""
    upscale: Upscale
    weights: str
    """Fingerprint of the weights, so that rows of other weights under the same label are not taken
    for these.
    """
    model: nn.Module | None = None


def load_candidate(spec: str, device: torch.device) -> Candidate:
    """A candidate by ``bicubic``, ``bundled``, a bundled model's name, a path, or ``LABEL=`` and
    one of these.

    A checkpoint's architecture (DIINN, LIIF, Meta-SR) is read from its tensors. Raises UpscaleError
    or CheckpointError.
    """
    label, _, source = spec.rpartition("=")
    if source == "bicubic":
        return Candidate(label or "bicubic", bicubic, "-")
    name = None if source == "bundled" else source
    model: Any = load_model(name).to(device).eval().requires_grad_(False)

    def upscale(lr: Tensor, size: tuple[int, int]) -> Tensor:
        result: Tensor = model((lr - 0.5) / 0.5, size) * 0.5 + 0.5
        return result

    return Candidate(label or default_label(source), upscale, fingerprint(model), model)


def self_ensemble(candidate: Candidate) -> Candidate:
    """``NAME+``: the mean of its results for the 8 flips and transposes of the LR image."""

    def upscale(lr: Tensor, size: tuple[int, int]) -> Tensor:
        total = torch.zeros(())
        # What was done to the input is undone on the output, in reverse order.
        for turned in (False, True):
            for flips in ((), (-2,), (-1,), (-2, -1)):
                seen = lr.flip(flips)
                if turned:
                    sr = candidate.upscale(seen.mT, size[::-1]).mT
                else:
                    sr = candidate.upscale(seen, size)
                total = total + sr.flip(flips)
        return total / 8

    return replace(candidate, label=f"{candidate.label}+", upscale=upscale)


def default_label(source: str) -> str:
    """``DEFAULT_WEIGHTS`` for ``bundled``, else the last part of the path that says something."""
    if source == "bundled":
        return DEFAULT_WEIGHTS
    parts = [re.sub(r"\.(ckpt|pt|pth|safetensors)$", "", part) for part in Path(source).parts]
    while len(parts) > 1 and re.fullmatch(
        r"(last|best|model|checkpoints|export|epoch.*|step.*|version_\d+)", parts[-1]
    ):
        parts.pop()
    return parts[-1]


def fingerprint(model: nn.Module) -> str:
    """Ten hexadecimal digits that depend on every weight."""
    return weights_digest(model)[:10]


def describe(model: nn.Module) -> str:
    """``DIINN mode 3``, ``LIIF``, ..."""
    if isinstance(model, DIINN):
        return f"DIINN mode {model.decoder.mode}{' init_q' if model.decoder.init_q else ''}"
    return type(model).__name__


def unique(candidates: list[Candidate]) -> list[Candidate]:
    """The candidates, if their labels differ; UpscaleError otherwise."""
    labels = [c.label for c in candidates]
    for label in labels:
        if labels.count(label) > 1:
            raise UpscaleError(f"two models are called {label!r}: name them, as LABEL=MODEL")
    return candidates
