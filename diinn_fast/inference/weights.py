"""A model by the name of a bundled one, from a model folder, or from a checkpoint file; never from
the network.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from diinn_fast.errors import CheckpointError, UpscaleError
from diinn_fast.model import BUNDLED, DEFAULT_WEIGHTS, DIINN, bundled_names, fit, read_checkpoint


def load_weights(name: str | os.PathLike[str] | None = None) -> DIINN:
    """Model in float32, on the CPU, in evaluation mode.

    Args:
        name: a bundled model's name, a folder with ``config.json`` and ``model.safetensors``, or a
            checkpoint file (official Lightning, state_dict, safetensors); None is the default
            bundled model.

    Raises:
        UpscaleError: no such model.
        CheckpointError: a damaged or unfitting one (another architecture, NaN); names the first key
            that is wrong.
    """
    wanted = DEFAULT_WEIGHTS if name is None else os.fspath(name)
    if wanted in bundled_names():
        model = _load_folder(BUNDLED / wanted)
    elif wanted and Path(wanted).is_dir():
        model = _load_folder(Path(wanted))
    elif wanted and Path(wanted).is_file():
        model = DIINN.from_checkpoint(wanted)
    else:
        bundled = ", ".join(bundled_names()) or "none in this installation"
        raise UpscaleError(
            f"weights {wanted!r} are unknown: give a checkpoint file, a model folder, or a "
            f"bundled name ({bundled})"
        )
    return model.eval()


def _load_folder(folder: Path) -> DIINN:
    """Like ``DIINN.from_pretrained``, but every tensor must be there, fit, and be finite."""
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"model folder {folder} has no {name}: save it again with save_pretrained"
            )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is not a JSON object")
        with torch.device("meta"):
            model = DIINN(
                **{name: config[name] for name in ("mode", "init_q", "encoder") if name in config}
            )
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"model folder {folder} has an unusable config.json ({error})"
        ) from error
    state, _ = read_checkpoint(folder / "model.safetensors")
    fit(model, state, folder / "model.safetensors")
    return model
