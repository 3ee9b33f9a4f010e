"""Models that can be trained, by name. Each is ``[B, 3, h, w]`` to RGB at any size, and offers

- ``encoder(lr)``: features ``[B, C, h, w]``;
- ``decode(features, size)``: RGB ``[B, 3, H, W]``;
- ``sample_pixels(features, yx, size)``: RGB ``[B, N, 3]`` of HR pixels yx, int64 ``[B, N, 2]``.
"""

from __future__ import annotations

from torch import nn

from diinn_fast.baselines import LIIF, MetaSR
from diinn_fast.checkpoints import fit
from diinn_fast.errors import CheckpointError
from diinn_fast.loading import load_model
from diinn_fast.model import DIINN

MODELS: dict[str, type[nn.Module]] = {"diinn": DIINN, "liif": LIIF, "metasr": MetaSR}


def start_from(net: nn.Module, weights: str) -> None:
    """Give a new model the weights of a trained one (bundled name, checkpoint or folder). Raises
    CheckpointError.
    """
    trained = load_model(weights)
    if type(trained) is not type(net):
        raise CheckpointError(
            f"{weights} is a {type(trained).__name__} model, and the run trains a "
            f"{type(net).__name__}: choose weights of the same architecture"
        )
    fit(net, trained.state_dict(), weights)


def take_encoder(net: nn.Module, weights: str) -> None:
    """Give a new model the encoder of a trained one of any architecture (bundled name, checkpoint
    or folder); its decoder stays new. Raises CheckpointError.
    """
    trained = load_model(weights).get_submodule("encoder")
    fit(net.get_submodule("encoder"), trained.state_dict(), f"the encoder of {weights}")


def make_model(
    arch: str = "diinn", encoder: str = "rdn", mode: int = 3, init_q: bool = False
) -> nn.Module:
    """An untrained model; ``mode`` and ``init_q`` are DIINN's alone."""
    if arch not in MODELS:
        raise ValueError(f"unknown model {arch!r}: choose one of {', '.join(MODELS)}")
    return DIINN(mode, init_q, encoder) if arch == "diinn" else MODELS[arch](encoder)
