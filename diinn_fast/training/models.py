"""Models that can be trained, by name. Each is ``[B, 3, h, w]`` to RGB at any size, and offers

- ``encoder(lr)``: features ``[B, C, h, w]``;
- ``decode(features, size)``: RGB ``[B, 3, H, W]``;
- ``sample_pixels(features, yx, size)``: RGB ``[B, N, 3]`` of HR pixels yx, int64 ``[B, N, 2]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from diinn_fast.inference import load_weights
from diinn_fast.model import DIINN, fit


def _diinn(encoder: str, mode: int, init_q: bool) -> nn.Module:
    return DIINN(mode, init_q, encoder)


def _liif(encoder: str, mode: int, init_q: bool) -> nn.Module:
    from diinn_fast.baselines import LIIF

    return LIIF(encoder)


def _metasr(encoder: str, mode: int, init_q: bool) -> nn.Module:
    from diinn_fast.baselines import MetaSR

    return MetaSR(encoder)


MODELS: dict[str, Callable[[str, int, bool], nn.Module]] = {
    "diinn": _diinn,
    "liif": _liif,
    "metasr": _metasr,
}


def start_from(net: nn.Module, weights: str) -> None:
    """Give a new model the weights of a trained one (bundled name, checkpoint or folder). Raises
    CheckpointError.
    """
    model_class: Any = type(net)
    trained = (
        load_weights(weights) if model_class is DIINN else model_class.from_checkpoint(weights)
    )
    fit(net, trained.state_dict(), weights)


def make_model(
    arch: str = "diinn", encoder: str = "rdn", mode: int = 3, init_q: bool = False
) -> nn.Module:
    """An untrained model; ``mode`` and ``init_q`` are DIINN's alone."""
    if arch not in MODELS:
        raise ValueError(f"unknown model {arch!r}: choose one of {', '.join(MODELS)}")
    return MODELS[arch](encoder, mode, init_q)
