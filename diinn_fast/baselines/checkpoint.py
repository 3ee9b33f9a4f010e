"""Checkpoints of the baselines: the authors' files, and those that training writes."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from diinn_fast.encoders import detect_encoder, encoder_names
from diinn_fast.errors import CheckpointError
from diinn_fast.model import fit, read_checkpoint

Model = TypeVar("Model", bound=nn.Module)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors by the model's own names, from the authors' layout (``model.sd``) or any that DIINN's
    loader reads.

    Never executes code from the file. Raises CheckpointError.
    """
    path = Path(path)
    try:
        content = (
            torch.load(path, map_location="cpu", weights_only=True)
            if path.suffix != ".safetensors"
            else None
        )
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError):
        content = None  # the general reader says what is wrong
    published = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(published, Mapping) or not isinstance(published.get("sd"), Mapping):
        return read_checkpoint(path)[0]
    state = {
        str(k): v for k, v in published["sd"].items() if "_mean." not in str(k)
    }  # mean shifts, unused
    if not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            f"checkpoint {path} is not a state_dict: it should map parameter names to tensors"
        )
    return state


def layers_of(state: Mapping[str, Tensor]) -> int:
    """How many products the file's ``imnet`` has: 5 for LIIF, 2 for Meta-SR, 0 for anything
    else.
    """
    return sum(k.startswith("imnet.layers.") and k.endswith(".weight") for k in state)


def load(model_class: type[Model], path: str | Path) -> Model:
    """Model of a class whose one argument is the encoder's name; every tensor must be there, fit,
    and be finite.
    """
    state = read_state(path)
    if not layers_of(state):
        raise CheckpointError(
            f"checkpoint {path} is not a {model_class.__name__} model: it has no "
            "'imnet.layers.0.weight'"
        )
    encoder = detect_encoder(
        [k.removeprefix("encoder.") for k in state if k.startswith("encoder.")]
    )
    if encoder is None:
        raise CheckpointError(f"checkpoint {path} has an encoder that is none of {encoder_names()}")
    with torch.device("meta"):
        model = model_class(encoder)
    fit(model, state, path)
    return model
