"""One way from a name to a model: a bundled model, a folder, a file, or the Hub."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from diinn_fast.baselines import LIIF, DnCNN, MetaSR
from diinn_fast.checkpoints import read_checkpoint
from diinn_fast.errors import CheckpointError, UpscaleError
from diinn_fast.model import BUNDLED, DEFAULT_WEIGHTS, DIINN, HUB, bundled_names, unknown_model

ANCHORS = {"DIINN": DIINN.anchor, "LIIF": LIIF.anchor, "Meta-SR": MetaSR.anchor}


def load_model(name: str | os.PathLike[str] | None = None, *, mode: int | None = None) -> nn.Module:
    """Model of any architecture (`DIINN`, `LIIF`, `MetaSR`, `DnCNN`), told by its tensors; float32,
    on the CPU, in evaluation mode.

    Args:
        name: a bundled model's name; a folder with ``config.json`` and ``model.safetensors``; a
            file (official Lightning checkpoint, state_dict in whatever wrapping, safetensors); or
            ``hf://owner/name`` on the Hub. None is the default bundled model.
        mode: of a DIINN whose file does not say whether it is of mode 2 or 3.

    Raises:
        UpscaleError: no such model.
        CheckpointError: a damaged or unfitting one; names the first tensor that is wrong.
    """
    wanted = DEFAULT_WEIGHTS if name is None else os.fspath(name)
    # Bundled names first: a folder of the same name is reached by ./name.
    if wanted in bundled_names():
        return DIINN.from_folder(BUNDLED / wanted, mode).eval()
    if wanted.startswith(HUB):
        return DIINN.from_pretrained(wanted).eval()
    if wanted and Path(wanted).is_dir():
        return DIINN.from_folder(Path(wanted), mode).eval()
    if wanted and Path(wanted).is_file():
        return _from_file(Path(wanted), mode).eval()
    raise UpscaleError(unknown_model(wanted))


def portable_name(name: str | os.PathLike[str] | None) -> str:
    """The same name, in a form that means the same in another process: of files, the full path."""
    wanted = DEFAULT_WEIGHTS if name is None else os.fspath(name)
    is_file = wanted not in bundled_names() and not wanted.startswith(HUB)
    return os.path.abspath(wanted) if is_file else wanted


def load_weights(name: str | os.PathLike[str] | None = None, *, mode: int | None = None) -> DIINN:
    """The same for a DIINN. Raises CheckpointError for a model of another architecture."""
    model = load_model(name, mode=mode)
    if not isinstance(model, DIINN):
        raise CheckpointError(
            f"checkpoint {name} is a {type(model).__name__} model, not a DIINN model: "
            "diinn-fast eval compares it"
        )
    return model


def _from_file(path: Path, mode: int | None) -> nn.Module:
    try:
        checkpoint = read_checkpoint(path, ANCHORS)
    except CheckpointError as error:
        # Looked for last: an encoder of any of the others may have a tensor of that name too.
        try:
            cleaner = read_checkpoint(path, {"DnCNN": DnCNN.anchor})
        except CheckpointError:
            raise error from None
        return DnCNN.from_tensors(cleaner)
    if DIINN.anchor in checkpoint.state:
        return DIINN.from_tensors(checkpoint, mode)
    architecture = LIIF if LIIF.detect(checkpoint.state) else MetaSR
    return architecture.from_tensors(checkpoint)
