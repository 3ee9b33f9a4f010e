"""Encoders: LR image to LR features. Each has one file that holds everything specific to it; a new
encoder is such a file and a line in ``ENCODERS``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from diinn_fast.encoders.base import Cost, Encoder, channels_of, cost_of
from diinn_fast.encoders.carn import CARN
from diinn_fast.encoders.convolutions import LEAST_PIXELS, fast_layout, use_fast_weights
from diinn_fast.encoders.edsr import EDSR
from diinn_fast.encoders.rdn import RDB, RDN

__all__ = [
    "CARN",
    "EDSR",
    "ENCODERS",
    "LEAST_PIXELS",
    "RDB",
    "RDN",
    "Cost",
    "Encoder",
    "channels_of",
    "cost_of",
    "detect_encoder",
    "encoder_class",
    "encoder_names",
    "fast_layout",
    "make_encoder",
    "use_fast_weights",
    "without_unused",
]

ENCODERS: dict[str, type[Encoder]] = {encoder.name: encoder for encoder in (RDN, EDSR, CARN)}


def make_encoder(encoder: str | nn.Module) -> nn.Module:
    """Encoder by name (see `encoder_names`), or the given module itself."""
    return encoder if isinstance(encoder, nn.Module) else encoder_class(encoder)()


def encoder_class(name: str) -> type[Encoder]:
    """The class of that name. Raises ValueError, which lists the names that there are."""
    if name not in ENCODERS:
        raise ValueError(
            f"unknown encoder {name!r}: choose one of {encoder_names()} or pass an nn.Module"
        )
    return ENCODERS[name]


def encoder_names() -> str:
    """The names of all encoders, for a sentence."""
    return ", ".join(ENCODERS)


def detect_encoder(keys: Collection[str]) -> str | None:
    """Name of the encoder whose state_dict has these keys (without a prefix); None: of no known
    one.
    """
    return next((name for name, encoder in ENCODERS.items() if encoder.detect(keys)), None)


def without_unused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state_dict without those tensors of its encoder that compute nothing."""
    unused = tuple(f"encoder.{start}" for each in ENCODERS.values() for start in each.unused)
    return {key: value for key, value in state.items() if not key.startswith(unused)}
